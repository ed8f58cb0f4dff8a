// How detections compare with annotated segments. The rule is that of tzn.evaluation: per class, detections by falling
// score each take the free segment of highest IoU at or above the threshold. Pure functions, tested against Python.

const STATUSES = [
  { name: "correct", colour: "#009E73", glyph: "✓", help: "takes an annotated segment of its class" },
  { name: "repeated", colour: "#56B4E9", glyph: "=", help: "would fit, but a better detection has taken the segment" },
  { name: "wrong class", colour: "#CC79A7", glyph: "≠", help: "fits a segment of another class" },
  { name: "poorly localised", colour: "#E69F00", glyph: "↔", help: "overlaps a segment of its class, below the threshold" },
  { name: "false", colour: "#D55E00", glyph: "×", help: "fits nothing annotated" },
  { name: "missed", colour: "#0072B2", glyph: "?", help: "annotated, and no detection shown takes it" },
];
const CORRECT = 0, REPEATED = 1, WRONG_CLASS = 2, POOR = 3, FALSE = 4, MISSED = 5;
const LEAST_OVERLAP = 0.1; // IoU below which a detection of the right class is false, not poorly localised
const SAME_ENDS = 1e-3; // seconds: as in tzn.evaluation, shorter segments and repeated ones do not count

function segmentIou(s, e, truthStart, truthEnd) {
  const overlap = Math.max(0, Math.min(e, truthEnd) - Math.max(s, truthStart));
  const union = (e - s) + (truthEnd - truthStart) - overlap;
  return union === 0 ? Infinity : overlap / union;
}

/** Indices of the segments that count: at least 1 ms long, and no repetition of an earlier one of their class. */
function distinctSegments(truth) {
  const kept = new Map();
  const all = [];
  truth.forEach((segment, i) => {
    if (segment.e - segment.s < SAME_ENDS) return;
    const earlier = kept.get(segment.c) ?? kept.set(segment.c, []).get(segment.c);
    const same = (k) => Math.abs(truth[k].s - segment.s) <= SAME_ENDS && Math.abs(truth[k].e - segment.e) <= SAME_ENDS;
    if (earlier.some(same)) return;
    earlier.push(i);
    all.push(i);
  });
  return all;
}

/**
 * Status of every detection and the annotated segment it takes.
 *
 * found: {segments: Float64Array [2N] of starts and ends, labels [N]}, by falling score; truth: [{s, e, c}];
 * skip: detections that are left out. Returns {status: Uint8Array [N], taken: Int32Array [N], -1 where none}.
 */
function classify(found, truth, tiou, skip = new Set()) {
  const count = found.labels.length;
  const status = new Uint8Array(count).fill(FALSE);
  const taken = new Int32Array(count).fill(-1);
  const order = distinctSegments(truth).sort((a, b) => truth[a].s - truth[b].s);
  const longest = order.reduce((most, k) => Math.max(most, truth[k].e - truth[k].s), 0);
  const held = new Set();
  for (let i = 0; i < count; i++) {
    if (skip.has(i)) continue;
    const s = found.segments[2 * i], e = found.segments[2 * i + 1], c = found.labels[i];
    let best = -1, bestIou = 0, same = 0, other = 0;
    for (let j = firstAtOrAfter(order, (k) => truth[k].s, s - longest); j < order.length; j++) {
      const k = order[j];
      if (truth[k].s > e) break;
      const iou = segmentIou(s, e, truth[k].s, truth[k].e);
      if (truth[k].c !== c) {
        other = Math.max(other, iou);
        continue;
      }
      same = Math.max(same, iou);
      if (iou >= tiou && !held.has(k) && (iou > bestIou || (iou === bestIou && k > best))) {
        best = k;
        bestIou = iou;
      }
    }
    if (best >= 0) {
      held.add(best);
      taken[i] = best;
      status[i] = CORRECT;
    } else if (same >= tiou) status[i] = REPEATED;
    else if (other >= tiou) status[i] = WRONG_CLASS;
    else if (same >= LEAST_OVERLAP) status[i] = POOR;
  }
  return { status, taken };
}

/** First index of items, sorted by key, with key >= value. */
function firstAtOrAfter(items, key, value) {
  let low = 0, high = items.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (key(items[middle]) < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
