// The timeline: which tracks there are, where everything lies, and drawing of what is in view.

const GUTTER = 176, MARGIN = 16, RULER = 30; // pixels
const TRUTH = META.predicted ? 15 : 18, FOUND = 10, SPACE = 3, PADDING = META.predicted ? 4 : 8, EMPTY_LANE = TRUTH + 2 * PADDING + 1, MAX_ROWS = 4;
const SLIM = 4; // bars below this width are plain
const DISTANCE = 92, DEPTH = 36, MANY_CLASSES = 24;
const TICKS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];
const FONT = 'Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif';

const canvas = byId("timeline"), context = canvas.getContext("2d");
const scroll = byId("scroll");
let size = { width: 800, height: 400, ratio: 1 };
let colours = {};
let tracks = []; // top to bottom: {kind, y, h, …}
let hits = []; // bars drawn in this frame, for the pointer: {x0, x1, y0, y1, item: what to select}
let stale = true, panelsDue = true, waiting = false;

const plotWidth = () => Math.max(50, size.width - GUTTER - MARGIN);
const xOf = (t) => GUTTER + ((t - state.from) / (state.to - state.from)) * plotWidth();
const lastSeen = () => tOf(size.width); // the view ends a margin before the edge, drawing does not
const tOf = (x) => state.from + ((x - GUTTER) / plotWidth()) * (state.to - state.from);
const classColour = (c) => META.palette[c % META.palette.length];

/** Draw again with the next frame; `touch` also sorts out anew what is shown where. */
function invalidate() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    if (state.rec) draw(); // a page that localizes has none at first
  });
}
function touch() {
  stale = true;
  invalidate();
}

const comparable = (rec) => META.predicted && (META.annotated || rec.truth.length > 0);

function refresh() {
  const { rec } = state;
  stale = false;
  panelsDue = true;
  const compared = comparable(rec);
  if (compared) {
    const { status, taken } = classify(rec.found, rec.truth, state.tiou, rec.dismissed);
    const held = new Set();
    taken.forEach((k, i) => { if (k >= 0 && rec.found.scores[i] >= state.minScore) held.add(k); });
    rec.status = status;
    rec.missed = new Set(distinctSegments(rec.truth).filter((k) => !held.has(k)).map((k) => rec.truth[k].key));
  } else {
    rec.status = null;
    rec.missed = new Set();
  }
  rec.shown = [];
  rec.counts = new Array(STATUSES.length).fill(0);
  rec.counts[MISSED] = rec.missed.size;
  rec.found.scores.forEach((score, i) => {
    if (score < state.minScore || rec.dismissed.has(i)) return;
    if (rec.status) rec.counts[rec.status[i]]++;
    if (state.hiddenClasses.has(rec.found.labels[i]) || (rec.status && state.hiddenStatuses.has(rec.status[i]))) return;
    rec.shown.push(i);
  });
  arrange(rec);
}

function shownDetections(rec) {
  if (stale) refresh();
  return rec.shown;
}

const hiddenTruth = (rec, segment) =>
  rec.status && state.hiddenStatuses.has(MISSED) && rec.missed.has(segment.key);

/** Tracks with their places: signal, a lane per class, distances, depth. */
function arrange(rec) {
  const lanes = new Map();
  const lane = (c) => lanes.get(c) ?? lanes.set(c, { kind: "lane", c, truth: [], found: [] }).get(c);
  if (classes.length <= MANY_CLASSES) classes.forEach((_, c) => lane(c));
  lane(state.lane);
  for (const segment of rec.truth) if (!hiddenTruth(rec, segment)) lane(segment.c).truth.push(segment);
  for (const i of rec.shown) lane(rec.found.labels[i]).found.push(i);
  let y = 0;
  tracks = [];
  const add = (track, h) => {
    tracks.push({ ...track, y, h });
    y += h;
  };
  if (rec.signal && state.tracks.signal) {
    const h = Math.max(24, Math.min(56, 144 / rec.signal.length));
    rec.signal.forEach((channel, i) => add({ kind: "signal", channel, last: i === rec.signal.length - 1 }, h));
  }
  for (const c of [...lanes.keys()].sort((a, b) => a - b)) {
    if (state.hiddenClasses.has(c) || c >= classes.length) continue;
    const { truth, found } = lanes.get(c);
    const truthRows = packed([...truth].sort((a, b) => a.s - b.s), (t) => [t.s, t.e]);
    const foundRows = packed(found, (i) => [rec.found.segments[2 * i], rec.found.segments[2 * i + 1]]);
    const h = truthRows.length * (TRUTH + SPACE) + foundRows.length * (FOUND + SPACE);
    add({ kind: "lane", c, truthRows, foundRows }, h ? h - SPACE + 2 * PADDING + 1 : EMPTY_LANE);
  }
  if (rec.trace && state.tracks.distance && !Number.isNaN(rec.trace.start_distance.at(rec.trace.start_distance.first))) add({ kind: "distance" }, DISTANCE);
  if (rec.trace && state.tracks.depth) add({ kind: "depth" }, DEPTH);
  byId("spacer").style.height = `${Math.max(0, y + RULER - size.height)}px`;
}

