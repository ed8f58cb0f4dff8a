// The page around the timeline: lists and filters, the selected segment, playback, keyboard, saving.

const video = byId("video");
let playing = false, playedAt = 0;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function say(text) {
  byId("status").textContent = text;
  byId("hint").textContent = text;
}

// --- what is shown ---

let asked = null; // the recording chosen last: an earlier one may still be unpacked when it is there

async function show(rec) {
  asked = rec;
  cancelDrag();
  if (playing) {
    video.pause();
    run(false);
  }
  await load(rec);
  if (asked !== rec) return;
  Object.assign(state, { rec, selected: null, now: 0, drawing: null });
  scroll.scrollTop = 0;
  openMedia(rec);
  refresh();
  lookAtAll();
  changed();
  showTime();
  for (const box of document.querySelectorAll("#tracks-box label")) {
    box.hidden = !(box.dataset.track === "signal" ? rec.signal : rec.trace);
  }
  byId("tracks-box").hidden = !rec.signal && !rec.trace;
  byId("recording-name").textContent = rec.id;
  document.title = `${rec.id} – ${META.title}`;
  for (const button of byId("recordings").querySelectorAll("button")) {
    const current = button.dataset.number === String(recordings.indexOf(rec));
    button.setAttribute("aria-current", current);
    if (current) button.scrollIntoView({ block: "nearest" });
  }
}

/** After any change to annotations, filters or the selection. */
function changed() {
  touch();
  fillInspector();
}

function select(item) {
  state.selected = item;
  fillInspector();
  invalidate();
}

/** Counts, lists and buttons; runs with the frame that sorted things out anew. */
function updatePanels() {
  const { rec } = state;
  panelsDue = false;
  const facts = [timeText(extent(rec), 1), `${rec.truth.length} annotated`];
  if (META.predicted) facts.push(`${rec.shown.length} of ${rec.found.labels.length} detections`);
  if (state.dirty) facts.push("not saved yet");
  byId("recording-facts").textContent = facts.join("  ·  ");
  byId("undo").disabled = !state.undo.length;
  byId("redo").disabled = !state.redo.length;
  byId("accept-all").disabled = !rec.shown.length;
  byId("accept-all").textContent = rec.shown.length === 1 ? "Annotate the one shown" : `Annotate all ${rec.shown.length} shown`;
  byId("detections-box").hidden = !META.predicted;
  byId("errors-box").hidden = !comparable(rec);
  byId("score-text").textContent = state.minScore.toFixed(2);
  byId("tiou-text").textContent = state.tiou.toFixed(2);
  rec.counts.forEach((count, k) => { byId("statuses").children[k].querySelector(".count").textContent = count; });
  const list = byId("classes");
  while (list.children.length < classes.length) addClassChip(list.children.length);
  const counts = new Map();
  const count = (c) => counts.set(c, (counts.get(c) ?? 0) + 1);
  for (const segment of rec.truth) count(segment.c);
  for (const i of rec.shown) count(rec.found.labels[i]);
  [...list.children].forEach((chip, c) => {
    const button = chip.firstChild;
    button.setAttribute("aria-pressed", !state.hiddenClasses.has(c));
    button.querySelector(".count").textContent = counts.get(c) ?? "";
  });
  byId("all-classes").textContent = state.hiddenClasses.size ? "all" : "none";
  byId("all-classes").hidden = classes.length < 2;
  [...byId("recordings").children].forEach((row, i) => {
    row.querySelector(".facts").textContent = `${recordings[i].edited ? "• " : ""}${recordings[i].truth.length}`;
  });
  drawHistogram();
}

function chip(text, colour, key, title, toggle) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = swatch.style.borderColor = colour;
  const button = element(
    "button", { type: "button", title }, swatch, element("span", { className: "name", textContent: text }),
    element("span", { className: "count" }), element("span", { className: "key", textContent: key }),
  );
  button.setAttribute("aria-pressed", "true");
  button.addEventListener("click", toggle);
  return element("li", {}, button);
}

