// What surrounds the matrix products of a variable-depth block; one pass over the rows each, and no dense temporaries.
#include "variable_depth_block.h"

#define TZN_KERNELS "variable_depth_block_kernels.h"
#include "simd/levels.h"

namespace tzn {
namespace {

void check_stats(const Tensor& x, const Tensor& like, int64_t rows) {
  check(
      x.dim() == 2 && x.size(0) == rows && x.size(1) == 2 && x.scalar_type() == accumulate_of(like) && x.is_contiguous(),
      "stats", "contiguous [S, 2] in the dtype of accumulation");
}

const int64_t* checked_index(const std::optional<Tensor>& index, int64_t rows, const char* name) {
  if (!index) return nullptr;
  check(
      index->dim() == 1 && index->scalar_type() == ScalarType::Long && index->is_contiguous(), name, "contiguous int64 [S]");
  const auto* at = static_cast<const int64_t*>(index->data_ptr());
  for (int64_t i = 0; i < index->size(0); ++i)
    check(at[i] >= 0 && at[i] < rows && (i == 0 || at[i] > at[i - 1]), name, "ascending rows that exist");
  return at;
}

template <typename Scalar> void run_normalize(const NormTask<Scalar>& task, int64_t begin, int64_t end) {
  TZN_DISPATCH(normalize_rows<Scalar>(task, begin, end))
}
template <typename Scalar> void run_normalize_backward(const NormBackwardTask<Scalar>& task, int64_t begin, int64_t end) {
  TZN_DISPATCH(normalize_backward<Scalar>(task, begin, end))
}
template <typename Scalar> void run_scatter(const ScatterTask<Scalar>& task, int64_t begin, int64_t end) {
  TZN_DISPATCH(scatter_rows<Scalar>(task, begin, end))
}
template <typename Scalar> void run_gate_backward(const GateBackwardTask<Scalar>& task, int64_t begin, int64_t end) {
  TZN_DISPATCH(gate_backward<Scalar>(task, begin, end))
}

// Of `capacity` rows the first are written, one for each index.
struct Normed {
  Tensor y, out, stats;
};

Normed normalize(
    const Tensor& x, const std::optional<Tensor>& index, const std::optional<Tensor>& branch,
    const std::optional<Tensor>& gate, const Tensor& weight, const Tensor& bias, double eps, int64_t capacity) {
  check(x.dim() == 2, "x", "[N, D]");
  check_rows(x, x, -1, "x");
  const int64_t rows = index ? index->size(0) : x.size(0), width = x.size(1);
  const int64_t* at = checked_index(index, x.size(0), "index");
  if (branch) check_rows(*branch, x, rows, "branch");
  if (gate) check_vector(*gate, x, x.size(0), "gate");
  check_vector(weight, x, width, "weight"), check_vector(bias, x, width, "bias");
  check(capacity >= rows, "capacity", "at least as many rows as are chosen");
  Normed found{
      torch::stable::new_empty(x, {branch ? capacity : 0, width}), torch::stable::new_empty(x, {capacity, width}),
      torch::stable::new_empty(x, {capacity, 2}, accumulate_of(x))};
  of_dtype(x, "x", [&](auto tag) {
    using Scalar = decltype(tag);
    using F = Accumulate<Scalar>;
    const NormTask<Scalar> task{
        pointer<const Scalar>(x), pointer_or_null<Scalar>(branch), at, pointer_or_null<F>(gate),
        pointer<const F>(weight), pointer<const F>(bias), static_cast<F>(eps), width, pointer<Scalar>(found.y),
        pointer<Scalar>(found.out), pointer<F>(found.stats)};
    over_rows(rows, [&](int64_t begin, int64_t end) { run_normalize<Scalar>(task, begin, end); });
  });
  return found;
}

std::tuple<Tensor, Tensor> gather_layer_norm(
    Tensor x, std::optional<Tensor> index, Tensor weight, Tensor bias, double eps, int64_t capacity) {
  const Normed found = normalize(x, index, std::nullopt, std::nullopt, weight, bias, eps, capacity);
  return {found.out, found.stats};
}

std::tuple<Tensor, Tensor, Tensor> gated_add_layer_norm(
    Tensor x, std::optional<Tensor> index, Tensor branch, std::optional<Tensor> gate, Tensor weight, Tensor bias, double eps,
    int64_t capacity) {
  const Normed found = normalize(x, index, branch, gate, weight, bias, eps, capacity);
  return {found.y, found.out, found.stats};
}

std::tuple<Tensor, Tensor> layer_norm_backward(
    Tensor grad, Tensor x, std::optional<Tensor> index, Tensor weight, Tensor stats, Tensor dx) {
  check(x.dim() == 2, "x", "[N, D]");
  check_rows(x, x, -1, "x"), check_rows(dx, x, x.size(0), "dx");
  const int64_t rows = index ? index->size(0) : x.size(0), width = x.size(1), chunks = (rows + ROW_CHUNK - 1) / ROW_CHUNK;
  const int64_t* at = checked_index(index, x.size(0), "index");
  check_rows(grad, x, rows, "grad"), check_vector(weight, x, width, "weight"), check_stats(stats, x, rows);
  Tensor dweight = torch::stable::new_empty(weight, {width}), dbias = torch::stable::new_empty(weight, {width});
  of_dtype(x, "x", [&](auto tag) {
    using Scalar = decltype(tag);
    using F = Accumulate<Scalar>;
    const std::unique_ptr<F[]> parts(new F[std::max<int64_t>(2 * chunks * width, 1)]);  // written before it is read
    const NormBackwardTask<Scalar> task{
        pointer<const Scalar>(grad), pointer<const Scalar>(x), at, pointer<const F>(weight), pointer<const F>(stats),
        rows, width, pointer<Scalar>(dx), parts.get()};
    torch::stable::parallel_for(
        0, chunks, 1, [&](int64_t begin, int64_t end) { run_normalize_backward<Scalar>(task, begin, end); });
    F *to_weight = pointer<F>(dweight), *to_bias = pointer<F>(dbias);
    for (int64_t c = 0; c < width; ++c) {
      double of_weight = 0, of_bias = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        of_weight += static_cast<double>(parts[2 * chunk * width + c]);
        of_bias += static_cast<double>(parts[(2 * chunk + 1) * width + c]);
      }
      to_weight[c] = static_cast<F>(of_weight), to_bias[c] = static_cast<F>(of_bias);
    }
  });
  return {dweight, dbias};
}

Tensor gated_scatter(Tensor x, std::optional<Tensor> index, Tensor y, Tensor branch, std::optional<Tensor> gate) {
  check(x.dim() == 2, "x", "[N, D]");
  check_rows(x, x, -1, "x");
  const int64_t chosen = index ? index->size(0) : x.size(0);
  const int64_t* at = checked_index(index, x.size(0), "index");
  check_rows(y, x, chosen, "y"), check_rows(branch, x, chosen, "branch");
  if (gate) check_vector(*gate, x, x.size(0), "gate");
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  of_dtype(x, "x", [&](auto tag) {
    using Scalar = decltype(tag);
    const ScatterTask<Scalar> task{
        pointer<const Scalar>(x), pointer<const Scalar>(y), pointer<const Scalar>(branch), at, chosen,
        pointer_or_null<Accumulate<Scalar>>(gate), x.size(1), pointer<Scalar>(out)};
    over_rows(x.size(0), [&](int64_t begin, int64_t end) { run_scatter<Scalar>(task, begin, end); });
  });
  return out;
}

// `grad` has a row for every row of the residual stream if `gather`, else one for each row of `branch`.
std::tuple<Tensor, Tensor> gate_backward_rows(
    Tensor grad, std::optional<Tensor> index, Tensor branch, Tensor gate, bool gather) {
  check(grad.dim() == 2, "grad", "[N, D] or [A, D]");
  check_vector(gate, grad, gate.numel(), "gate");
  const int64_t* at = checked_index(index, gate.numel(), "index");
  const int64_t chosen = index ? index->size(0) : gate.numel(), width = grad.size(1);
  check_rows(grad, grad, gather ? gate.numel() : chosen, "grad"), check_rows(branch, grad, chosen, "branch");
  Tensor dbranch = torch::stable::new_empty(grad, {chosen, width});
  Tensor dgate = torch::stable::new_empty(grad, {chosen}, accumulate_of(grad));
  of_dtype(grad, "grad", [&](auto tag) {
    using Scalar = decltype(tag);
    using F = Accumulate<Scalar>;
    const GateBackwardTask<Scalar> task{
        pointer<const Scalar>(grad), pointer<const Scalar>(branch), gather ? at : nullptr, at, pointer<const F>(gate),
        width, pointer<Scalar>(dbranch), pointer<F>(dgate)};
    over_rows(chosen, [&](int64_t begin, int64_t end) { run_gate_backward<Scalar>(task, begin, end); });
  });
  return {dbranch, dgate};
}

}  // namespace
}  // namespace tzn

