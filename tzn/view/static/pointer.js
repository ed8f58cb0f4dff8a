// Mouse, pen and touch on the timeline and the overview.

const SNAP = 5, EDGE = 6, CLICK = 3; // pixels
const tip = byId("tip");
let drag = null;
const fingers = new Map(); // where each finger on the timeline is
let pinch = null; // the times and the scrolling that two fingers hold

/** The bar under the pointer: {item, part: "start", "end" or "body"}; one the pointer is inside of comes first. */
function hitAt(x, y) {
  if (y < RULER || x < GUTTER) return null;
  const inY = y - RULER + scroll.scrollTop;
  for (const slack of [0, EDGE - 2]) {
    for (let i = hits.length - 1; i >= 0; i--) {
      const { x0, x1, y0, y1, item } = hits[i];
      if (x < x0 - slack || x > x1 + slack || inY < y0 - 1 || inY > y1 + 1) continue;
      const inner = Math.min(EDGE, (x1 - x0) / 4);
      return { item, part: x <= x0 + inner ? "start" : x >= x1 - inner ? "end" : "body" };
    }
  }
  return null;
}

const trackAt = (y) => {
  const inY = y - RULER + scroll.scrollTop;
  return y < RULER ? null : tracks.find((t) => inY >= t.y && inY < t.y + t.h);
};

/** A time near the playhead, an annotated end or a boundary that the network sees, unless Alt is held. */
function snapped(t, event, key) {
  if (event.altKey) return t;
  const { rec } = state;
  const near = [state.now, ...rec.truth.flatMap((segment) => (segment.key === key ? [] : [segment.s, segment.e]))];
  for (const crossings of rec.trace ? [rec.trace.starts, rec.trace.ends] : []) {
    const i = firstAtOrAfter(crossings, (x) => x, t);
    near.push(...crossings.slice(Math.max(0, i - 1), i + 1));
  }
  const best = near.reduce((a, b) => (Math.abs(b - t) < Math.abs(a - t) ? b : a), Infinity);
  return Math.abs(xOf(best) - xOf(t)) <= SNAP ? best : t;
}

canvas.addEventListener("pointerdown", (event) => {
  const [x, y] = [event.offsetX, event.offsetY];
  const track = trackAt(y), hit = hitAt(x, y);
  if (event.pointerType === "touch") fingers.set(event.pointerId, { x, y });
  if (fingers.size === 2) {
    cancelDrag();
    const [a, b] = [...fingers.values()];
    pinch = { a: tOf(a.x), b: tOf(b.x), y: a.y + b.y, top: scroll.scrollTop };
  }
  if (event.button > 1 || drag || pinch) return;
  drag = { x, y, view: [state.from, state.to], top: scroll.scrollTop, moved: false };
  if (event.button === 1 || event.shiftKey) drag.mode = "pan";
  else if (y < RULER) drag.mode = "scrub";
  else if (x < GUTTER) {
    drag = null;
    if (track?.kind === "lane") chooseLane(track.c);
    return;
  } else if (hit) {
    select(hit.item);
    Object.assign(drag, { mode: hit.part, item: selection() });
    state.lane = drag.item.c;
  } else if (track?.kind === "lane") {
    state.lane = track.c;
    select(null);
    drag.mode = "draw";
  } else drag.mode = "pan";
  drag.seeks = !hit && drag.mode !== "scrub";
  canvas.setPointerCapture(event.pointerId);
  if (drag.mode === "scrub") seek(tOf(x));
  tip.hidden = true;
});

canvas.addEventListener("mousedown", (event) => { if (event.button === 1) event.preventDefault(); }); // no autoscroll

canvas.addEventListener("pointermove", (event) => {
  const [x, y] = [event.offsetX, event.offsetY];
  if (fingers.has(event.pointerId)) fingers.set(event.pointerId, { x, y });
  if (pinch) {
    twoFingers();
    return;
  }
  if (!drag) {
    hover(x, y, event);
    return;
  }
  if (!drag.moved && Math.hypot(x - drag.x, y - drag.y) < CLICK) return;
  drag.moved = true;
  if (drag.mode === "scrub") seek(tOf(Math.max(GUTTER, x)));
  else if (drag.mode === "pan") {
    const shift = ((drag.x - x) / plotWidth()) * (drag.view[1] - drag.view[0]);
    look(drag.view[0] + shift, drag.view[1] + shift);
    scroll.scrollTop = drag.top + drag.y - y;
  } else dragSegment(x, y, event);
});

/** The times that were under two fingers stay under them. */
function twoFingers() {
  const [a, b] = [...fingers.values()];
  if (!b || Math.abs(b.x - a.x) < 2 * EDGE) return;
  const perPixel = Math.abs((pinch.b - pinch.a) / (b.x - a.x));
  const middle = (pinch.a + pinch.b) / 2 - ((a.x + b.x) / 2 - GUTTER - plotWidth() / 2) * perPixel;
  look(middle - (plotWidth() / 2) * perPixel, middle + (plotWidth() / 2) * perPixel);
  scroll.scrollTop = pinch.top + (pinch.y - a.y - b.y) / 2;
}

for (const kind of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(kind, (event) => {
    fingers.delete(event.pointerId);
    if (!fingers.size) pinch = null;
  });
}