function addClassChip(c) {
  byId("classes").append(chip(classes[c], classColour(c), c < 9 ? String(c + 1) : "", `Show or hide ${classes[c]}; with Shift: only this class`, (event) => {
    if (event.shiftKey) state.hiddenClasses = new Set([...classes.keys()].filter((other) => other !== c));
    else flip(state.hiddenClasses, c);
    changed();
  }));
  byId("field-class").append(element("option", { value: c, textContent: classes[c] }));
}

const flip = (set, item) => set.delete(item) || set.add(item);

function drawHistogram() {
  const picture = byId("histogram"), { width, height } = picture.getBoundingClientRect();
  if (!width) return;
  const { scores } = state.rec.found, most = Number(byId("score").max), bins = new Array(50).fill(0);
  for (const score of scores) bins[Math.max(0, Math.min(49, Math.floor((50 * score) / most)))]++;
  const tallest = Math.max(1, ...bins), c = picture.getContext("2d");
  [picture.width, picture.height] = [width * size.ratio, height * size.ratio];
  c.scale(size.ratio, size.ratio);
  const inset = 8, step = (width - 2 * inset) / 50; // the slider's knob stops half its width before the ends
  bins.forEach((count, b) => {
    c.fillStyle = ((b + 1) / 50) * most > state.minScore ? colours.accent : colours.edge;
    const h = count ? Math.max(1.5, (Math.sqrt(count / tallest)) * (height - 2)) : 0;
    c.fillRect(inset + b * step, height - h, step - 1, h);
  });
}

function fillInspector() {
  const item = selection();
  byId("fields").hidden = !item;
  byId("hint").hidden = Boolean(item);
  if (!item) return;
  byId("kind").textContent = item.kind === "truth" ? "Annotated" : "Detected";
  byId("field-class").value = item.c;
  byId("field-start").value = trimmed(item.s, 3);
  byId("field-end").value = trimmed(item.e, 3);
  const parts = [`${trimmed(item.e - item.s)} s long`];
  if (item.kind === "found") {
    parts.push(`score ${item.score.toFixed(2)}${errorsText(item.std)}`);
    if (item.status !== undefined) parts.push(STATUSES[item.status].name);
  }
  byId("details").textContent = parts.join("  ·  ");
  byId("accept").hidden = item.kind === "truth";
}

// --- moving about ---

/** Everything visible, by start: what "next" and "previous" walk along. */
function walk() {
  const { rec } = state;
  const found = shownDetections(rec).map((i) => detection(rec, i));
  const truth = rec.truth.filter((t) => !hiddenTruth(rec, t) && !state.hiddenClasses.has(t.c)).map((t) => ({ kind: "truth", ...t }));
  return [...truth, ...found].sort((a, b) => a.s - b.s || a.e - b.e || a.c - b.c || (a.kind < b.kind ? 1 : -1));
}

const isError = (item) => (item.kind === "truth" ? state.rec.missed.has(item.key) : item.status > CORRECT);
const reference = (item) => (item.kind === "truth" ? { key: item.key } : { found: item.found });

function neighbour(by, wanted = () => true) {
  const items = walk(), now = selection();
  let at = now ? items.findIndex((i) => i.key === now.key && i.found === now.found) : -1;
  if (at < 0) {
    at = firstAtOrAfter(items, (i) => i.s, now ? now.s : state.now);
    if (by > 0) at--;
  }
  for (at += by; at >= 0 && at < items.length; at += by) if (wanted(items[at])) return reference(items[at]);
  return null;
}

function step(by, wanted) {
  const next = neighbour(by, wanted);
  if (!next) {
    say(by > 0 ? "No later one" : "No earlier one");
    return;
  }
  select(next);
  const item = selection();
  state.lane = item.c;
  reveal(item.s, item.e);
  seek(item.s);
  const track = (touch(), refresh(), tracks.find((t) => t.kind === "lane" && t.c === item.c));
  if (track && (track.y < scroll.scrollTop || track.y + track.h > scroll.scrollTop + size.height - RULER)) scroll.scrollTop = track.y - 40;
  say(`${item.kind === "truth" ? "Annotated" : "Detected"} ${description(item).replaceAll("\n", ", ")}`);
}