/** Items in rows without overlap, the first ones highest; more than fit share the last row. Rows are sorted by start. */
function packed(items, ends) {
  const rows = [];
  for (const item of items) {
    const [s, e] = ends(item);
    let place = 0, row;
    for (row of [...rows, null].slice(0, MAX_ROWS)) {
      if (row === null) {
        row = { starts: [], ends: [], items: [], longest: 0 };
        rows.push(row);
      }
      place = firstAtOrAfter(row.starts, (x) => x, s);
      const free = (place === row.starts.length || row.starts[place] >= e) && (place === 0 || row.ends[place - 1] <= s);
      if (free) break;
    }
    row.starts.splice(place, 0, s);
    row.ends.splice(place, 0, e);
    row.items.splice(place, 0, item);
    row.longest = Math.max(row.longest, e - s);
  }
  return rows;
}

function resize() {
  size = { width: scroll.clientWidth, height: scroll.clientHeight, ratio: window.devicePixelRatio || 1 };
  canvas.width = Math.round(size.width * size.ratio);
  canvas.height = Math.round(size.height * size.ratio);
  canvas.style.height = `${size.height}px`;
  touch();
}

function readColours() {
  const style = getComputedStyle(document.documentElement);
  colours = {};
  for (const name of ["page", "panel", "raised", "line", "edge", "text", "muted", "accent", "grid", "lane", "truth", "shade", "window", "start", "end", "missed"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
}

function draw() {
  if (stale) refresh();
  if (panelsDue) updatePanels();
  const top = scroll.scrollTop, c = context;
  hits = [];
  c.setTransform(size.ratio, 0, 0, size.ratio, 0, 0);
  c.fillStyle = colours.panel;
  c.fillRect(0, 0, size.width, size.height);
  const ticks = tickTimes();
  c.fillStyle = colours.grid;
  for (const t of ticks.times) c.fillRect(Math.round(xOf(t)), RULER, 1, size.height);
  c.save();
  c.beginPath();
  c.rect(0, RULER, size.width, size.height - RULER);
  c.clip();
  c.translate(0, RULER - top);
  for (const track of tracks) {
    if (track.y + track.h < top || track.y > top + size.height - RULER) continue;
    DRAW[track.kind](track);
    if (track.kind !== "signal" || track.last) {
      c.fillStyle = colours.line;
      c.fillRect(0, track.y + track.h - 1, size.width, 1);
    }
  }
  drawGhost();
  c.restore();
  drawRuler(ticks);
  drawPlayhead();
  drawOverview();
}

/** Draw inside the plot only. */
function inPlot(track, paint) {
  context.save();
  context.beginPath();
  context.rect(GUTTER, track.y, size.width - GUTTER, track.h);
  context.clip();
  paint();
  context.restore();
}

function label(text, x, y, { colour = colours.text, weight = 400, pixels = 12, align = "left", width = GUTTER - 34 } = {}) {
  context.font = `${weight} ${pixels}px ${FONT}`;
  context.fillStyle = colour;
  context.textAlign = align;
  context.textBaseline = "middle";
  context.fillText(width ? shortened(text, width) : text, x, y);
}

function shortened(text, width) {
  if (context.measureText(text).width <= width) return text;
  let length = text.length;
  while (length > 1 && context.measureText(`${text.slice(0, length)}…`).width > width) length--;
  return `${text.slice(0, length)}…`;
}

const DRAW = {
  signal({ channel, y, h }) {
    label(channel.name, 18, y + h / 2, { colour: colours.muted, pixels: 11 });
    const [low, high] = channel.shown, span = high - low || 1;
    inPlot({ y, h }, () => {
      context.beginPath();
      channel.curve.trace(context, xOf, (v) => y + 3 + (1 - (v - low) / span) * (h - 6), state.from, lastSeen());
      context.strokeStyle = colours.muted;
      context.lineWidth = 1;
      context.lineJoin = "round";
      context.stroke();
    });
  },

  lane({ c, y, h, truthRows, foundRows }) {
    const colour = classColour(c);
    if (c === state.lane) {
      context.fillStyle = colours.accent;
      context.fillRect(0, y, 3, h - 1);
    }
    context.fillStyle = colour;
    context.strokeStyle = colours.shade;
    roundBar(18, y + h / 2 - 5, 10, 10, 3);
    context.fill();
    context.lineWidth = 1;
    context.stroke();
    label(classes[c], 36, y + h / 2, { weight: c === state.lane ? 600 : 400, width: GUTTER - 46 });
    inPlot({ y, h }, () => {
      let top = y + PADDING;
      for (const row of truthRows) {
        drawRow(row, top, TRUTH, drawTruth);
        top += TRUTH + SPACE;
      }
      for (const row of foundRows) {
        drawRow(row, top, FOUND, drawFound);
        top += FOUND + SPACE;
      }
    });
  },

  distance({ y, h }) {
    const { trace } = state.rec;
    const reach = Math.max(...["start", "end"].flatMap((side) => [-trace[`${side}_distance`].low, trace[`${side}_distance`].high]));
    const yOf = (v) => y + h / 2 - (v / reach) * (h / 2 - 8);
    label("distance from", 18, y + h / 2 - 16, { colour: colours.muted, pixels: 11 });
    label("nearest start", 18, y + h / 2, { colour: colours.start, pixels: 11, weight: 600 });
    label("nearest end", 18, y + h / 2 + 15, { colour: colours.end, pixels: 11, weight: 600 });
    for (const v of [reach, 0, -reach]) {
      label(`${v > 0 ? "+" : ""}${trimmed(v)} s`, GUTTER - 8, yOf(v), { colour: colours.muted, pixels: 10, align: "right", width: 0 });
    }
    inPlot({ y, h }, () => {
      context.fillStyle = colours.edge;
      context.fillRect(GUTTER, Math.round(yOf(0)), size.width, 1);
      for (const side of ["start", "end"]) {
        const distance = trace[`${side}_distance`];
        context.strokeStyle = context.fillStyle = colours[side];
        drawBand(distance, trace[`${side}_scale`], yOf);
        context.beginPath();
        distance.trace(context, xOf, yOf, state.from, lastSeen());
        context.lineWidth = 1.4;
        context.lineJoin = "round";
        context.stroke();
        const crossings = trace[`${side}s`];
        for (let i = firstAtOrAfter(crossings, (t) => t, state.from); i < crossings.length && crossings[i] <= lastSeen(); i++) {
          context.beginPath();
          context.arc(xOf(crossings[i]), yOf(0), 2.6, 0, 2 * Math.PI);
          context.fill();
        }
      }
    });
  },

  depth({ y, h }) {
    const { depth } = state.rec.trace;
    const base = y + h - 6, yOf = (v) => base - v * (h - 14);
    label("depth", 18, y + h / 2, { colour: colours.muted, pixels: 11 });
    label("1", GUTTER - 8, yOf(1), { colour: colours.muted, pixels: 10, align: "right", width: 0 });
    label("0", GUTTER - 8, base, { colour: colours.muted, pixels: 10, align: "right", width: 0 });
    inPlot({ y, h }, () => {
      context.beginPath();
      depth.trace(context, xOf, yOf, state.from, lastSeen());
      context.strokeStyle = colours.text;
      context.lineWidth = 1.2;
      context.stroke();
      context.lineTo(Math.min(size.width, xOf(depth.first + depth.step * depth.values.length)), base);
      context.lineTo(Math.max(GUTTER, xOf(depth.first)), base);
      context.globalAlpha = 0.12;
      context.fillStyle = colours.text;
      context.fill();
      context.globalAlpha = 1;
    });
  },
};

/** One scale to both sides of a distance, while single steps can be told apart. */
function drawBand(distance, scale, yOf) {
  const perPixel = (state.to - state.from) / distance.step / plotWidth();
  if (perPixel > 1) return;
  const first = Math.max(0, Math.floor((state.from - distance.first) / distance.step) - 1);
  const last = Math.min(distance.values.length - 1, Math.ceil((lastSeen() - distance.first) / distance.step) + 1);
  context.beginPath();
  for (const [sign, from, to, by] of [[1, first, last, 1], [-1, last, first, -1]]) {
    for (let i = from; by * i <= by * to; i += by) {
      const x = xOf(distance.first + i * distance.step), y = yOf(distance.value(i) + sign * scale.value(i));
      if (Number.isFinite(y)) context.lineTo(x, y);
    }
  }
  context.globalAlpha = 0.16;
  context.fill();
  context.globalAlpha = 1;
}

function drawRow(row, y, h, paint) {
  let drawnTo = -1;
  for (let j = firstAtOrAfter(row.starts, (x) => x, state.from - row.longest); j < row.items.length; j++) {
    if (row.starts[j] > lastSeen()) break;
    if (row.ends[j] < state.from) continue;
    const x0 = xOf(row.starts[j]), x1 = xOf(row.ends[j]);
    if (x1 - x0 < SLIM && Math.floor(x1) <= drawnTo) continue; // pixels that have their bar already
    drawnTo = Math.max(drawnTo, Math.floor(x1));
    paint(row.items[j], x0, Math.max(x1 - x0, 1), y, h);
  }
}

function roundBar(x, y, w, h, radius = 3) {
  context.beginPath();
  if (w < SLIM) context.rect(x, y, w, h);
  else context.roundRect(x, y, w, h, Math.min(radius, w / 2));
}

function drawTruth(segment, x, w, y, h) {
  if (drag?.segment?.key === segment.key) return; // drawn on top of everything
  const missed = state.rec.missed.has(segment.key) && state.byError;
  const colour = missed ? colours.missed : state.byError && state.rec.status ? colours.truth : classColour(segment.c);
  context.fillStyle = context.strokeStyle = colour;
  roundBar(x, y, w, h);
  if (missed) {
    context.globalAlpha = 0.22;
    context.fill();
    context.globalAlpha = 1;
    if (w > SLIM) {
      roundBar(x + 0.75, y + 0.75, w - 1.5, h - 1.5);
      context.setLineDash([4, 3]);
      context.lineWidth = 1.5;
      context.stroke();
      context.setLineDash([]);
    } else context.fill();
    if (w > 22) label(STATUSES[MISSED].glyph, x + w / 2, y + h / 2 + 0.5, { weight: 700, pixels: 11, align: "center", width: 0 });
  } else {
    context.fill();
    edge(x, y, w, h);
  }
  mark({ key: segment.key }, x, w, y, h);
}

function drawFound(i, x, w, y, h) {
  const { found, status } = state.rec;
  const score = Math.max(0, Math.min(1, found.scores[i]));
  const kind = state.byError && status ? STATUSES[status[i]] : null;
  const fill = kind ? kind.colour : classColour(found.labels[i]), opacity = 0.3 + 0.6 * score;
  context.fillStyle = fill;
  context.globalAlpha = opacity;
  if (w < SLIM) {
    context.fillRect(x, y, w, h);
    context.globalAlpha = 1;
    mark({ found: i }, x, w, y, h);
    return;
  }
  roundBar(x, y, w, h);
  context.fill();
  context.globalAlpha = 1;
  edge(x, y, w, h);
  const text = w > 40 ? `${kind ? `${kind.glyph}  ` : ""}${score.toFixed(2)}` : kind && w > 14 ? kind.glyph : "";
  if (text) label(text, x + w / 2, y + h / 2 + 0.5, { colour: inkOn(fill, opacity), weight: 600, pixels: 9.5, align: "center", width: 0 });
  if (found.std) {
    whisker(x, y + h / 2, xOf(found.std[2 * i]) - xOf(0));
    whisker(x + w, y + h / 2, xOf(found.std[2 * i + 1]) - xOf(0));
  }
  mark({ found: i }, x, w, y, h);
}

/** Black or white, whichever is easier to read on `fill` over the panel. */
function inkOn(fill, opacity) {
  const [over, under] = [fill, colours.panel].map((hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16) / 255));
  const [r, g, b] = over.map((v, k) => (opacity * v + (1 - opacity) * under[k]) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#101214" : "#ffffff";
}

function edge(x, y, w, h) {
  if (w < SLIM) return;
  roundBar(x + 0.5, y + 0.5, w - 1, h - 1);
  context.strokeStyle = colours.shade;
  context.lineWidth = 1;
  context.stroke();
}

/** One standard error to both sides. */
function whisker(x, y, reach) {
  if (!(reach >= 1.5)) return;
  context.strokeStyle = colours.text;
  context.lineWidth = 1.2;
  context.beginPath();
  context.moveTo(x - reach, y);
  context.lineTo(x + reach, y);
  for (const end of [x - reach, x + reach]) {
    context.moveTo(end, y - 3);
    context.lineTo(end, y + 3);
  }
  context.stroke();
}

/** Remember where a bar lies, and outline the selected one. */
function mark(item, x, w, y, h) {
  hits.push({ x0: x, x1: x + w, y0: y, y1: y + h, item });
  const { selected } = state;
  if (!selected || selected.key !== item.key || selected.found !== item.found) return;
  outline(x, y, w, h);
}

function outline(x, y, w, h) {
  context.strokeStyle = colours.text;
  context.lineWidth = 2;
  roundBar(x - 1.5, y - 1.5, w + 3, h + 3, 4);
  context.stroke();
  if (w < 12) return;
  context.fillStyle = colours.text;
  for (const at of [x + 2.5, x + w - 4.5]) context.fillRect(at, y + 3, 2, h - 6);
}

/** A segment being dragged, or drawn by keyboard up to the playhead. */
function drawGhost() {
  const ends = [state.drawing ?? 0, state.now].sort((a, b) => a - b);
  const segment = drag?.segment ?? (state.drawing === null ? null : { s: ends[0], e: ends[1], c: state.lane });
  const track = segment && tracks.find((t) => t.kind === "lane" && t.c === segment.c);
  if (!track) return;
  const row = Math.max(0, track.truthRows.findIndex((r) => r.items.some((t) => t.key === segment.key)));
  const x = xOf(segment.s), w = Math.max(2, xOf(segment.e) - x), y = track.y + PADDING + row * (TRUTH + SPACE);
  inPlot(track, () => {
    context.fillStyle = classColour(segment.c);
    roundBar(x, y, w, TRUTH);
    context.fill();
    outline(x, y, w, TRUTH);
  });
}

function tickTimes() {
  const step = TICKS.find((s) => (plotWidth() * s) / (state.to - state.from) >= 84) ?? 86400;
  const times = [];
  for (let k = Math.ceil(state.from / step); k * step <= state.to; k++) times.push(k * step);
  return { step, times };
}

function drawRuler({ step, times }) {
  context.fillStyle = colours.panel;
  context.fillRect(0, 0, size.width, RULER);
  context.fillStyle = colours.line;
  context.fillRect(0, RULER - 1, size.width, 1);
  for (const t of times) {
    const x = Math.round(xOf(t));
    context.fillStyle = colours.edge;
    context.fillRect(x, RULER - 6, 1, 5);
    label(timeText(t, step), Math.max(x, GUTTER + 18), 12, { colour: colours.muted, pixels: 11, align: "center", width: 0 });
  }
}

function drawPlayhead() {
  const x = xOf(state.now);
  context.fillStyle = colours.line;
  context.fillRect(GUTTER - 1, 0, 1, size.height);
  if (x < GUTTER - 1 || x > size.width) return;
  context.fillStyle = colours.accent;
  context.fillRect(Math.round(x) - 0.75, 8, 1.5, size.height);
  context.beginPath();
  context.roundRect(Math.round(x) - 5.5, 4, 11, 11, 3);
  context.fill();
  context.beginPath();
  context.moveTo(x - 5.5, 13);
  context.lineTo(x + 5.5, 13);
  context.lineTo(x, 20);
  context.fill();
}

// The overview is drawn to a picture of its own, which stays while only the window moves.
const overview = byId("overview"), overviewPicture = document.createElement("canvas");
let overviewOf = null;

function drawOverview() {
  const { width, height } = overview.getBoundingClientRect();
  const { ratio } = size, { rec } = state;
  const key = [rec.id, rec.truth, rec.shown, width, ratio, state.byError, colours, rec.status];
  if (!overviewOf || key.some((k, i) => k !== overviewOf[i])) {
    overviewOf = key;
    for (const c of [overview, overviewPicture]) [c.width, c.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    const c = overviewPicture.getContext("2d");
    const scale = overviewPlot() / extent(rec);
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    const rows = META.predicted ? 2 : 1, h = (height - 14 - 2 * (rows - 1)) / rows;
    for (const segment of rec.truth) {
      if (state.hiddenClasses.has(segment.c)) continue;
      c.fillStyle = !state.byError || !rec.status ? classColour(segment.c) : rec.missed.has(segment.key) ? colours.missed : colours.truth;
      c.fillRect(GUTTER + segment.s * scale, 7, Math.max(1, (segment.e - segment.s) * scale - 0.5), h);
    }
    for (let k = rec.shown.length - 1; k >= 0; k--) { // the best on top
      const i = rec.shown[k], [s, e] = rec.found.segments.subarray(2 * i, 2 * i + 2);
      c.fillStyle = state.byError && rec.status ? STATUSES[rec.status[i]].colour : classColour(rec.found.labels[i]);
      c.fillRect(GUTTER + s * scale, 9 + h, Math.max(1, (e - s) * scale - 0.5), h);
    }
  }
  const c = overview.getContext("2d");
  c.setTransform(1, 0, 0, 1, 0, 0);
  c.clearRect(0, 0, overview.width, overview.height);
  c.drawImage(overviewPicture, 0, 0);
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  const [x0, x1] = [overviewX(state.from), overviewX(state.to)];
  c.fillStyle = colours.panel;
  c.globalAlpha = 0.6;
  c.fillRect(GUTTER, 0, x0 - GUTTER, height);
  c.fillRect(x1, 0, GUTTER + overviewPlot() - x1, height);
  c.globalAlpha = 1;
  c.strokeStyle = colours.accent;
  c.lineWidth = 1.5;
  c.beginPath();
  c.roundRect(x0, 2, Math.max(3, x1 - x0), height - 4, 4);
  c.stroke();
  c.fillStyle = colours.accent;
  c.fillRect(overviewX(state.now) - 0.5, 2, 1, height - 4);
  c.font = `11px ${FONT}`;
  c.fillStyle = colours.muted;
  c.textBaseline = "middle";
  if (META.predicted) {
    c.fillText("annotated", 18, height / 4 + 3);
    c.fillText("detected", 18, (3 * height) / 4 - 2);
  } else c.fillText("annotated", 18, height / 2);
}

const overviewPlot = () => Math.max(50, overview.clientWidth - GUTTER - MARGIN);
const overviewX = (t) => GUTTER + Math.max(0, Math.min(1, t / extent(state.rec))) * overviewPlot();
const overviewT = (x) => ((x - GUTTER) / overviewPlot()) * extent(state.rec);

/** Move the view; it stays within the recording and a little beyond. */
function look(from, to) {
  const end = extent(state.rec), most = end * 1.02;
  const span = Math.max(Math.min(to - from, most), Math.min(0.02, most));
  const spill = 0.01 * end;
  from = (from + to - span) / 2;
  from = Math.max(-spill, Math.min(from, end + spill - span));
  [state.from, state.to] = [from, from + span];
  invalidate();
}
const lookAtAll = () => look(-0.01 * extent(state.rec), 1.01 * extent(state.rec));
function zoom(factor, about = Math.max(state.from, Math.min(state.now, state.to))) {
  look(about - (about - state.from) * factor, about + (state.to - about) * factor);
}
function reveal(s, e) {
  const span = state.to - state.from;
  if (s >= state.from && e <= state.to) return;
  if (e - s > span) look(s - 0.1 * (e - s), e + 0.1 * (e - s));
  else look((s + e - span) / 2, (s + e + span) / 2);
}

function timeText(t, step = 0.01) {
  const digits = step >= 1 ? 0 : Math.min(3, Math.ceil(-Math.log10(step) - 1e-9));
  const sign = t < -1e-9 ? "−" : "";
  const rounded = Math.round(Math.abs(t) * 10 ** digits) / 10 ** digits;
  const hours = Math.floor(rounded / 3600), minutes = Math.floor(rounded / 60) % 60;
  const seconds = (rounded % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
  return `${sign}${hours ? `${hours}:${String(minutes).padStart(2, "0")}` : minutes}:${seconds}`;
}
const trimmed = (x, digits = 2) => String(Number(x.toFixed(digits)));
const spoken = ({ s, e }) => `${trimmed(s)} to ${trimmed(e)} seconds`;