/** The segment as it would be; lanes stay where they are until it is let go, and so does everything computed. */
function dragSegment(x, y, event) {
  const { mode } = drag;
  const t = tOf(x);
  if (mode === "draw") {
    drag.segment ??= { key: nextKey++, c: state.lane };
    const key = drag.segment.key;
    drag.from ??= snapped(tOf(drag.x), event, key);
    Object.assign(drag.segment, fitted(drag.from, snapped(t, event, key)));
  } else {
    drag.segment ??= editable(drag.item);
    const { key } = drag.segment, { s, e } = drag.item;
    if (mode === "start") Object.assign(drag.segment, fitted(snapped(t, event, key), e));
    else if (mode === "end") Object.assign(drag.segment, fitted(s, snapped(t, event, key)));
    else {
      const shift = t - tOf(drag.x);
      const byStart = snapped(s + shift, event, key) - s, byEnd = snapped(e + shift, event, key) - e;
      const by = byStart !== shift ? byStart : byEnd;
      Object.assign(drag.segment, fitted(s + by, e + by, true));
      const track = trackAt(y);
      if (track?.kind === "lane") drag.segment.c = track.c;
    }
  }
  invalidate();
  showTip(event, `${timeText(drag.segment.s, 0.001)} – ${timeText(drag.segment.e, 0.001)}\n${trimmed(drag.segment.e - drag.segment.s)} s`);
}

canvas.addEventListener("pointerup", (event) => {
  const done = drag;
  drag = null;
  tip.hidden = true;
  if (!done) return;
  if (done.segment) {
    const verb = { draw: "Drew", body: "Moved" }[done.mode] ?? `Corrected the ${done.mode} of`;
    state.lane = done.segment.c;
    change(`${verb} ${classes[done.segment.c]}, ${spoken(done.segment)}`, (rec) => put(rec, done.segment));
    select({ key: done.segment.key });
  } else if (!done.moved && done.seeks) seek(tOf(event.offsetX));
});

canvas.addEventListener("pointercancel", cancelDrag);
canvas.addEventListener("pointerleave", () => { tip.hidden = true; });

/** Give a drag up; true if there was one. */
function cancelDrag() {
  const had = drag !== null;
  drag = null;
  tip.hidden = true;
  invalidate();
  return had;
}

canvas.addEventListener("dblclick", (event) => {
  const item = described(hitAt(event.offsetX, event.offsetY)?.item);
  if (item) zoomTo(item);
});

canvas.addEventListener("wheel", (event) => {
  if (event.offsetX < GUTTER && !event.ctrlKey) return; // scrolls the lanes
  event.preventDefault();
  const unit = event.deltaMode === 1 ? 16 : 1;
  const across = event.shiftKey ? event.deltaY || event.deltaX : event.deltaX;
  if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    const shift = ((across * unit) / plotWidth()) * (state.to - state.from);
    look(state.from + shift, state.to + shift);
  } else zoom(Math.exp(event.deltaY * unit * (event.ctrlKey ? 0.008 : 0.0016)), tOf(event.offsetX));
}, { passive: false });

function hover(x, y, event) {
  const hit = hitAt(x, y), track = trackAt(y);
  canvas.style.cursor = hit ? (hit.part === "body" ? "grab" : "ew-resize")
    : y < RULER ? "col-resize" : x < GUTTER ? "default" : track?.kind === "lane" ? "crosshair" : "default";
  const item = described(hit?.item);
  if (item) showTip(event, description(item));
  else tip.hidden = true;
}

function description(item) {
  const lines = [classes[item.c], `${timeText(item.s)} – ${timeText(item.e)}, ${trimmed(item.e - item.s)} s`];
  if (item.kind === "found") {
    lines.push(`score ${item.score.toFixed(2)}${errorsText(item.std)}`);
    if (item.status !== undefined) lines.push(STATUSES[item.status].name);
  } else lines.push(state.rec.missed.has(item.key) ? "annotated, missed" : "annotated");
  return lines.join("\n");
}

const errorsText = (std) => (std && std.some(Number.isFinite)
  ? `, ends ± ${std.map((x) => (Number.isFinite(x) ? trimmed(x) : "?")).join(" and ")} s` : "");

function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(6, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 12 : event.clientY + 18}px`;
}

// The overview: drag the window, its ends, or anywhere else to go there.
let overviewDrag = null;

overview.addEventListener("pointerdown", (event) => {
  const x = event.offsetX, [x0, x1] = [overviewX(state.from), overviewX(state.to)];
  overview.setPointerCapture(event.pointerId);
  const narrow = x1 - x0 < 3 * EDGE;
  if (!narrow && Math.abs(x - x0) <= EDGE) overviewDrag = { mode: "from" };
  else if (!narrow && Math.abs(x - x1) <= EDGE) overviewDrag = { mode: "to" };
  else {
    const middle = (state.from + state.to) / 2;
    overviewDrag = { mode: "move", grip: x >= x0 && x <= x1 ? overviewT(x) - middle : 0 };
  }
  moveOverview(x);
});
overview.addEventListener("pointermove", (event) => {
  const x = event.offsetX;
  if (overviewDrag) moveOverview(x);
  else {
    const atEnd = [state.from, state.to].some((t) => Math.abs(x - overviewX(t)) <= EDGE);
    overview.style.cursor = atEnd ? "ew-resize" : "grab";
  }
});
for (const kind of ["pointerup", "pointercancel"]) overview.addEventListener(kind, () => { overviewDrag = null; });

function moveOverview(x) {
  const t = overviewT(x);
  if (overviewDrag.mode === "from") look(Math.min(t, state.to - 0.02), state.to);
  else if (overviewDrag.mode === "to") look(state.from, Math.max(t, state.from + 0.02));
  else {
    const half = (state.to - state.from) / 2, middle = t - overviewDrag.grip;
    look(middle - half, middle + half);
  }
}