STABLE_TORCH_LIBRARY_FRAGMENT(tzn_native, m) {
  m.def("gather_layer_norm(Tensor x, Tensor? index, Tensor weight, Tensor bias, float eps, int capacity) -> (Tensor, Tensor)");
  m.def(
      "gated_add_layer_norm(Tensor x, Tensor? index, Tensor branch, Tensor? gate, Tensor weight, Tensor bias, "
      "float eps, int capacity) -> (Tensor, Tensor, Tensor)");
  m.def(
      "layer_norm_backward(Tensor grad, Tensor x, Tensor? index, Tensor weight, Tensor stats, Tensor(a!) dx) "
      "-> (Tensor, Tensor)");
  m.def("gated_scatter(Tensor x, Tensor? index, Tensor y, Tensor branch, Tensor? gate) -> Tensor");
  m.def("gate_backward(Tensor grad, Tensor? index, Tensor branch, Tensor gate, bool gather) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tzn_native, CPU, m) {
  m.impl("gather_layer_norm", TORCH_BOX(&tzn::gather_layer_norm));
  m.impl("gated_add_layer_norm", TORCH_BOX(&tzn::gated_add_layer_norm));
  m.impl("layer_norm_backward", TORCH_BOX(&tzn::layer_norm_backward));
  m.impl("gated_scatter", TORCH_BOX(&tzn::gated_scatter));
  m.impl("gate_backward", TORCH_BOX(&tzn::gate_backward_rows));
}
