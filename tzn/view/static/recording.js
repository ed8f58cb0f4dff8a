// Recordings from files: CSV and .npy to samples, samples to the rate and the feature steps that a model reads, as
// tzn/data/signal.py does it.

/** Rows of numbers: {rows, columns, values: Float32Array}. Throws an Error with one clear line. */
function readTable(text, columns) {
  const lines = text.replace(/^\uFEFF/, "").split(/\r\n|\r|\n/);
  const values = [];
  let rows = 0, begun = false;
  lines.forEach((line, i) => {
    const fields = line.replace(/[,;\t]/g, " ").split(" ").filter(Boolean);
    if (!fields.length) return;
    const numbers = fields.map(numberOf);
    if (!begun && numbers.every(Number.isNaN) && !fields.some((field) => /^[+-]?nan$/i.test(field))) {
      begun = true; // names of the columns
      return;
    }
    begun = true;
    if (fields.length !== columns) throw new Error(`line ${i + 1} has ${fields.length} columns, expected ${columns}`);
    const bad = numbers.findIndex((x) => !Number.isFinite(Math.fround(x)));
    if (bad >= 0) throw new Error(`line ${i + 1} holds something that is not a finite number: ${fields[bad]}`);
    values.push(...numbers);
    rows++;
  });
  if (!rows) throw new Error("holds no samples");
  return { rows, columns, values: Float32Array.from(values) };
}

const numberOf = (field) => (/^[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf(inity)?)$/i.test(field)
  ? Number(/inf/i.test(field) ? (field.startsWith("-") ? -Infinity : Infinity) : field) : NaN);

const NPY = { "<f4": Float32Array, "<f8": Float64Array, "<i2": Int16Array, "<i4": Int32Array, "|i1": Int8Array, "|u1": Uint8Array, "<u2": Uint16Array };

/** A NumPy file of shape [rows, columns]. */
function readNpy(buffer, columns) {
  const bytes = new Uint8Array(buffer);
  if (bytes[0] !== 0x93 || String.fromCharCode(...bytes.subarray(1, 6)) !== "NUMPY") throw new Error("is no .npy file");
  const view = new DataView(buffer), long = bytes[6] > 1;
  const begin = long ? 12 : 10, size = long ? view.getUint32(8, true) : view.getUint16(8, true);
  const header = new TextDecoder("latin1").decode(bytes.subarray(begin, begin + size));
  const [, kind] = /'descr':\s*'([^']+)'/.exec(header) ?? [], [, shape] = /'shape':\s*\(([^)]*)\)/.exec(header) ?? [];
  const sizes = (shape ?? "").split(",").map((x) => x.trim()).filter(Boolean).map(Number);
  if (sizes.length !== 2 || sizes[1] !== columns) throw new Error(`an array of shape (${sizes.join(", ")}), expected (rows, ${columns})`);
  if (!NPY[kind] || /'fortran_order':\s*True/.test(header)) throw new Error(`an array of ${kind}${NPY[kind] ? " in Fortran order" : ""}, which this page does not read: save it as CSV`);
  if (!sizes[0]) throw new Error("holds no samples");
  const values = Float32Array.from(new NPY[kind](buffer.slice(begin + size), 0, sizes[0] * columns));
  const bad = values.findIndex((x) => !Number.isFinite(x));
  if (bad >= 0) throw new Error(`row ${Math.floor(bad / columns)} holds a value that is not finite`);
  return { rows: sizes[0], columns, values };
}

// --- another rate, by SciPy's polyphase filter with the ends continued by their values ---

const LARGEST_TERM = 100000, LARGEST_RATIO = 1000;

/** The nearest fraction of a denominator up to `most`, by continued fractions (as Python's Fraction.limit_denominator). */
function fractionNear(numerator, denominator, most) {
  let [p0, q0, p1, q1, n, d] = [0n, 1n, 1n, 0n, numerator, denominator];
  const bound = BigInt(most);
  if (d <= bound) return [n, d];
  for (;;) {
    const a = n / d, q2 = q0 + a * q1;
    if (q2 > bound) break;
    [p0, q0, p1, q1] = [p1, q1, p0 + a * p1, q2];
    [n, d] = [d, n - a * d];
  }
  const k = (bound - q0) / q1, first = [p0 + k * p1, q0 + k * q1], second = [p1, q1];
  const error = ([p, q]) => { const x = p * denominator - numerator * q; return [x < 0n ? -x : x, q]; };
  const [[a, qa], [b, qb]] = [error(second), error(first)];
  return a * qb <= b * qa ? second : first;
}

const gcd = (a, b) => { while (b) [a, b] = [b, a % b]; return a; };

/** A decimal number as an exact fraction. */
function exact(x) {
  let [digits, exponent = "0"] = String(x).toLowerCase().split("e");
  const [whole, rest = ""] = digits.split(".");
  let n = BigInt(whole + rest), d = 1n;
  const shift = Number(exponent) - rest.length;
  if (shift >= 0) n *= 10n ** BigInt(shift);
  else d = 10n ** BigInt(-shift);
  const common = gcd(n, d);
  return [n / common, d / common];
}

function bessel(x) {
  let sum = 1, term = 1;
  for (let k = 1; term > 1e-17 * sum; k++) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

/** {rows, columns, values} at `wanted` instead of `rate` samples a second. */
function resampled({ rows, columns, values }, rate, wanted) {
  if (rate === wanted) return { rows, columns, values };
  const ratio = wanted / rate;
  if (!(ratio >= 1 / LARGEST_RATIO && ratio <= LARGEST_RATIO)) throw new Error(`${rate} samples a second cannot become ${wanted}: expected rates within a factor of 1,000`);
  const [wn, wd] = exact(wanted), [rn, rd] = exact(rate), common = gcd(wn * rd, wd * rn);
  const [up, down] = fractionNear((wn * rd) / common, (wd * rn) / common, LARGEST_TERM).map(Number);
  const most = Math.max(up, down), half = 10 * most;
  const filter = new Float64Array(2 * half + 1);
  let sum = 0;
  for (let i = 0; i <= 2 * half; i++) {
    const t = i - half, angle = (Math.PI * t) / most;
    const window = bessel(5 * Math.sqrt(Math.max(0, 1 - (t / half) ** 2))) / bessel(5);
    sum += filter[i] = ((t === 0 ? 1 : Math.sin(angle) / angle) / most) * window;
  }
  for (let i = 0; i <= 2 * half; i++) filter[i] *= up / sum;
  const length = Math.ceil((rows * up) / down), out = new Float32Array(length * columns);
  for (let m = 0; m < length; m++) {
    const centre = m * down;
    for (let c = 0; c < columns; c++) {
      let value = 0;
      for (let k = Math.ceil((centre - half) / up); k * up <= centre + half; k++) {
        const row = Math.min(rows - 1, Math.max(0, k));
        value += values[row * columns + c] * filter[half + centre - k * up];
      }
      out[m * columns + c] = value;
    }
  }
  return { rows: length, columns, values: out };
}

/** Feature steps of a table: {steps, features}; `signal`: it holds raw samples, which are cut into steps. */
function toFeatures(table, signal) {
  if (!signal) return { steps: table.rows, features: table.values };
  const size = signal.samples_per_step, steps = Math.floor(table.rows / size);
  if (!steps) throw new Error(`${table.rows} samples are less than one step of ${size}`);
  return { steps, features: table.values.subarray(0, steps * size * table.columns) };
}
