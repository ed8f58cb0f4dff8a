// Windowed attention on strided tensors: dense [B, H, T, D] with masks, and packed rows [A, H, D] of chosen queries.
#include "local_attention.h"

#include <limits>

#define TZN_KERNELS "local_attention_kernels.h"
#include "simd/levels.h"

namespace tzn {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

void check(bool condition, const char* name, const char* expected) {
  STD_TORCH_CHECK(condition, name, ": expected ", expected);
}

// Windows wider than any recording behave alike; the bound keeps arithmetic on times from overflowing.
int64_t radius_of(int64_t window) {
  STD_TORCH_CHECK(window >= 1 && window % 2 == 1, "window: expected an odd number >= 1, got ", window);
  return std::min<int64_t>(window / 2, int64_t{1} << 40);
}

void check_rows(const Tensor& x, const Tensor& like, const char* name) {
  check(x.dim() == like.dim() && x.scalar_type() == like.scalar_type(), name, "the dimensions and dtype of q and k");
  for (int64_t i = 0; i < x.dim(); ++i) check(x.size(i) == like.size(i), name, "the shape of q; of k for v, dk, dv");
  check(x.size(-1) <= 1 || x.stride(-1) == 1, name, "adjacent elements in the last dimension");
}

// Results need elements of their own: threads write them side by side.
void check_written(const Tensor& x, const char* name) {
  for (int64_t i = 0; i < x.dim(); ++i) check(x.size(i) <= 1 || x.stride(i) != 0, name, "a tensor that is not expanded");
}

// The same rows except for their number: q and k of packed attention.
void check_alike(const Tensor& q, const Tensor& k) {
  const int64_t rows = q.dim() == 4 ? 2 : 0;
  check(k.dim() == q.dim() && k.scalar_type() == q.scalar_type(), "k", "the dimensions and dtype of q");
  for (int64_t i = 0; i < q.dim(); ++i)
    check((i == rows && q.dim() == 3) || k.size(i) == q.size(i), "k", "the shape of q, but for the rows if packed");
}

void check_mask(const std::optional<Tensor>& mask, int64_t batch, int64_t steps, const char* name) {
  if (!mask) return;
  check(
      mask->dim() == 2 && mask->size(0) == batch && mask->size(1) == steps && mask->scalar_type() == ScalarType::Bool &&
          mask->is_contiguous(),
      name, "contiguous bool [B, T]");
}

void check_bias(const std::optional<Tensor>& bias, const Plan& plan, ScalarType compute) {
  if (!bias) return;
  check(
      bias->dim() == 2 && bias->size(0) == plan.heads && bias->size(1) == plan.window &&
          bias->scalar_type() == compute && bias->is_contiguous(),
      "bias", "contiguous [H, window] in the compute dtype (float32; float64 for float64)");
}

Plan dense_plan(
    const Tensor& q, int64_t window, const std::optional<Tensor>& mask, const std::optional<Tensor>& query_mask) {
  check(q.dim() == 4, "q", "[B, H, T, D]");
  const int64_t batch = q.size(0), steps = q.size(2);
  check_mask(mask, batch, steps, "mask");
  check_mask(query_mask, batch, steps, "query_mask");
  Plan plan;
  plan.radius = radius_of(window);
  plan.heads = q.size(1), plan.width = q.size(3), plan.window = window;
  plan.query_rows = plan.key_rows = batch * steps;
  plan.valid = data_or_null(mask);
  const bool* wanted = data_or_null(query_mask);
  plan.reserve(batch * steps);
  for (int64_t row = 0; row < batch * steps; ++row) {
    if ((plan.valid && !plan.valid[row]) || (wanted && !wanted[row])) continue;
    const int64_t start = row / steps * steps, low = std::max(start, row - plan.radius);
    plan.row.push_back(row);
    plan.low.push_back(low);
    plan.high.push_back(std::min(start + steps, row + plan.radius + 1));
    plan.offset.push_back(low - row + plan.radius);
  }
  cut_tiles(plan);
  return plan;
}

Plan packed_plan(const Tensor& q, const Tensor& k, int64_t window, const Tensor& slot, const Tensor& position) {
  check(q.dim() == 3 && k.dim() == 3, "q, k", "[A, H, D] and [S, H, D]");
  const int64_t queries = q.size(0), keys = k.size(0);
  check(
      slot.dim() == 1 && slot.size(0) == queries && slot.scalar_type() == ScalarType::Long && slot.is_contiguous(),
      "slot", "contiguous int64 [A]");
  check(
      position.dim() == 1 && position.size(0) == keys && position.scalar_type() == ScalarType::Long &&
          position.is_contiguous(),
      "position", "contiguous int64 [S]");
  Plan plan;
  plan.radius = radius_of(window);
  plan.heads = q.size(1), plan.width = q.size(2), plan.window = window;
  plan.query_rows = queries, plan.key_rows = keys;
  const auto* own = static_cast<const int64_t*>(slot.data_ptr());
  const auto* time = plan.time = static_cast<const int64_t*>(position.data_ptr());
  const int64_t limit = int64_t{1} << 60;
  for (int64_t s = 0; s < keys; ++s)
    check(time[s] > -limit && time[s] < limit && (s == 0 || time[s] > time[s - 1]), "position", "ascending times");
  plan.reserve(queries);
  for (int64_t i = 0, low = 0, high = 0; i < queries; ++i) {
    check(own[i] >= 0 && own[i] < keys && (i == 0 || own[i] >= own[i - 1]), "slot", "ascending rows of k");
    const int64_t now = time[own[i]];
    while (time[low] < now - plan.radius) ++low;
    high = std::max(high, own[i]);
    while (high < keys && time[high] <= now + plan.radius) ++high;
    plan.row.push_back(i);
    plan.low.push_back(low);
    plan.high.push_back(high);
    plan.offset.push_back(time[low] - now + plan.radius);
  }
  cut_tiles(plan);
  return plan;
}

template <typename Scalar> Rows<Scalar> rows_of(const Tensor& x) {
  Rows<Scalar> rows;
  rows.data = static_cast<Scalar*>(x.data_ptr());
  const bool dense = x.dim() == 4;
  rows.steps = std::max<int64_t>(x.size(dense ? 2 : 0), 1);
  rows.batch_stride = dense ? x.stride(0) : 0;
  rows.step_stride = x.stride(dense ? 2 : 0);
  rows.head_stride = x.stride(1);
  return rows;
}

template <typename Scalar> void run_units(const Forward<Scalar>& task) { TZN_DISPATCH(attend<Scalar>(task)) }

template <typename Scalar>
void forward(
    const Plan& plan, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& bias,
    const Tensor& out) {
  using F = Compute<Scalar>;
  check_bias(bias, plan, std::is_same_v<F, double> ? ScalarType::Double : ScalarType::Float);
  Units units;
  const Forward<Scalar> task{
      &plan, bias ? static_cast<const F*>(bias->data_ptr()) : nullptr, rows_of<const Scalar>(q),
      rows_of<const Scalar>(k), rows_of<const Scalar>(v), rows_of<Scalar>(out), heads_together<F>(plan), &units};
  // Every thread that comes takes units until none is left, whichever share it was given.
  torch::stable::parallel_for(
      0, task.tile_units() + task.clear_units(), 1, [&](int64_t, int64_t) { run_units<Scalar>(task); });
}

void forward_any(
    const Plan& plan, const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& bias,
    const Tensor& out) {
  check_alike(q, k);
  check_rows(q, q, "q"), check_rows(out, q, "out"), check_rows(k, k, "k"), check_rows(v, k, "v");
  check_written(out, "out");
  switch (q.scalar_type()) {
    case ScalarType::Float: return forward<float>(plan, q, k, v, bias, out);
    case ScalarType::Double: return forward<double>(plan, q, k, v, bias, out);
    case ScalarType::BFloat16: return forward<BFloat16>(plan, q, k, v, bias, out);
    case ScalarType::Half: return forward<Half>(plan, q, k, v, bias, out);
    default: STD_TORCH_CHECK(false, "q: expected a floating dtype");
  }
}

// Units of both passes; a lambda handed to parallel_for is compiled for the base instruction set and only calls these.
template <typename Scalar> void run_queries(const Backward<Scalar>& task, int64_t begin, int64_t end) {
  TZN_DISPATCH(backward_queries<Scalar>(task, begin, end))
}
template <typename Scalar> void run_keys(const Backward<Scalar>& task, int64_t begin, int64_t end) {
  TZN_DISPATCH(backward_keys<Scalar>(task, begin, end))
}

// Sums the parts of all tiles in their order, in double.
template <typename F> void reduce_bias(const Plan& plan, const std::vector<F>& parts, F* dbias) {
  const int64_t size = plan.heads * plan.window;
  std::vector<double> total(size);
  for (size_t part = 0; part < parts.size() / std::max<int64_t>(size, 1); ++part)
    for (int64_t i = 0; i < size; ++i) total[i] += static_cast<double>(parts[part * size + i]);
  std::copy(total.begin(), total.end(), dbias);
}

struct Gradients {
  Tensor dq, dk, dv;
  std::optional<Tensor> dbias;
};

template <typename Scalar>
void backward(
    const Plan& plan, const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
    const std::optional<Tensor>& bias, const Gradients& to) {
  using F = Compute<Scalar>;
  const auto compute = std::is_same_v<F, double> ? ScalarType::Double : ScalarType::Float;
  check_bias(bias, plan, compute);
  check_bias(to.dbias, plan, compute);
  Backward<Scalar> task{};
  task.plan = &plan;
  task.bias = bias ? static_cast<const F*>(bias->data_ptr()) : nullptr;
  task.grad = rows_of<const Scalar>(grad), task.q = rows_of<const Scalar>(q);
  task.k = rows_of<const Scalar>(k), task.v = rows_of<const Scalar>(v);
  task.dq = rows_of<Scalar>(to.dq), task.dk = rows_of<Scalar>(to.dk), task.dv = rows_of<Scalar>(to.dv);
  std::vector<F> parts(to.dbias ? plan.tiles.size() * plan.heads * plan.window : 0);
  task.dbias = to.dbias ? parts.data() : nullptr;
  if (plan.queries() == 0) {
    clear_rows(task.dq, 0, plan.query_rows, 0, plan.heads, plan.width);
    clear_rows(task.dk, 0, plan.key_rows, 0, plan.heads, plan.width);
    clear_rows(task.dv, 0, plan.key_rows, 0, plan.heads, plan.width);
  } else {
    const size_t kept = static_cast<size_t>(plan.queries()) * plan.heads * plan.longest_range;
    const std::unique_ptr<F[]> weights(new F[kept]), dscores(new F[kept]);  // every entry that is read is written
    task.weights = weights.get(), task.dscores = dscores.get();
    find_readers(task);
    const auto tiles = static_cast<int64_t>(plan.tiles.size()), blocks = (plan.key_rows + TILE - 1) / TILE;
    torch::stable::parallel_for(
        0, tiles * plan.heads, 4, [&](int64_t begin, int64_t end) { run_queries<Scalar>(task, begin, end); });
    torch::stable::parallel_for(
        0, blocks * plan.heads, 4, [&](int64_t begin, int64_t end) { run_keys<Scalar>(task, begin, end); });
  }
  if (to.dbias) reduce_bias(plan, parts, static_cast<F*>(to.dbias->data_ptr()));
}

void backward_any(
    const Plan& plan, const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
    const std::optional<Tensor>& bias, const Gradients& to) {
  check_alike(q, k);
  check_rows(q, q, "q"), check_rows(grad, q, "grad"), check_rows(to.dq, q, "dq");
  check_rows(k, k, "k"), check_rows(v, k, "v"), check_rows(to.dk, k, "dk"), check_rows(to.dv, k, "dv");
  check_written(to.dq, "dq"), check_written(to.dk, "dk"), check_written(to.dv, "dv");
  switch (q.scalar_type()) {
    case ScalarType::Float: return backward<float>(plan, grad, q, k, v, bias, to);
    case ScalarType::Double: return backward<double>(plan, grad, q, k, v, bias, to);
    case ScalarType::BFloat16: return backward<BFloat16>(plan, grad, q, k, v, bias, to);
    case ScalarType::Half: return backward<Half>(plan, grad, q, k, v, bias, to);
    default: STD_TORCH_CHECK(false, "q: expected a floating dtype");
  }
}

void local_attention(
    Tensor q, Tensor k, Tensor v, int64_t window, std::optional<Tensor> mask, std::optional<Tensor> query_mask,
    std::optional<Tensor> bias, Tensor out) {
  forward_any(dense_plan(q, window, mask, query_mask), q, k, v, bias, out);
}

void local_attention_backward(
    Tensor grad, Tensor q, Tensor k, Tensor v, int64_t window, std::optional<Tensor> mask,
    std::optional<Tensor> query_mask, std::optional<Tensor> bias, Tensor dq, Tensor dk, Tensor dv,
    std::optional<Tensor> dbias) {
  backward_any(dense_plan(q, window, mask, query_mask), grad, q, k, v, bias, {dq, dk, dv, dbias});
}

void packed_local_attention(
    Tensor q, Tensor k, Tensor v, int64_t window, Tensor slot, Tensor position, std::optional<Tensor> bias, Tensor out) {
  forward_any(packed_plan(q, k, window, slot, position), q, k, v, bias, out);
}

void packed_local_attention_backward(
    Tensor grad, Tensor q, Tensor k, Tensor v, int64_t window, Tensor slot, Tensor position, std::optional<Tensor> bias,
    Tensor dq, Tensor dk, Tensor dv, std::optional<Tensor> dbias) {
  backward_any(packed_plan(q, k, window, slot, position), grad, q, k, v, bias, {dq, dk, dv, dbias});
}

}  // namespace
}  // namespace tzn

STABLE_TORCH_LIBRARY_FRAGMENT(tzn_native, m) {
  m.def(
      "local_attention(Tensor q, Tensor k, Tensor v, int window, Tensor? mask, Tensor? query_mask, Tensor? bias, "
      "Tensor(a!) out) -> ()");
  m.def(
      "local_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, int window, Tensor? mask, "
      "Tensor? query_mask, Tensor? bias, Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv, Tensor(d!)? dbias) -> ()");
  m.def(
      "packed_local_attention(Tensor q, Tensor k, Tensor v, int window, Tensor slot, Tensor position, Tensor? bias, "
      "Tensor(a!) out) -> ()");
  m.def(
      "packed_local_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, int window, Tensor slot, "
      "Tensor position, Tensor? bias, Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv, Tensor(d!)? dbias) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(tzn_native, CPU, m) {
  m.impl("local_attention", TORCH_BOX(&tzn::local_attention));
  m.impl("local_attention_backward", TORCH_BOX(&tzn::local_attention_backward));
  m.impl("packed_local_attention", TORCH_BOX(&tzn::packed_local_attention));
  m.impl("packed_local_attention_backward", TORCH_BOX(&tzn::packed_local_attention_backward));
}
