// Recordings, their annotations and every change to them. Segments are never altered in place: an edit replaces the
// list, so that undo is a matter of keeping the old one.

const byId = (id) => document.getElementById(id);
const META = JSON.parse(byId("tzn-data").textContent);
const classes = [...META.classes];
const labelIds = [...META.labelIds];
const SHORTEST = 0.01; // seconds: the shortest segment that can be drawn
const DEFAULT_SCORE = 0.2;

let nextKey = 0;
const recordingOf = (info) => ({
  info,
  id: info.id,
  duration: info.duration,
  truth: info.truth.map(([s, e, c, origin]) => ({ key: nextKey++, s, e, c, origin })),
  dismissed: new Set(),
  edited: false,
  found: null, // {segments, scores, labels, std}: unpacked when the recording is first shown
});
const recordings = META.recordings.map(recordingOf);

const state = {
  rec: recordings[0],
  from: 0, to: 1, // seconds in view
  now: 0,
  selected: null, // {key} of an annotation or {found: index} of a detection
  lane: 0, // class that the keyboard draws in
  minScore: 0,
  tiou: 0.5,
  byError: META.predicted && META.annotated,
  hiddenClasses: new Set(),
  hiddenStatuses: new Set(),
  tracks: { signal: true, distance: true, depth: true },
  drawing: null, // start of a segment drawn by keyboard
  undo: [], redo: [], dirty: false,
};

