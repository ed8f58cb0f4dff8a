// The page of `tzn app`: recordings are dropped, the model runs here, and what it finds goes to the timeline.

const { description: program, name: modelName } = META.app;
const { signal: rawSignal, config: settings } = program;
const channels = rawSignal ? rawSignal.channels.length : program.mean.length;
let session = null, working = false, began = false;

const bytesOfText = (text) => {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
};

/** A script of this folder, which leaves something in `window`: unlike fetch, that works from a disk too. */
const fromFolder = (file, variable) => new Promise((resolve, reject) => {
  const script = element("script", { src: file });
  script.addEventListener("load", () => {
    resolve(window[variable]);
    delete window[variable];
  });
  script.addEventListener("error", () => reject(new Error(`${file} is not beside this page`)));
  document.head.append(script);
});

async function openSession() {
  if (session) return;
  const runtime = await fromFolder("runtime.js", "TZN_RUNTIME");
  const url = URL.createObjectURL(new Blob([bytesOfText(runtime.module)], { type: "text/javascript" }));
  const ort = await import(url);
  URL.revokeObjectURL(url);
  // More threads need memory shared between them, which browsers give only to pages of servers that ask for it.
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = bytesOfText(runtime.wasm).buffer;
  const network = bytesOfText(await fromFolder("network.js", "TZN_NETWORK"));
  session = { ort, inference: await ort.InferenceSession.create(network, { executionProviders: ["wasm"] }) };
}

/** Length that ActionFormer's recordings are padded to (tzn/models/actionformer.py). */
function paddedLength({ strides, read, embedding, max_seq_len: usual, max_div_factor: factor }, steps) {
  const coarsest = strides.at(-1);
  let needed = Math.max(...strides.map((stride) => (Math.ceil(steps / stride) + read) * stride));
  needed = Math.max(needed, steps + embedding);
  return Math.min(steps <= usual ? usual : Math.ceil(steps / factor) * factor, Math.ceil(needed / coarsest) * coarsest);
}

/** One run of the program: its outputs by name. */
async function runProgram(features, steps, shift) {
  const { ort, inference } = session, width = features.length / steps, given = {};
  const length = program.padding ? paddedLength(program.padding, steps) : steps;
  const padded = length === steps ? features : new Float32Array(length * width);
  if (padded !== features) padded.set(features);
  given.features = new ort.Tensor("float32", padded, [1, length, width]);
  if (program.padding) given.mask = new ort.Tensor("bool", Uint8Array.from({ length }, (_, i) => Number(i < steps)), [1, length]);
  if (program.inputs.includes("depth_shift")) given.depth_shift = new ort.Tensor("float32", Float32Array.of(shift), [1, 1]);
  const found = await inference.run(given);
  return Object.fromEntries(Object.entries(found).map(([key, value]) => [key, value.data]));
}

// --- a recording from a file to the timeline ---

const pause = () => new Promise((resolve) => setTimeout(resolve)); // lets the page draw

async function readRecording(file) {
  const kind = /\.[^.]*$/.exec(file.name.toLowerCase())?.[0];
  if (kind === ".npy") return readNpy(await file.arrayBuffer(), channels);
  if ([".csv", ".tsv", ".txt"].includes(kind)) return readTable(await file.text(), channels);
  throw new Error(`${kind ?? "a file without a suffix"}: expected .csv, .tsv, .txt or .npy`);
}

async function localizeFile(file) {
  if (working) return;
  working = true;
  showProgress(`Reading ${file.name}`, null);
  try {
    const rate = Number(byId("rate").value);
    if (!(rate > 0 && Number.isFinite(rate))) throw new Error(`${byId("rate").value || "nothing"} ${rateName}: expected a number above 0`);
    await pause();
    const stored = await readRecording(file);
    const table = rawSignal ? resampled(stored, rate, rawSignal.rate) : stored;
    const { steps, features } = toFeatures(table, rawSignal);
    showProgress("Loading the model", null);
    await pause();
    await openSession();
    showProgress("Looking for actions", 0);
    await pause();
    const begin = performance.now();
    const result = await localize({ ...program, fps: rate }, features, steps, runProgram, (share) => showProgress("Looking for actions", share));
    const seconds = (performance.now() - begin) / 1000;
    await addRecording(file.name.replace(/\.[^.]*$/, ""), result, table, rate);
    showPanel(false);
    say(`${result.found.length} detections in ${seconds.toFixed(2)} s`);
  } catch (error) {
    showError(`${file.name}: ${error.message ?? error}`);
  } finally {
    working = false;
    byId("drop").classList.remove("working");
  }
}

async function addRecording(id, { found, duration, trace }, table, rate) {
  const rec = recordingOf({ id, subset: "training", fps: rawSignal ? rawSignal.rate : rate, duration, truth: [], found: found.length });
  rec.found = {
    segments: Float64Array.from(found.flatMap(({ s, e }) => [s, e])), scores: Float32Array.from(found, (d) => d.score),
    labels: Uint16Array.from(found, (d) => d.label), std: found.length && found[0].std ? Float32Array.from(found.flatMap((d) => d.std)) : null,
  };
  const quantised = (values, first, step) => {
    let low = Infinity, high = -Infinity;
    for (const x of values) [low, high] = [Math.min(low, x), Math.max(high, x)];
    if (!(high > low)) [low, high] = [low - 0.5, low + 0.5];
    return new Curve(Int16Array.from(values, (x) => Math.round((x - low) * (65534 / (high - low))) - 32767), [low, high], first, step);
  };
  rec.trace = { starts: trace.starts, ends: trace.ends };
  for (const key of ["depth", "start_distance", "end_distance", "start_scale", "end_scale"]) {
    rec.trace[key] = quantised(trace[key] ?? new Float32Array(1), trace.first, trace.step);
  }
  if (rawSignal) {
    const step = 1 / rawSignal.rate;
    rec.signal = rawSignal.channels.map((channel, c) => {
      const values = Float32Array.from({ length: table.rows }, (_, i) => table.values[i * table.columns + c]);
      const sorted = Float32Array.from(values).sort(), at = (q) => sorted[Math.round(q * (sorted.length - 1))];
      return { name: channel, curve: quantised(values, step / 2, step), shown: [at(0.0005), at(0.9995)] };
    });
  }
  recordings.push(rec);
  if (began) {
    listRecording(rec);
    await show(rec);
    return;
  }
  began = true;
  state.rec = rec;
  await start();
}

