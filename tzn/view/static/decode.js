// From a network's outputs to detections, as tzn/inference/localize.py and decode.py do it (tests/view/test_app.py compares).

const LIMIT_STEPS = 16384; // pre_nms_topk and max_segments hold for every started stretch of this length
const LEAST_SEGMENTS = 200;
const LAPLACE_STD = Math.SQRT2;
const NMS_EPS = 1e-6;

const limitFor = (limit, steps) => limit * Math.max(Math.ceil(steps / LIMIT_STEPS), 1);

/** Entries of a chunk above the threshold, at most `topk` a level: {position, level, label, score, offset, std} each. */
function selectCandidates(points, chunk, config, topk, numClasses) {
  const levels = new Map();
  for (let p = 0; p < points.position.length; p++) {
    const at = points.position[p];
    if (!points.valid[p] || at < chunk.low || at >= chunk.high) continue;
    for (let c = 0; c < numClasses; c++) {
      const score = points.scores[p * numClasses + c];
      if (!(score > config.pre_nms_thresh)) continue;
      const level = Number(points.level[p]);
      if (!levels.has(level)) levels.set(level, []);
      levels.get(level).push({
        position: at + chunk.origin, level, label: c, score,
        offset: [points.offset[2 * p], points.offset[2 * p + 1]],
        std: points.offset_std ? [points.offset_std[2 * p], points.offset_std[2 * p + 1]] : null,
      });
    }
  }
  return bestOfLevels(levels, topk);
}

/** Level by level by falling score; equal scores stay in order, as sorting is stable. */
function bestOfLevels(levels, topk) {
  return [...levels.keys()].sort((a, b) => a - b).flatMap((level) => levels.get(level).sort((a, b) => b.score - a.score).slice(0, topk));
}

function mergeSelections(parts, topk) {
  if (parts.length === 1) return parts[0];
  const levels = new Map();
  for (const item of parts.flat()) {
    if (!levels.has(item.level)) levels.set(item.level, []);
    levels.get(item.level).push(item);
  }
  return bestOfLevels(levels, topk);
}

/** Up-crossings of a distance field with their standard errors: {position, std}, ascending. */
function boundaryCrossings(distance, scale, config) {
  const votes = config.estimator === "crossing" ? 1 : 2 * config.vote_window + 1;
  const inflation = Math.sqrt(1 + (votes - 1) * config.vote_correlation);
  const found = [];
  for (let t = 0; t + 1 < distance.length; t++) {
    const rise = distance[t + 1] - distance[t];
    if (!(distance[t] < 0 && distance[t + 1] >= 0 && rise > config.min_slope)) continue;
    const fraction = -distance[t] / rise;
    let crossing = { position: t + fraction };
    if (config.estimator === "crossing") crossing.std = (LAPLACE_STD * Math.hypot((1 - fraction) * scale[t], fraction * scale[t + 1])) / rise;
    else crossing = voted(distance, scale, t + fraction, config);
    crossing.std *= inflation;
    found.push(crossing);
  }
  return found.sort((a, b) => a.position - b.position);
}

function voted(distance, scale, position, { vote_window: window, estimator }) {
  const cast = [];
  for (let t = Math.max(0, Math.floor(position) - window); t <= Math.min(distance.length - 1, Math.floor(position) + window + 1); t++) {
    const vote = t - distance[t];
    if (Math.abs(t - position) <= window && Math.abs(vote - position) <= window) cast.push({ vote, scale: scale[t] });
  }
  const precision = cast.reduce((sum, v) => sum + v.scale ** -2, 0);
  if (estimator === "vote_mean") {
    return { position: cast.reduce((sum, v) => sum + v.vote * v.scale ** -2, 0) / precision, std: LAPLACE_STD / Math.sqrt(precision) };
  }
  cast.sort((a, b) => a.vote - b.vote);
  const half = cast.reduce((sum, v) => sum + 1 / v.scale, 0) / 2;
  let reached = 0, low = null, high = null;
  for (const v of cast) {
    reached += 1 / v.scale;
    if (low === null && reached >= half * (1 - 1e-6)) low = v.vote;
    if (high === null && reached > half * (1 + 1e-6)) high = v.vote;
  }
  return { position: 0.5 * (low + (high ?? low)), std: 1 / Math.sqrt(precision) };
}

/** An end fused with the nearest crossing by inverse variance: [place, std]. */
function fused(place, std, crossings, sigmas) {
  if (!crossings.length) return [place, std];
  let low = 0, high = crossings.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (crossings[middle].position < place) low = middle + 1;
    else high = middle;
  }
  const before = Math.max(low - 1, 0), after = Math.min(low, crossings.length - 1);
  const nearer = Math.abs(crossings[after].position - place) < Math.abs(crossings[before].position - place) ? after : before;
  const { position, std: error } = crossings[nearer];
  const total = std * std + error * error;
  if (!(error <= std && Math.abs(position - place) <= sigmas * Math.sqrt(total))) return [place, std];
  return [place + ((std * std) / total) * (position - place), (std * error) / Math.sqrt(total)];
}

