// Exits at one instruction set (included by simd/levels.h, so no guard). Each takes rows begin … end - 1.

namespace tzn {
namespace TZN_LEVEL {

template <typename F> constexpr int64_t padded_to(int64_t width) { return (width + LANES<F> - 1) / LANES<F> * LANES<F>; }

// Where a ramp begins and ends, of what it is a function of: between only does it cost logarithms.
struct Ramp {
  float begin, end;
};

// The x of which log(1 + exp(x)) is y.
inline float inverse_softplus(double y) {
  if (!(y > 0)) return -std::numeric_limits<float>::infinity();
  return static_cast<float>(y > 20 ? y : std::log(std::expm1(y)));
}

TZN_INLINE Ramp reach_ramp(const Dial& dial) {
  const auto logit = [](double p) { return static_cast<float>(std::log(p / (1 - p))); };
  return {logit(dial.low), logit(dial.high)};
}

TZN_INLINE Ramp spread_ramp(const Dial& dial, float moved) {
  const double middle = static_cast<double>(dial.settled) - moved, half = dial.ramp / 2.0;
  return {inverse_softplus(std::exp(middle - half) - dial.least), inverse_softplus(std::exp(middle + half) - dial.least)};
}

TZN_INLINE float within(float x) { return x < 0 ? 0 : x > 1 ? 1 : x; }  // NaN stays

// How much of the next block a step gets. NaN stays: it is on neither side of a ramp.
TZN_INLINE float activity(const float* raw, int64_t fields, const Dial& dial, float moved, Ramp reach, Ramp spread) {
  float most = 0;
  for (int64_t f = 0; f < fields; ++f) {
    const float near = raw[2 * fields + f], wide = raw[fields + f];
    if (near <= reach.begin || wide <= spread.begin) {
      if (near == near && wide == wide) continue;
    }
    float close = 1, unsure = 1;
    if (!(near >= reach.end)) close = within((1 / (1 + std::exp(-near)) - dial.low) / (dial.high - dial.low));
    if (!(wide >= spread.end)) {
      const float scale = (wide > 20 ? wide : std::log1p(std::exp(wide))) + dial.least;
      unsure = within(0.5f + (std::log(scale) - dial.settled + moved) / dial.ramp);
    }
    const float found = close * unsure;
    if (!(found <= most)) most = most == most ? found : most;
  }
  return most;
}

// LayerNorm of EXIT_ROWS rows of `stride` elements, zeros behind the first `width`, in place. Side by side, as a row's sums wait
// for each other.
template <typename F>
TZN_INLINE void normalize_together(F* x, int64_t stride, int64_t width, const F* scale, const F* shift, F eps) {
  F mean[EXIT_ROWS], factor[EXIT_ROWS];
  Vec<F> sums[EXIT_ROWS] = {};
  for (int64_t c = 0; c < stride; c += LANES<F>)
#pragma GCC unroll 4
    for (int a = 0; a < EXIT_ROWS; ++a) sums[a] += load(x + a * stride + c);
#pragma GCC unroll 4
  for (int a = 0; a < EXIT_ROWS; ++a) mean[a] = sum<F>(sums[a]) / static_cast<F>(width), sums[a] = Vec<F>{};
  const int64_t whole = width / LANES<F> * LANES<F>;
  for (int64_t c = 0; c < whole; c += LANES<F>)
#pragma GCC unroll 4
    for (int a = 0; a < EXIT_ROWS; ++a) {
      const Vec<F> d = load(x + a * stride + c) - mean[a];
      sums[a] += d * d;
    }
#pragma GCC unroll 4
  for (int a = 0; a < EXIT_ROWS; ++a) {
    F squares = sum<F>(sums[a]);
    for (int64_t c = whole; c < width; ++c) squares += (x[a * stride + c] - mean[a]) * (x[a * stride + c] - mean[a]);
    factor[a] = F(1) / std::sqrt(squares / static_cast<F>(width) + eps);
  }
  for (int64_t c = 0; c < stride; c += LANES<F>)  // scale and shift are as long, with zeros behind the width
#pragma GCC unroll 4
    for (int a = 0; a < EXIT_ROWS; ++a) {
      const Vec<F> y = (load(x + a * stride + c) - mean[a]) * factor[a];
      store(x + a * stride + c, y * load(scale + c) + load(shift + c));
    }
}

// `running`: how many rows go on to the next block.
template <typename Scalar> void exit_rows(const ExitTask<Scalar>& task, int64_t begin, int64_t end, int64_t& running) {
  using F = Accumulate<Scalar>;
  const int64_t width = task.width, columns = task.columns, fields = columns / 3, stride = padded_to<F>(width);
  const int64_t places = padded_to<F>(columns);
  // The weights by channel, so that a channel's products with all columns are one vector: no sums over lanes.
  std::vector<F> packed((width + 1) * places), read(EXIT_ROWS * places), rows(EXIT_ROWS * stride), norm(2 * stride);
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t d = 0; d < width; ++d) packed[d * places + c] = task.weight[c * width + d];
    packed[width * places + c] = task.bias[c];
  }
  std::copy(task.scale, task.scale + width, norm.data());
  std::copy(task.shift, task.shift + width, norm.data() + stride);
  const Ramp reach = reach_ramp(task.dial);
  Ramp spread = spread_ramp(task.dial, 0);
  float moved = 0;
  int64_t recording = -1, chosen[EXIT_ROWS];
  for (int64_t next = begin; next < end;) {
    int count = 0;
    for (; next < end && count < EXIT_ROWS; ++next) {
      if (!task.gate || task.gate[next] != 0)
        chosen[count++] = next;
      else if (task.next)
        task.next[next] = 0;
    }
    if (!count) break;
    F* x = rows.data();
    for (int a = 0; a < count; ++a) {
      widen(task.h + chosen[a] * width, x + a * stride, width);
      for (int64_t c = width; c < stride; ++c) x[a * stride + c] = 0;  // the norm of a row that is not finite left NaN there
    }
    normalize_together(x, stride, width, norm.data(), norm.data() + stride, task.eps);
    for (int64_t v = 0; v < places; v += LANES<F>) {
      Vec<F> sums[EXIT_ROWS];
      const F* w = packed.data() + v;
#pragma GCC unroll 4
      for (int a = 0; a < EXIT_ROWS; ++a) sums[a] = load(w + width * places);
      for (int64_t d = 0; d < width; ++d) {
        const Vec<F> weight = load(w + d * places);
#pragma GCC unroll 4
        for (int a = 0; a < EXIT_ROWS; ++a) sums[a] += weight * x[a * stride + d];
      }
#pragma GCC unroll 4
      for (int a = 0; a < EXIT_ROWS; ++a) store(read.data() + a * places + v, sums[a]);
    }
    for (int a = 0; a < count; ++a) {
      const int64_t row = chosen[a];
      float* raw = task.raw + row * columns;
      const float gate = task.gate ? task.gate[row] : static_cast<float>(task.mask[row]);
      for (int64_t c = 0; c < columns; ++c) {
        const float found = static_cast<float>(read[a * places + c]);
        raw[c] = task.gate ? raw[c] + found * gate : found;
      }
      if (!task.next) continue;
      if (task.moved && row / task.steps != recording) {
        recording = row / task.steps;
        moved = task.moved[recording];
        spread = spread_ramp(task.dial, moved);
      }
      const float goes_on =
          task.dial.full || gate == 0 ? gate : gate * activity(raw, fields, task.dial, moved, reach, spread);
      task.next[row] = goes_on;
      running += goes_on != 0;
    }
  }
}

}  // namespace TZN_LEVEL
}  // namespace tzn