/** What `tzn predict` writes, of all recordings on the page. */
function predictionsText() {
  const lists = recordings.map(({ id, found: { segments, scores, labels, std } }) => {
    const rows = [...scores.keys()].map((i) => JSON.stringify({
      segment: [segments[2 * i], segments[2 * i + 1]], label: classes[labels[i]], score: scores[i],
      ...(std && { segment_std: [std[2 * i], std[2 * i + 1]].map((x) => (Number.isFinite(x) ? x : null)) }),
    }));
    return `${JSON.stringify(id)}: [${rows.length ? `\n  ${rows.join(",\n  ")}\n ` : ""}]`;
  });
  const threshold = program.score_threshold == null ? "" : `"score_threshold": ${program.score_threshold}, `;
  return `{"version": "tzn 1", ${threshold}"results": {\n ${lists.join(",\n ")}\n}}\n`;
}

function downloadPredictions() {
  const url = URL.createObjectURL(new Blob([predictionsText()], { type: "application/json" }));
  element("a", { href: url, download: "predictions.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  say("Downloaded predictions.json");
}

// --- the panel that takes recordings ---

const rateName = rawSignal ? "samples a second" : "frames a second";

function buildPanel() {
  const file = element("input", { type: "file", id: "file", accept: ".csv,.tsv,.txt,.npy", multiple: true });
  const rate = element("input", { type: "number", id: "rate", min: "0", step: "any", value: rawSignal?.rate ?? settings.data.fps ?? "" });
  const fixed = !rawSignal && settings.data.fps != null;
  rate.disabled = fixed; // features were made at one rate
  const maker = settings.front_end?.extractor;
  const what = rawSignal ? `columns: ${rawSignal.channels.join(", ")}` : `${channels} features a row${maker ? `, as tzn features makes them (${maker})` : ""}`;
  const card = element(
    "div", { className: "card" },
    element("h2", { textContent: "Drop a recording here" }),
    element("p", { textContent: `CSV, TSV, TXT or .npy with the ${what}. A first line of names is skipped.` }),
    element("label", { className: "rate" }, `It has `, rate, ` ${rateName}`),
    element("div", { className: "choices" }, element("label", { className: "button primary" }, "Choose a file", file), element("button", { type: "button", id: "close-drop", textContent: "Back", hidden: true })),
    element("div", { id: "progress", hidden: true }, element("span", { id: "progress-text" }), element("progress", { id: "progress-bar", max: 1 })),
    element("p", { id: "drop-error", hidden: true }),
    element("p", { className: "small", textContent: `Model: ${modelName}, ${classes.length} classes: ${classes.slice(0, 12).join(", ")}${classes.length > 12 ? ", …" : ""}. It runs in this page; nothing is uploaded.` }),
  );
  card.querySelector("#drop-error").setAttribute("role", "alert");
  const panel = element("div", { id: "drop" }, card);
  document.body.append(panel);
  file.addEventListener("change", () => {
    take(file.files);
    file.value = "";
  });
  byId("close-drop").addEventListener("click", () => showPanel(false));
  // Keys are the panel's while it is there; the timeline behind it may have nothing to show yet.
  document.addEventListener("keydown", (event) => {
    if (panel.hidden) return;
    event.stopImmediatePropagation();
    if (event.key === "Escape" && recordings.length && !working) showPanel(false);
  }, true);
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      showPanel(true);
      panel.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) panel.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    panel.classList.remove("over");
    take(event.dataTransfer.files);
  });
  const open = element("button", { type: "button", id: "open", textContent: "Open a recording" });
  open.addEventListener("click", openPanel);
  const download = element("button", { type: "button", id: "download", title: "What the model found, as JSON", textContent: "Download detections" });
  download.addEventListener("click", downloadPredictions);
  document.querySelector(".tools").prepend(open, download);
  byId("save").textContent = "Save annotations";
  showPanel(true);
}

function showPanel(on) {
  byId("drop").hidden = !on;
  for (const part of document.querySelectorAll("body > header, body > aside, body > main")) part.inert = on;
}

function openPanel() {
  showPanel(true);
  byId("close-drop").hidden = !recordings.length;
  for (const id of ["drop-error", "progress"]) byId(id).hidden = true;
}

async function take(files) {
  for (const file of files) await localizeFile(file);
}

function showProgress(text, share) {
  showPanel(true);
  byId("drop").classList.add("working");
  byId("drop-error").hidden = true;
  byId("progress").hidden = false;
  byId("progress-text").textContent = text;
  if (share === null) byId("progress-bar").removeAttribute("value");
  else byId("progress-bar").value = share;
}

function showError(text) {
  byId("progress").hidden = true;
  byId("drop-error").hidden = false;
  byId("drop-error").textContent = text;
  byId("close-drop").hidden = !recordings.length;
}

byId("recording-name").textContent = META.title;
applyTheme();
buildPanel();
document.documentElement.dataset.waiting = "true";