/** Segments in steps with scores that say how sure the ends are, the long enough ones. */
function decodeCandidates(selection, crossings, config) {
  const made = [];
  for (const { position, label, score: raw, offset, std: spread } of selection) {
    let s = position - offset[0], e = position + offset[1], std = spread;
    if (crossings && spread) {
      const [start, startStd] = fused(s, spread[0], crossings.starts, config.snap_sigmas);
      const [end, endStd] = fused(e, spread[1], crossings.ends, config.snap_sigmas);
      if (end > start) [s, e, std] = [start, end, [startStd, endStd]]; // ends that cross over would lose the segment
    }
    let score = raw;
    if (config.quality > 0 && std) {
      const overlap = Math.min(1, Math.max(0, (e - s) / (e - s + (std[0] + std[1]) / LAPLACE_STD)));
      score *= overlap ** config.quality;
    }
    // Last, as in Python: an end that no crossing moved has the very standard error of its offset.
    const [moved, others] = config.std_scale ?? [1, 1];
    const scaled = std && std.map((x, i) => x * (x === spread[i] ? others : moved));
    if (e - s > config.duration_thresh) made.push({ s, e, label, score, std: scaled });
  }
  return made;
}

/** The best `most` after suppression, by falling score. */
function suppress(candidates, config, most) {
  const byScore = (list) => list.sort((a, b) => b.score - a.score);
  if (config.nms === "none") return byScore([...candidates]).slice(0, most);
  const hard = config.nms === "hard" || config.nms === "diou";
  const rows = new Map();
  for (const item of candidates) {
    if (hard && config.min_score > 0 && !(item.score > config.min_score)) continue;
    const key = config.multiclass ? item.label : 0;
    if (!rows.has(key)) rows.set(key, { items: [], left: [] });
    rows.get(key).items.push(item);
    rows.get(key).left.push(item.score);
  }
  const best = (row) => {
    row.best = -1;
    for (let i = 0; i < row.left.length; i++) if (row.left[i] !== -Infinity && (row.best < 0 || row.left[i] > row.left[row.best])) row.best = i;
  };
  const queue = [...rows.keys()].sort((a, b) => a - b).map((key) => rows.get(key));
  queue.forEach(best);
  const picked = [];
  // Scores only fall, so the best of all classes in turn come by falling score.
  while (picked.length < most) {
    let row = null;
    for (const other of queue) if (other.best >= 0 && (!row || other.left[other.best] > row.left[row.best])) row = other;
    if (!row) break;
    const pick = row.items[row.best];
    picked.push({ ...pick, score: row.left[row.best] });
    row.left[row.best] = -Infinity;
    decay(row, pick, config, hard);
    best(row);
  }
  if (config.voting_thresh > 0 && (config.per_class_voting || !config.multiclass)) vote(picked, candidates, config);
  return picked;
}

function decay({ items, left }, pick, config, hard) {
  const length = pick.e - pick.s + NMS_EPS;
  for (let i = 0; i < items.length; i++) {
    if (left[i] === -Infinity) continue;
    const { s, e } = items[i];
    const common = Math.max(0, Math.min(e, pick.e) - Math.max(s, pick.s));
    let overlap = common / (length + (e - s + NMS_EPS) - common);
    if (config.nms === "diou") {
      const hull = Math.max(e, pick.e) - Math.min(s, pick.s) + NMS_EPS;
      overlap -= (((s + e - pick.s - pick.e) * 0.5) / hull) ** 2;
    }
    if (hard) {
      if (overlap >= config.iou_threshold) left[i] = -Infinity;
      continue;
    }
    if (config.nms === "soft") left[i] *= Math.exp(-(overlap * overlap) / config.sigma);
    else if (overlap >= config.iou_threshold) left[i] *= 1 - overlap;
    if (left[i] < config.min_score) left[i] = -Infinity;
  }
}

/** Every pick becomes the mean of all candidates that overlap it, weighted by score (times IoU). */
function vote(picked, candidates, config) {
  for (const pick of picked) {
    let total = 0, start = 0, end = 0;
    for (const { s, e, label, score } of candidates) {
      if (config.per_class_voting && label !== pick.label) continue;
      const common = Math.max(0, Math.min(e, pick.e) - Math.max(s, pick.s));
      const iou = common / (e - s + pick.e - pick.s - common);
      if (!(iou >= config.voting_thresh)) continue;
      const weight = score * (config.vote_weight === "score_iou" ? iou : 1);
      [total, start, end] = [total + weight, start + weight * s, end + weight * e];
    }
    [pick.s, pick.e] = [start / total, end / total];
  }
}