function zoomTo(item) {
  const rim = Math.max(0.6 * (item.e - item.s), 0.05);
  look(item.s - rim, item.e + rim);
}

function chooseLane(c) {
  if (c < 0 || c >= classes.length) return;
  const item = selection();
  state.lane = c;
  state.hiddenClasses.delete(c);
  if (item && item.c !== c) alterSelected({ c }, "Changed to");
  changed();
  if (!item) say(`Drawing ${classes[c]}`);
}

function moveLane(by) {
  const lanes = tracks.filter((t) => t.kind === "lane").map((t) => t.c);
  const at = lanes.indexOf(state.lane) + by;
  if (at < 0 || at >= lanes.length) return;
  select(null);
  chooseLane(lanes[at]);
}

function drawHere() {
  if (!classes.length) {
    say("Add a class first");
    byId("new-class").focus();
    return;
  }
  state.hiddenClasses.delete(state.lane);
  if (state.drawing === null) {
    state.drawing = state.now;
    select(null);
    say(`Drawing ${classes[state.lane] ?? ""} from ${timeText(state.now)}: move on and press Enter`);
    return;
  }
  const from = state.drawing;
  state.drawing = null;
  if (from !== state.now) addSegment(from, state.now, state.lane);
}

function escape() {
  if (cancelDrag()) return;
  if (state.drawing !== null) state.drawing = null;
  else select(null);
  say("");
  invalidate();
}

// --- playback ---

const hasMedia = () => Boolean(state.rec.info.media) && video.readyState > 0;

function openMedia(rec) {
  const { media } = rec.info;
  byId("stage").hidden = !media;
  byId("missing-media").hidden = true;
  if (!media) {
    video.removeAttribute("src");
    return;
  }
  byId("stage").style.height = media.type.startsWith("audio") ? "54px" : "";
  video.controls = media.type.startsWith("audio");
  if (media.blob) rec.url ??= URL.createObjectURL(new Blob([bytesOf(media.blob)], { type: media.type }));
  video.src = rec.url ?? media.src;
}

video.addEventListener("error", () => {
  const { media } = state.rec.info;
  if (!media) return;
  byId("missing-media").hidden = false;
  byId("missing-text").textContent = `${media.name} cannot be played from where this page looks for it (${media.src ?? "inside the page"}).`;
});
video.addEventListener("loadedmetadata", () => {
  const { rec } = state;
  video.playbackRate = Number(byId("speed").value);
  byId("missing-media").hidden = true;
  if (!rec.duration && Number.isFinite(video.duration)) {
    rec.duration = video.duration;
    lookAtAll();
    changed();
    showTime();
  }
  video.currentTime = state.now;
});
byId("media-file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (!file) return;
  state.rec.url = URL.createObjectURL(file);
  video.src = state.rec.url;
});
video.addEventListener("play", () => run(true));
video.addEventListener("pause", () => run(false));
video.addEventListener("seeked", () => {
  if (playing) return;
  state.now = video.currentTime;
  showTime();
});

function play(on = !playing) {
  if (on && state.now >= extent(state.rec) - 0.01) seek(0);
  if (!hasMedia()) run(on);
  else if (on) video.play().catch((error) => say(error.message));
  else video.pause();
}

function run(on) {
  if (on === playing) return;
  playing = on;
  playedAt = performance.now();
  byId("play").setAttribute("aria-pressed", on);
  byId("play").setAttribute("aria-label", on ? "Pause" : "Play");
  if (on) requestAnimationFrame(tick);
}

function tick(time) {
  if (!playing) return;
  const end = extent(state.rec);
  if (hasMedia()) state.now = video.currentTime;
  else {
    state.now = Math.min(end, state.now + (Math.max(0, time - playedAt) / 1000) * Number(byId("speed").value));
    if (state.now >= end) run(false);
  }
  playedAt = time;
  const span = state.to - state.from;
  if (!drag && !overviewDrag && (state.now > state.to - 0.02 * span || state.now < state.from)) look(state.now - 0.05 * span, state.now + 0.95 * span);
  showTime();
  requestAnimationFrame(tick);
}

