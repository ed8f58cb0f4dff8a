// The row kernels at one instruction set (included by simd_levels.h, so no guard). Each takes rows begin … end - 1.

namespace tzn {
namespace TZN_LEVEL {

// A row in the type that is computed in, padded with zeros to whole vectors.
template <typename F> struct RowBuffer {
  explicit RowBuffer(int64_t width) : width(width), padded((width + LANES<F> - 1) / LANES<F> * LANES<F>), data(padded) {}
  int64_t width, padded;
  std::vector<F> data;
};

template <typename Scalar, typename F> TZN_INLINE void read_row(const Scalar* from, RowBuffer<F>& to) {
  widen(from, to.data.data(), to.width);
}

template <typename F> TZN_INLINE void add_scaled(RowBuffer<F>& to, F factor, const RowBuffer<F>& x) {
  for (int64_t c = 0; c < to.padded; c += LANES<F>)
    store(to.data.data() + c, load(to.data.data() + c) + factor * load(x.data.data() + c));
}

// Mean and 1 / standard deviation; the variance from differences to the mean, as sums of squares would cancel.
template <typename F> TZN_INLINE std::pair<F, F> moments(const RowBuffer<F>& row, F eps) {
  const F* x = row.data.data();
  Vec<F> total{};
  for (int64_t c = 0; c < row.padded; c += LANES<F>) total += load(x + c);
  const F mean = sum<F>(total) / static_cast<F>(row.width);
  Vec<F> squares{};
  int64_t c = 0;
  for (; c + LANES<F> <= row.width; c += LANES<F>) {
    const Vec<F> d = load(x + c) - mean;
    squares += d * d;
  }
  F rest = 0;
  for (; c < row.width; ++c) rest += (x[c] - mean) * (x[c] - mean);
  return {mean, F(1) / std::sqrt((sum<F>(squares) + rest) / static_cast<F>(row.width) + eps)};
}

template <typename Scalar> void normalize_rows(const NormTask<Scalar>& task, int64_t begin, int64_t end) {
  using F = Accumulate<Scalar>;
  RowBuffer<F> row(task.width), branch(task.width);
  for (int64_t s = begin; s < end; ++s) {
    const int64_t source = task.index ? task.index[s] : s;
    read_row(task.x + source * task.width, row);
    if (task.branch) {
      read_row(task.branch + s * task.width, branch);
      add_scaled(row, task.gate ? task.gate[source] : F(1), branch);
      narrow(row.data.data(), task.y + s * task.width, task.width);
      if (sizeof(Scalar) < sizeof(F)) read_row(task.y + s * task.width, row);  // what the gradient will see
    }
    const auto [mean, scale] = moments(row, task.eps);
    task.stats[2 * s] = mean, task.stats[2 * s + 1] = scale;
    F* x = row.data.data();
    for (int64_t c = 0; c < task.width; ++c) x[c] = (x[c] - mean) * scale * task.weight[c] + task.bias[c];
    narrow(x, task.out + s * task.width, task.width);
  }
}

template <typename Scalar> void normalize_backward(const NormBackwardTask<Scalar>& task, int64_t first, int64_t last) {
  using F = Accumulate<Scalar>;
  RowBuffer<F> row(task.width), grad(task.width), into(task.width);
  for (int64_t chunk = first; chunk < last; ++chunk) {
    F *dweight = task.parts + 2 * chunk * task.width, *dbias = dweight + task.width;
    std::fill(dweight, dweight + 2 * task.width, F(0));
    for (int64_t s = chunk * ROW_CHUNK; s < std::min((chunk + 1) * ROW_CHUNK, task.rows); ++s) {
      const int64_t at = task.index ? task.index[s] : s;
      read_row(task.x + at * task.width, row);
      read_row(task.grad + s * task.width, grad);
      read_row(task.dx + at * task.width, into);
      const F mean = task.stats[2 * s], scale = task.stats[2 * s + 1];
      F *x = row.data.data(), *g = grad.data.data(), *d = into.data.data();
      for (int64_t c = 0; c < task.width; ++c) {
        x[c] = (x[c] - mean) * scale;  // normalised
        dweight[c] += g[c] * x[c];
        dbias[c] += g[c];
        g[c] *= task.weight[c];
      }
      for (int64_t c = task.width; c < row.padded; ++c) x[c] = 0;
      Vec<F> plain{}, along{};
      for (int64_t c = 0; c < row.padded; c += LANES<F>) {
        plain += load(g + c);
        along += load(g + c) * load(x + c);
      }
      const F average = sum<F>(plain) / static_cast<F>(task.width), slope = sum<F>(along) / static_cast<F>(task.width);
      for (int64_t c = 0; c < task.width; ++c) d[c] += scale * (g[c] - average - x[c] * slope);
      narrow(d, task.dx + at * task.width, task.width);
    }
  }
}

template <typename Scalar> void scatter_rows(const ScatterTask<Scalar>& task, int64_t begin, int64_t end) {
  using F = Accumulate<Scalar>;
  RowBuffer<F> row(task.width), branch(task.width);
  int64_t a = task.index ? std::lower_bound(task.index, task.index + task.chosen, begin) - task.index : begin;
  for (int64_t r = begin; r < end; ++r) {
    if (a < task.chosen && (!task.index || task.index[a] == r)) {
      read_row(task.y + a * task.width, row);
      read_row(task.branch + a * task.width, branch);
      add_scaled(row, task.gate ? task.gate[r] : F(1), branch);
      narrow(row.data.data(), task.out + r * task.width, task.width);
      ++a;
    } else {
      std::memcpy(static_cast<void*>(task.out + r * task.width), task.x + r * task.width, task.width * sizeof(Scalar));
    }
  }
}

template <typename Scalar> void gate_backward(const GateBackwardTask<Scalar>& task, int64_t begin, int64_t end) {
  using F = Accumulate<Scalar>;
  RowBuffer<F> grad(task.width), branch(task.width);
  for (int64_t a = begin; a < end; ++a) {
    read_row(task.grad + (task.index ? task.index[a] : a) * task.width, grad);
    F* g = grad.data.data();
    read_row(task.branch + a * task.width, branch);
    Vec<F> total{};
    for (int64_t c = 0; c < grad.padded; c += LANES<F>) total += load(g + c) * load(branch.data.data() + c);
    task.dgate[a] = sum<F>(total);
    const F gate = task.gate[task.gate_index ? task.gate_index[a] : a];
    for (int64_t c = 0; c < task.width; ++c) g[c] *= gate;
    narrow(g, task.dbranch + a * task.width, task.width);
  }
}

}  // namespace TZN_LEVEL
}  // namespace tzn