// --- the depth dial ---

const depthOf = (logit) => Math.min(1, Math.max(0, 1.1 / (1 + Math.exp(-logit)) - 0.05));

/** What to add to the logits for a mean depth of `budget`, by bisection. */
function budgetShift(logits, budget) {
  if (budget === 1) return Infinity;
  let bound = Math.log(1.05 / 0.05);
  bound += logits.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  let low = -bound, high = bound;
  for (let i = 0; i < 50; i++) {
    const middle = 0.5 * (low + high);
    const mean = logits.reduce((sum, x) => sum + depthOf(x + middle), 0) / Math.max(logits.length, 1);
    if (mean < budget) low = middle;
    else high = middle;
  }
  return 0.5 * (low + high);
}

// --- a whole recording ---

/** [low, high) to keep and [first, last) to read, for recordings that run in pieces. */
function spansOf(steps, chunk, radius) {
  if (steps <= chunk || radius == null) return [{ low: 0, high: steps, first: 0, last: steps }];
  const size = Math.max(Math.floor(chunk / radius), 1) * radius, spans = [];
  for (let low = 0; low < steps; low += size) {
    const high = Math.min(low + size, steps);
    spans.push({ low, high, first: Math.max(low - radius, 0), last: Math.min(high + radius, steps) });
  }
  return spans;
}

/**
 * Detections of features [steps, width]; `run(features, steps, shift)` gives the program's outputs by name.
 * Returns {found: [{s, e, label, score, std}] in seconds, trace} with curves in seconds.
 */
async function localize(description, features, steps, run, progress = () => {}) {
  const { config: { inference: config, data }, classes: names, receptive_radius: radius } = description;
  const width = features.length / steps, spans = spansOf(steps, config.chunk, radius);
  const dialled = config.budget != null && description.outputs.includes("depth_logits");
  const part = ({ first, last }) => features.subarray(first * width, last * width);
  let shift = 0;
  if (dialled) {
    const logits = new Float32Array(steps);
    for (const span of spans) {
      const { depth_logits: found } = await run(part(span), span.last - span.first, 0);
      logits.set(found.subarray(span.low - span.first, span.high - span.first), span.low);
    }
    shift = budgetShift(logits, config.budget);
  }
  const topk = limitFor(config.pre_nms_topk, steps), parts = [];
  const depth = new Float32Array(steps).fill(1), withFields = description.outputs.includes("distance");
  const fields = withFields ? Array.from({ length: 4 }, () => new Float32Array(steps)) : null; // distances, scales
  for (const span of spans) {
    const length = span.last - span.first, points = await run(part(span), length, shift);
    const chunk = { low: span.low - span.first, high: span.high - span.first, origin: span.first };
    parts.push(selectCandidates(points, chunk, config, topk, names.length));
    if (points.depth) depth.set(points.depth.subarray(chunk.low, chunk.high), span.low);
    if (withFields) {
      ["distance", "distance_scale"].forEach((name, k) => [0, 1].forEach((side) => {
        fields[2 * k + side].set(points[name].subarray(side * length + chunk.low, side * length + chunk.high), span.low);
      }));
    }
    progress(span.high / steps);
  }
  let crossings = null;
  if (withFields && config.mode !== "anchor") {
    crossings = { starts: boundaryCrossings(fields[0], fields[2], config), ends: boundaryCrossings(fields[1], fields[3], config) };
  }
  const candidates = decodeCandidates(mergeSelections(parts, topk), crossings, config);
  const kept = suppress(candidates, config, limitFor(config.max_segments ?? LEAST_SEGMENTS, steps));
  const rate = description.signal ? description.signal.rate : description.fps;
  const step = data.feat_stride / rate, offset = (0.5 * data.num_frames) / rate;
  const duration = ((steps - 1) * data.feat_stride + data.num_frames) / rate;
  const seconds = (t) => Math.min(duration, Math.max(0, t * step + offset));
  const found = kept.map(({ s, e, label, score, std }) => ({ s: seconds(s), e: seconds(e), label, score, std: std && std.map((x) => x * step) }));
  const scaled = (values) => values.map((x) => x * step);
  return {
    found, duration,
    trace: {
      first: offset, step, depth,
      ...(fields && { start_distance: scaled(fields[0]), end_distance: scaled(fields[1]), start_scale: scaled(fields[2]), end_scale: scaled(fields[3]) }),
      starts: (crossings?.starts ?? []).map((c) => c.position * step + offset), ends: (crossings?.ends ?? []).map((c) => c.position * step + offset),
    },
  };
}