function seek(t) {
  state.now = Math.max(0, Math.min(t, extent(state.rec)));
  if (hasMedia()) video.currentTime = state.now;
  showTime();
}

function showTime() {
  byId("clock").replaceChildren(timeText(state.now), element("span", { textContent: ` / ${timeText(extent(state.rec))}` }));
  invalidate();
}

/** Go on by seconds and keep the playhead in view. */
function travelTime(by) {
  seek(state.now + by);
  reveal(state.now, state.now);
}

/** One sample, one frame of a video, or a tenth of a second. */
function smallStep() {
  const { info, signal } = state.rec;
  if (signal) return Math.max(signal[0].curve.step, 0.01);
  return info.media && info.fps ? 1 / info.fps : 0.1;
}

// --- keyboard ---

const KEYS = {
  "Playback": [
    ["Space", "play or pause", () => play()],
    ["← →", "back and on by a second", [["ArrowLeft", () => travelTime(-1)], ["ArrowRight", () => travelTime(1)]]],
    [", .", "back and on by a sample, a frame or 0.1 s", [[",", () => travelTime(-smallStep())], [".", () => travelTime(smallStep())]]],
    ["Home End", "first and last moment", [["Home", () => travelTime(-Infinity)], ["End", () => travelTime(Infinity)]]],
    ["PgUp PgDn", "previous and next recording", [["PageUp", () => otherRecording(-1)], ["PageDown", () => otherRecording(1)]]],
  ],
  "View": [
    ["+ −", "zoom in and out", [["+", () => zoom(1 / 1.5)], ["=", () => zoom(1 / 1.5)], ["-", () => zoom(1.5)]]],
    ["0", "show everything", lookAtAll],
    ["F", "zoom to the selected segment", () => selection() && zoomTo(selection())],
    ["Shift ← →", "pan", [["Shift+ArrowLeft", () => pan(-0.25)], ["Shift+ArrowRight", () => pan(0.25)]]],
    ["T", "light or dark", flipTheme],
    ["?", "this help", () => byId("shortcuts").showModal()],
  ],
  "Segments": [
    ["N P", "next and previous segment", [["n", () => step(1)], ["p", () => step(-1)]]],
    ["E Shift E", "next and previous error", [["e", () => step(1, isError)], ["E", () => step(-1, isError)]]],
    ["[ ]", "start or end of the selected one to the playhead", [["[", () => endHere("s")], ["]", () => endHere("e")]]],
    ["Alt ← →", "move the selected one by a small step", [["Alt+ArrowLeft", () => nudge(-1)], ["Alt+ArrowRight", () => nudge(1)]]],
    ["1 … 9", "change its class, or choose the class to draw", () => {}],
    ["A Shift A", "annotate the selected detection, all shown", [["a", acceptSelected], ["A", acceptShown]]],
    ["Del", "delete", [["Delete", deleteSelected], ["Backspace", deleteSelected]]],
  ],
  "Drawing": [
    ["↑ ↓", "class to draw", [["ArrowUp", () => moveLane(-1)], ["ArrowDown", () => moveLane(1)]]],
    ["Enter", "start a segment at the playhead, and end it", drawHere],
    ["Esc", "give up, deselect", [["Escape", escape]]],
    ["Ctrl Z", "undo; with Shift: redo", () => {}],
    ["Ctrl S", "save the annotations", () => {}],
  ],
};
const MOUSE = [
  ["wheel", "zoom; with Shift: pan; over the names: scroll"],
  ["drag", "ends, whole segments (also to another class), or in an empty lane to draw one"],
  ["Alt drag", "without snapping to playhead, ends and boundaries"],
  ["click", "go to this moment; on a bar: select it"],
  ["double click", "zoom to a segment"],
  ["Shift drag", "pan; with two fingers: pan and zoom"],
];

