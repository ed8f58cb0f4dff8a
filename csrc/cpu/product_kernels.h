// Products at one instruction set (included by simd/levels.h, so no guard).

namespace tzn {
namespace TZN_LEVEL {

// Sums of a tile stay in registers: 6 rows x 4 vectors of the 32 that AVX-512 has, 4 x 2 of 16.
constexpr int TILE_ROWS = TZN_VECTOR_BYTES == 64 ? 6 : 4;
constexpr int TILE_VECTORS = TZN_VECTOR_BYTES == 64 ? 4 : 2;

// Output channels in panels of up to TILE_VECTORS vectors, as even as can be.
struct Panels {
  explicit Panels(int64_t out)
      : vectors((out + LANES<float> - 1) / LANES<float>), count((vectors + TILE_VECTORS - 1) / TILE_VECTORS) {}
  int64_t vectors, count;
  int64_t begin(int64_t panel) const { return vectors * panel / count; }
  int64_t width() const { return vectors * LANES<float>; }
};

// Panel by panel, input channel by input channel: the panel's weights side by side, zeros beyond `out`.
inline void pack(Layer& layer) {
  const Panels panels(layer.out);
  layer.packed.assign(panels.width() * layer.depth, 0.0f);
  float* to = layer.packed.data();
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t first = panels.begin(p) * LANES<float>, lanes = panels.begin(p + 1) * LANES<float> - first;
    for (int64_t k = 0; k < layer.depth; ++k, to += lanes)
      for (int64_t n = 0; n < std::min(lanes, layer.out - first); ++n) to[n] = layer.weight[(first + n) * layer.depth + k];
  }
}

// A panel's products with TILE_ROWS inputs, each `taps` rows of `in` channels: sources[tap * TILE_ROWS + row].
template <int taps, int V>
TZN_INLINE void multiply_panel(const float* const* sources, int64_t in, const float* panel, float* to, int64_t stride) {
  Vec<float> sums[TILE_ROWS][V] = {};
  for (int tap = 0; tap < taps; ++tap) {
    const float* row[TILE_ROWS];
    for (int r = 0; r < TILE_ROWS; ++r) row[r] = sources[tap * TILE_ROWS + r];
    for (int64_t k = 0; k < in; ++k, panel += V * LANES<float>) {
      Vec<float> weights[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) weights[v] = load(panel + v * LANES<float>);
#pragma GCC unroll 8
      for (int r = 0; r < TILE_ROWS; ++r) {
        const Vec<float> value = splat(row[r][k]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sums[r][v] += value * weights[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < TILE_ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(to + r * stride + v * LANES<float>, sums[r][v]);
}

// A layer's outputs of TILE_ROWS inputs with its bias, `Panels(out).width()` apart; 0 beyond `out`.
template <int taps> TZN_INLINE void multiply(const float* const* sources, const Layer& layer, float* tile) {
  const Panels panels(layer.out);
  const int64_t in = layer.depth / taps, stride = panels.width();
  const float* panel = layer.packed.data();
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t first = panels.begin(p), vectors = panels.begin(p + 1) - first;
    float* to = tile + first * LANES<float>;
    switch (vectors) {
      case 1: multiply_panel<taps, 1>(sources, in, panel, to, stride); break;
      case 2: multiply_panel<taps, 2>(sources, in, panel, to, stride); break;
#if TZN_VECTOR_BYTES == 64
      case 3: multiply_panel<taps, 3>(sources, in, panel, to, stride); break;
      case 4: multiply_panel<taps, 4>(sources, in, panel, to, stride); break;
#endif
      default: break;
    }
    panel += vectors * LANES<float> * layer.depth;
  }
  if (layer.bias)
    for (int r = 0; r < TILE_ROWS; ++r)
      for (int64_t c = 0; c < layer.out; ++c) tile[r * stride + c] += layer.bias[c];
}

// LayerNorm and ReLU of a row whose end is padded with zeros.
TZN_INLINE void norm_relu(float* row, int64_t width, int64_t vectors, const Conv3Task& task) {
  constexpr int L = LANES<float>;
  Vec<float> total{}, squares{};
  for (int64_t v = 0; v < vectors; ++v) total += load(row + v * L);
  const float mean = sum<float>(total) / static_cast<float>(width);
  const int64_t whole = width / L;
  for (int64_t v = 0; v < whole; ++v) {
    const Vec<float> d = load(row + v * L) - mean;
    squares += d * d;
  }
  float rest = 0;
  for (int64_t c = whole * L; c < width; ++c) rest += (row[c] - mean) * (row[c] - mean);
  const float factor = 1.0f / std::sqrt((sum<float>(squares) + rest) / static_cast<float>(width) + task.eps);
  for (int64_t c = 0; c < width; ++c) {
    const float value = (row[c] - mean) * factor * task.scale[c] + task.shift[c];
    row[c] = value < 0 ? 0.0f : value;  // NaN stays NaN
  }
}

inline void conv3(const Conv3Task& task, const Layer& layer, int64_t begin, int64_t end) {
  const Panels panels(layer.out);
  const int64_t stride = panels.width();
  std::vector<float> tile(TILE_ROWS * stride);
  const float* sources[3 * TILE_ROWS];
  int64_t chosen[TILE_ROWS];
  for (int64_t n = begin; n < end;) {
    int rows = 0;
    for (; n < end && rows < TILE_ROWS; ++n) {
      if (task.mask && !task.mask[n]) {
        std::fill(task.to + n * layer.out, task.to + (n + 1) * layer.out, 0.0f);
        continue;
      }
      const int64_t t = n % task.steps;
      const float* x = task.x + n * task.in;
      sources[rows] = t > 0 ? x - task.in : task.zeros;
      sources[TILE_ROWS + rows] = x;
      sources[2 * TILE_ROWS + rows] = t + 1 < task.steps ? x + task.in : task.zeros;
      chosen[rows++] = n;
    }
    if (rows == 0) break;
    for (int r = rows; r < TILE_ROWS; ++r)
      for (int tap = 0; tap < 3; ++tap) sources[tap * TILE_ROWS + r] = task.zeros;
    multiply<3>(sources, layer, tile.data());
    for (int r = 0; r < rows; ++r) {
      float* row = tile.data() + r * stride;
      if (task.scale) norm_relu(row, layer.out, panels.vectors, task);
      std::memcpy(task.to + chosen[r] * layer.out, row, layer.out * sizeof(float));
    }
  }
}

// x Phi(x) = max(x, 0) - |x| erfc(|x| / sqrt 2) / 2. erfc(z) exp(z^2) is t times a polynomial in t = 1 / (1 + 0.4 z), fitted
// here by weighted least squares: 8e-10 off.
TZN_INLINE Vec<float> gelu(Vec<float> x) {
  const Vec<float> zero{}, most = splat(30.0f), positive = x < zero ? -x : x;  // nothing is left of the second term at 30
  const Vec<float> size = positive < most ? positive : most, z = size * 0.70710678118654752f;
  const Vec<float> t = 1.0f / (z * 0.4f + 1.0f);
  Vec<float> p = t * 0.07876399772f - 0.4151377738f;
  p = p * t + 0.7237802258f;
  p = p * t - 0.4142244254f;
  p = p * t + 0.4321819315f;
  p = p * t + 0.1321392941f;
  p = p * t + 0.2375990324f;
  p = p * t + 0.2248977185f;
  const Vec<float> y = (x < zero ? zero : x) - size * 0.5f * (p * t * exp_negative(-(z * z)));
  return x != x ? x : y;
}

inline void linear(const LinearTask& task, const Layer& first, const Layer* second, int64_t begin, int64_t end) {
  const Panels inner(first.out), outer(second ? second->out : 0);
  const Layer& last = second ? *second : first;
  std::vector<float> tile(TILE_ROWS * inner.width()), next(TILE_ROWS * outer.width());
  const float* sources[TILE_ROWS];
  for (int64_t n = begin; n < end; n += TILE_ROWS) {
    const int rows = static_cast<int>(std::min<int64_t>(TILE_ROWS, end - n));
    for (int r = 0; r < TILE_ROWS; ++r) sources[r] = task.x + (n + std::min(r, rows - 1)) * first.depth;
    multiply<1>(sources, first, tile.data());
    const float* from = tile.data();
    int64_t stride = inner.width();
    if (second) {
      for (int64_t c = 0; c < TILE_ROWS * stride; c += LANES<float>) store(tile.data() + c, gelu(load(tile.data() + c)));
      for (int r = 0; r < TILE_ROWS; ++r) sources[r] = tile.data() + r * stride;
      multiply<1>(sources, *second, next.data());
      from = next.data(), stride = outer.width();
    }
    for (int r = 0; r < rows; ++r) std::memcpy(task.to + (n + r) * last.out, from + r * stride, last.out * sizeof(float));
  }
}

}  // namespace TZN_LEVEL
}  // namespace tzn
