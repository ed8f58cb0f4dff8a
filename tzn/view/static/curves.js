// Sampled curves of any length: minima and maxima of ever longer blocks, so that drawing costs as many steps as pixels.

const MISSING = -32768; // NaN in quantised values
const BLOCK = 8;

class Curve {
  /** values: Int16Array; range: what -32767 and 32767 stand for; sample i lies at first + i * step seconds. */
  constructor(values, [low, high], first, step) {
    Object.assign(this, { values, low, high, first, step, levels: [] });
    let lows = values, highs = values;
    while (lows.length > 4 * BLOCK) {
      const count = Math.ceil(lows.length / BLOCK);
      const [nextLows, nextHighs] = [new Int16Array(count), new Int16Array(count)];
      for (let b = 0; b < count; b++) {
        let least = 32767, most = MISSING;
        for (let i = b * BLOCK, end = Math.min(i + BLOCK, lows.length); i < end; i++) {
          if (highs[i] === MISSING) continue;
          if (lows[i] < least) least = lows[i];
          if (highs[i] > most) most = highs[i];
        }
        nextLows[b] = least;
        nextHighs[b] = most;
      }
      this.levels.push({ lows: nextLows, highs: nextHighs });
      [lows, highs] = [nextLows, nextHighs];
    }
  }

  value(i) {
    const q = this.values[i];
    return q === MISSING ? NaN : this.low + ((q + 32767) / 65534) * (this.high - this.low);
  }

  at(seconds) {
    const i = Math.round((seconds - this.first) / this.step);
    return i >= 0 && i < this.values.length ? this.value(i) : NaN;
  }

  /** [least, most] of samples first to last (inclusive), from the coarsest blocks that are no wider than asked. */
  between(first, last) {
    let size = 1, level = -1;
    while (level + 1 < this.levels.length && size * BLOCK <= last - first + 1) {
      size *= BLOCK;
      level++;
    }
    const { lows, highs } = level < 0 ? { lows: this.values, highs: this.values } : this.levels[level];
    let least = Infinity, most = -Infinity;
    for (let b = Math.floor(first / size), end = Math.floor(last / size); b <= end; b++) {
      if (highs[b] === MISSING) continue;
      if (lows[b] < least) least = lows[b];
      if (highs[b] > most) most = highs[b];
    }
    const scale = (this.high - this.low) / 65534;
    return most < least ? null : [this.low + (least + 32767) * scale, this.low + (most + 32767) * scale];
  }

  /** Add the curve to the path of `context`: a line where samples are apart, an outline of extremes where they crowd. */
  trace(context, xOf, yOf, from, to) {
    const perPixel = 1 / (this.step * Math.abs(xOf(1) - xOf(0)));
    const first = Math.max(0, Math.floor((from - this.first) / this.step) - 1);
    const last = Math.min(this.values.length - 1, Math.ceil((to - this.first) / this.step) + 1);
    let down = false;
    const point = (x, y) => {
      if (down) context.lineTo(x, y);
      else context.moveTo(x, y);
      down = true;
    };
    if (perPixel <= 3) {
      for (let i = first; i <= last; i++) {
        const value = this.value(i);
        if (Number.isNaN(value)) down = false;
        else point(xOf(this.first + i * this.step), yOf(value));
      }
      return;
    }
    // Blocks start at multiples of a whole number of samples, so that panning does not make the outline shimmer.
    const size = Math.ceil(perPixel);
    for (let i = first - (first % size); i <= last; i += size) {
      const range = this.between(i, Math.min(i + size - 1, this.values.length - 1));
      if (!range) {
        down = false;
        continue;
      }
      const x = xOf(this.first + (i + size / 2) * this.step);
      point(x, yOf(range[0]));
      point(x, yOf(range[1]));
    }
  }
}