const actions = new Map();
for (const rows of Object.values(KEYS)) {
  for (const [keys, , run] of rows) {
    for (const [key, action] of typeof run === "function" ? [[keys === "Space" ? " " : keys.length === 1 ? keys.toLowerCase() : keys, run]] : run) actions.set(key, action);
  }
}

function endHere(side) {
  const item = selection();
  if (item) alterSelected(fitted(side === "s" ? state.now : item.s, side === "e" ? state.now : item.e), `Corrected the ${side === "s" ? "start" : "end"} of`);
}

function nudge(by) {
  const item = selection();
  if (item) alterSelected(fitted(item.s + by * smallStep(), item.e + by * smallStep(), true), "Moved");
}

function pan(share) {
  const shift = share * (state.to - state.from);
  look(state.from + shift, state.to + shift);
}

function otherRecording(by) {
  const rec = recordings[recordings.indexOf(state.rec) + by];
  if (rec) show(rec);
}

document.addEventListener("keydown", (event) => {
  if (byId("shortcuts").open) return;
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey) {
    const command = { z: event.shiftKey ? redo : undo, y: redo, s: save }[key.toLowerCase()];
    if (!command || (target.matches('input:not([type="range"], [type="checkbox"])') && key.toLowerCase() !== "s")) return;
    event.preventDefault();
    command();
    return;
  }
  if (key === "Escape" && target !== canvas) canvas.focus();
  else if (target.matches("input, select") || (target.matches("button, label") && (key === " " || key === "Enter"))) return;
  const digit = !event.altKey && key >= "1" && key <= "9" && key.length === 1;
  const name = `${event.altKey ? "Alt+" : ""}${event.shiftKey && key.startsWith("Arrow") ? "Shift+" : ""}${key}`;
  const action = digit ? () => chooseLane(Number(key) - 1) : actions.get(name) ?? (event.altKey ? null : actions.get(key.toLowerCase()));
  if (!action) return;
  event.preventDefault();
  action();
});

function describeKeys() {
  const list = byId("shortcut-list");
  for (const [title, rows] of [...Object.entries(KEYS), ["Mouse", MOUSE]]) {
    const terms = element("dl");
    for (const [keys, text] of rows) {
      const term = element("dt");
      if (title === "Mouse") term.textContent = keys;
      else term.append(...keys.split(" ").map((k) => element("kbd", { textContent: k })));
      terms.append(term, element("dd", { textContent: text }));
    }
    list.append(element("div", {}, element("h3", { textContent: title }), terms));
  }
}

// --- saving ---

let target = null; // the file on disk that is being written, where the browser lets a page choose one

async function save() {
  const text = await annotationText();
  if (window.showSaveFilePicker) {
    try {
      target ??= await window.showSaveFilePicker({
        suggestedName: "annotations.json", types: [{ description: "Annotations", accept: { "application/json": [".json"] } }],
      });
      const file = await target.createWritable();
      await file.write(text);
      await file.close();
      saved();
      say(`Saved to ${target.name}`);
      return;
    } catch (error) {
      if (error.name === "AbortError") return;
      target = null; // a browser that may not write: the file is downloaded instead
    }
  }
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: url, download: "annotations.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  saved();
  say("Downloaded annotations.json");
}

window.addEventListener("beforeunload", (event) => { if (state.dirty) event.preventDefault(); });

// --- light and dark ---

const dark = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = null;

function applyTheme() {
  document.documentElement.dataset.theme = chosenTheme ?? (dark.matches ? "dark" : "light");
  readColours();
  touch();
}
function flipTheme() {
  chosenTheme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  applyTheme();
}
dark.addEventListener("change", applyTheme);

// --- start ---