const bytesOf = (id) => {
  const text = atob(byId(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
};

async function unpack(id) {
  const stream = new Blob([bytesOf(id)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const ARRAYS = { f8: Float64Array, f4: Float32Array, i2: Int16Array, u2: Uint16Array };

async function load(rec) {
  if (rec.found) return;
  const buffer = await unpack(`recording-${recordings.indexOf(rec)}`);
  const arrays = {};
  for (const [name, [kind, offset, length]] of Object.entries(rec.info.arrays)) {
    arrays[name] = new ARRAYS[kind](buffer, offset, length);
  }
  const { trace, signal } = rec.info;
  if (trace) {
    const curve = (name) => new Curve(arrays[name], trace.range[name], trace.first, trace.step);
    rec.trace = { starts: arrays.start_crossings, ends: arrays.end_crossings };
    for (const name of Object.keys(trace.range)) rec.trace[name] = curve(name);
  }
  if (signal) {
    const step = 1 / signal.rate;
    rec.signal = signal.names.map((name, i) => ({
      name, curve: new Curve(arrays[`signal_${i}`], signal.range[i], step / 2, step), shown: signal.shown[i],
    }));
  }
  const { segments = new Float64Array(0), scores = new Float32Array(0), labels = new Uint16Array(0), std = null } = arrays;
  rec.found = { segments, scores, labels, std };
}

/** Where the recording ends as far as anything says. */
function extent(rec) {
  if (rec.duration) return rec.duration;
  let last = 0;
  for (const segment of rec.truth) last = Math.max(last, segment.e);
  if (rec.found) for (let i = 1; i < rec.found.segments.length; i += 2) last = Math.max(last, rec.found.segments[i]);
  return 1.05 * last || 60; // room to draw after the last one
}

const clean = (seconds) => Math.round(seconds * 1e6) / 1e6;

/** A segment inside the recording, at least SHORTEST long; `moving` keeps its length instead of its other end. */
function fitted(s, e, moving = false) {
  const end = extent(state.rec);
  if (moving) {
    const length = Math.min(e - s, end);
    s = Math.min(Math.max(s, 0), end - length);
    return { s: clean(s), e: clean(s + length) };
  }
  [s, e] = [Math.max(0, Math.min(s, e)), Math.min(end, Math.max(s, e))];
  if (e - s < SHORTEST) [s, e] = s + SHORTEST <= end ? [s, s + SHORTEST] : [Math.max(0, end - SHORTEST), end];
  return { s: clean(s), e: clean(e) };
}

const snapshot = (rec) => ({ truth: rec.truth, dismissed: rec.dismissed });

/** Alter the recording shown; `text` says to people what was done, and undo takes it back. */
function change(text, alter) {
  const { rec } = state;
  const before = snapshot(rec);
  alter(rec);
  state.undo.push({ rec, before, after: snapshot(rec), text });
  state.redo = [];
  rec.edited = true;
  state.dirty = true;
  changed();
  say(text);
}

async function travel(from, to, side, word) {
  const step = from.pop();
  if (!step) return;
  to.push(step);
  Object.assign(step.rec, step[side]);
  step.rec.edited = true;
  state.dirty = true;
  if (step.rec !== state.rec) await show(step.rec);
  if (!selection()) select(null);
  changed();
  say(`${word}: ${step.text}`);
}
const undo = () => travel(state.undo, state.redo, "before", "Undone");
const redo = () => travel(state.redo, state.undo, "after", "Done again");

/** What is selected: {kind, s, e, c, …} or null where it is gone. */
const selection = () => described(state.selected);

function described(selected) {
  const { rec } = state;
  if (!selected) return null;
  if (selected.key !== undefined) {
    const segment = rec.truth.find((t) => t.key === selected.key);
    return segment ? { kind: "truth", ...segment } : null;
  }
  return rec.dismissed.has(selected.found) ? null : detection(rec, selected.found);
}

function detection(rec, i) {
  const { segments, scores, labels, std } = rec.found;
  return {
    kind: "found", found: i, s: segments[2 * i], e: segments[2 * i + 1], c: labels[i], score: scores[i],
    std: std && [std[2 * i], std[2 * i + 1]], status: rec.status?.[i],
  };
}

const put = (rec, segment) => {
  const at = rec.truth.findIndex((t) => t.key === segment.key);
  rec.truth = at < 0 ? [...rec.truth, segment] : rec.truth.with(at, segment);
};

/** The annotation that an edit of `item` works on: itself, or a copy of the detection. */
const editable = (item) => (item.kind === "truth"
  ? { key: item.key, s: item.s, e: item.e, c: item.c, origin: item.origin }
  : { key: nextKey++, ...fitted(item.s, item.e), c: item.c });

function addSegment(s, e, c) {
  const segment = { key: nextKey++, ...fitted(s, e), c };
  change(`Drew ${classes[c]}, ${spoken(segment)}`, (rec) => put(rec, segment));
  select({ key: segment.key });
}

function alterSelected(alteration, verb) {
  const item = selection();
  if (!item) return;
  const segment = { ...editable(item), ...alteration };
  change(`${verb} ${classes[segment.c]}, ${spoken(segment)}`, (rec) => put(rec, segment));
  select({ key: segment.key });
}

function deleteSelected() {
  const item = selection();
  if (!item) return;
  const next = neighbour(1) ?? neighbour(-1);
  change(`Deleted ${classes[item.c]}, ${spoken(item)}`, (rec) => {
    if (item.kind === "truth") rec.truth = rec.truth.filter((t) => t.key !== item.key);
    else rec.dismissed = new Set(rec.dismissed).add(item.found);
  });
  select(next);
}

function acceptSelected() {
  const item = selection();
  if (item?.kind === "found") alterSelected({}, "Annotated");
}

function acceptShown() {
  const { rec } = state;
  const taken = new Set(rec.truth.map((t) => `${t.c} ${t.s} ${t.e}`));
  const added = shownDetections(rec).map((i) => detection(rec, i)).map((d) => ({ key: nextKey++, ...fitted(d.s, d.e), c: d.c }))
    .filter((d) => !taken.has(`${d.c} ${d.s} ${d.e}`));
  if (added.length) change(`Annotated ${added.length} detections`, () => { rec.truth = [...rec.truth, ...added]; });
}

function addClass(name) {
  name = name.trim();
  if (!name) return;
  if (!classes.includes(name)) {
    classes.push(name);
    labelIds.push(null);
  }
  state.lane = classes.indexOf(name);
  state.hiddenClasses.delete(state.lane);
  changed();
}

/** Text of the annotation file: the original with the lists of segments replaced, or a new one. */
async function annotationText() {
  const original = META.annotated ? JSON.parse(new TextDecoder().decode(await unpack("original"))) : { version: "tzn 1", database: {} };
  const ids = numberedLabels();
  const database = new Map(Object.entries(original.database)); // names such as "__proto__" are only names
  const untouched = recordings.every((rec) => !rec.edited && !database.has(rec.id));
  for (const rec of recordings) {
    // What nobody has looked at is not said to hold no actions.
    if (!rec.edited && (database.has(rec.id) || !(untouched && rec === state.rec))) continue;
    const { annotations: old = [], ...entry } = database.get(rec.id) ?? { subset: rec.info.subset };
    if (entry.duration == null && rec.duration) entry.duration = clean(rec.duration);
    const annotations = [...rec.truth].sort((a, b) => a.s - b.s || a.e - b.e).map(({ s, e, c, origin }) => {
      const known = origin === undefined ? {} : { ...old[origin] };
      if (ids) known.label_id = ids[c];
      else if (known.label !== classes[c]) delete known.label_id;
      return { ...known, segment: [s, e], label: classes[c] };
    });
    database.set(rec.id, { ...entry, annotations });
  }
  const rows = [...database].map(([id, { annotations, ...entry }]) => {
    const list = (annotations ?? []).map((row) => `\n   ${JSON.stringify(row)}`).join(",");
    return ` ${JSON.stringify(id)}: ${JSON.stringify(entry).slice(0, -1)}, "annotations": [${list}]}`;
  });
  const { database: _, ...rest } = original;
  const head = Object.entries(rest).map(([key, value]) => `${JSON.stringify(key)}: ${JSON.stringify(value)}, `).join("");
  return `{${head}"database": {\n${rows.join(",\n")}\n}}\n`;
}

/** label_id of every class: those of the file, new classes after them; null where the file does without. */
function numberedLabels() {
  if (!META.annotated) return classes.map((_, i) => i);
  if (!labelIds.some((id) => id !== null)) return null;
  let next = Math.max(...labelIds.filter((id) => id !== null)) + 1;
  return labelIds.map((id) => id ?? next++);
}

function saved() {
  state.dirty = false;
  changed();
}