function connect() {
  const clicks = {
    undo, redo, save, play: () => play(), theme: flipTheme, help: () => byId("shortcuts").showModal(), "accept-all": acceptShown,
    previous: () => step(-1), next: () => step(1), "zoom-in": () => zoom(1 / 1.5), "zoom-out": () => zoom(1.5), "zoom-fit": lookAtAll,
    accept: acceptSelected, delete: deleteSelected,
    "all-classes": () => {
      if (state.hiddenClasses.size) state.hiddenClasses.clear();
      else classes.forEach((_, c) => state.hiddenClasses.add(c));
      changed();
    },
  };
  for (const [id, run] of Object.entries(clicks)) byId(id).addEventListener("click", run);
  byId("score").addEventListener("input", (event) => {
    state.minScore = Number(event.target.value);
    changed();
  });
  byId("tiou").addEventListener("input", (event) => {
    state.tiou = Number(event.target.value);
    changed();
  });
  byId("by-error").addEventListener("change", (event) => {
    state.byError = event.target.checked;
    changed();
  });
  for (const box of document.querySelectorAll("#tracks-box label")) {
    box.firstChild.addEventListener("change", (event) => {
      state.tracks[box.dataset.track] = event.target.checked;
      changed();
    });
  }
  byId("speed").addEventListener("change", (event) => { video.playbackRate = Number(event.target.value); });
  byId("add-class").addEventListener("submit", (event) => {
    event.preventDefault();
    addClass(byId("new-class").value);
    byId("new-class").value = "";
  });
  byId("inspector").addEventListener("submit", (event) => event.preventDefault());
  byId("field-class").addEventListener("change", (event) => chooseLane(Number(event.target.value)));
  for (const side of ["start", "end"]) {
    byId(`field-${side}`).addEventListener("change", (event) => {
      const item = selection(), value = Number(event.target.value);
      if (!item || event.target.value === "") return fillInspector();
      alterSelected(side === "start" ? fitted(value, item.e) : fitted(item.s, value), `Corrected the ${side} of`);
    });
  }
  scroll.addEventListener("scroll", invalidate);
  byId("recording-search").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    [...byId("recordings").children].forEach((row, i) => { row.hidden = !recordings[i].id.toLowerCase().includes(wanted); });
  });
  new ResizeObserver(resize).observe(scroll);
  new ResizeObserver(invalidate).observe(overview);
}

/** Put the next recording into the list. */
function listRecording(rec) {
  const button = element(
    "button", { type: "button", title: rec.id }, element("span", { className: "name", textContent: rec.id }),
    element("span", { className: "facts" }),
  );
  button.dataset.number = byId("recordings").children.length;
  button.addEventListener("click", () => show(rec));
  byId("recordings").append(element("li", {}, button));
  byId("recordings-box").hidden = recordings.length < 2;
  byId("recording-search").hidden = recordings.length < 9;
}

async function start() {
  recordings.forEach(listRecording);
  STATUSES.forEach(({ name, colour, glyph, help }, k) => {
    byId("statuses").append(chip(name, colour, glyph, help, (event) => {
      flip(state.hiddenStatuses, k);
      event.currentTarget.setAttribute("aria-pressed", !state.hiddenStatuses.has(k));
      changed();
    }));
  });
  canvas.setAttribute("aria-label", "Timeline. N and P walk along the segments, arrow keys move the playhead, Enter draws, question mark lists all keys.");
  describeKeys();
  await load(recordings[0]);
  byId("score").max = Math.max(1, META.bestScore);
  state.minScore = META.threshold ?? (META.bestScore >= DEFAULT_SCORE ? DEFAULT_SCORE : 0);
  byId("score").value = state.minScore;
  byId("tiou").value = state.tiou;
  byId("by-error").checked = state.byError;
  applyTheme();
  connect();
  await show(recordings[0]);
  say(META.predicted ? "Drag a bar to correct it, an empty lane to draw; press ? for all keys" : "Drag in a lane to draw a segment; press ? for all keys");
  document.documentElement.dataset.ready = "true";
}

function broken(error) {
  byId("recording-name").textContent = "This page cannot be shown";
  byId("hint").textContent = String(error);
  throw error;
}

if (recordings.length) start().catch(broken); // else app.js starts, once it has one
