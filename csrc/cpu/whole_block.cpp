// A variable-depth block in one call, for programs without Python: what `_native_forward` of tzn/ops/variable_depth_block.py
// does, with the products of product.h in float32, else by PyTorch's BLAS through its dispatcher. Compiled packages (tzn
// export --to aoti) call it.
#include "product.h"

#include <array>
#include <string>
#include <utility>
#include <vector>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.10
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace tzn {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;
using Optional = std::optional<Tensor>;

constexpr double NORM_EPS = 1e-5;  // of tzn/reference/variable_depth_block.py
enum Weight {
  NORM1_WEIGHT, NORM1_BIAS, QUERY_WEIGHT, QUERY_BIAS, KEY_VALUE_WEIGHT, KEY_VALUE_BIAS, POSITION_BIAS, OUTPUT_WEIGHT,
  OUTPUT_BIAS, NORM2_WEIGHT, NORM2_BIAS, UP_WEIGHT, UP_BIAS, DOWN_WEIGHT, DOWN_BIAS, WEIGHTS
};  // the order of BlockWeights

// An op of the dispatcher by name; results come back in the places of its arguments.
template <typename... Arguments>
std::array<StableIValue, sizeof...(Arguments)> call(const char* name, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{from(arguments)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  return stack;
}

// Rows [N, depth] through a linear layer or, with `second`, through two and GELU between.
Tensor linear(const Tensor& x, const Tensor* first, const Tensor* second = nullptr) {
  if (x.scalar_type() == ScalarType::Float && has_products()) {
    const auto packed = [](const Tensor* w) {
      Layer layer{data<const float>(w[0]), data<const float>(w[1]), w[0].size(1), w[0].size(0)};
      pack_layer(layer);
      return layer;
    };
    const Layer one = packed(first), two = second ? packed(second) : Layer{};
    const Tensor out = torch::stable::new_empty(x, {x.size(0), (second ? two : one).out}, x.scalar_type());
    linear_rows({data<const float>(x), x.size(0), data<float>(out)}, one, second ? &two : nullptr);
    return out;
  }
  const Tensor out = to<Tensor>(call("aten::linear", x, first[0], Optional(first[1]))[0]);
  if (!second) return out;
  return to<Tensor>(call("aten::linear", to<Tensor>(call("aten::gelu", out, std::string("none"))[0]), second[0], Optional(second[1]))[0]);
}

Tensor rows_of(const Tensor& x, const Tensor& index) { return to<Tensor>(call("aten::index_select", x, int64_t{0}, index)[0]); }

// [N, H D] as [N, H, D].
Tensor split(const Tensor& x, int64_t heads) {
  const std::array<int64_t, 3> shape{x.size(0), heads, x.size(1) / heads};
  return torch::stable::view(x, {shape.data(), shape.size()});
}

void check_matrix(const Tensor& weight, const Tensor& bias, int64_t out, int64_t in) {
  STD_TORCH_CHECK(
      weight.dim() == 2 && weight.size(0) == out && weight.size(1) == in && bias.dim() == 1 && bias.size(0) == out,
      "weights: expected a matrix [", out, ", ", in, "] and its bias");
}

Tensor whole_block(Tensor x, Optional gate, std::vector<Tensor> w, Optional mask) {
  STD_TORCH_CHECK(w.size() == WEIGHTS, "weights: expected ", static_cast<int>(WEIGHTS), ", got ", w.size());
  STD_TORCH_CHECK(
      x.dim() == 3 && (x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double),
      "x: expected [B, T, D] of float32 or float64");
  for (const Tensor& weight : w) STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type(), "weights: expected the dtype of x");
  STD_TORCH_CHECK(w[POSITION_BIAS].dim() == 2, "weights: expected a position bias [H, w]");
  const int64_t batch = x.size(0), steps = x.size(1), width = x.size(2), tokens = batch * steps;
  const int64_t heads = w[POSITION_BIAS].size(0), window = w[POSITION_BIAS].size(1);
  STD_TORCH_CHECK(heads > 0 && width > 0 && width % heads == 0, "weights: expected heads that divide the width");
  STD_TORCH_CHECK(window % 2 == 1, "weights: expected an odd window, got ", window);
  const int64_t hidden_width = w[UP_WEIGHT].dim() == 2 ? w[UP_WEIGHT].size(0) : 0;
  check_matrix(w[QUERY_WEIGHT], w[QUERY_BIAS], width, width), check_matrix(w[KEY_VALUE_WEIGHT], w[KEY_VALUE_BIAS], 2 * width, width);
  check_matrix(w[OUTPUT_WEIGHT], w[OUTPUT_BIAS], width, width), check_matrix(w[UP_WEIGHT], w[UP_BIAS], hidden_width, width);
  check_matrix(w[DOWN_WEIGHT], w[DOWN_BIAS], width, hidden_width);
  for (const Weight norm : {NORM1_WEIGHT, NORM1_BIAS, NORM2_WEIGHT, NORM2_BIAS})
    STD_TORCH_CHECK(w[norm].dim() == 1 && w[norm].size(0) == width, "weights: expected norms of the width of x");
  for (Tensor& weight : w) weight = torch::stable::contiguous(weight);
  STD_TORCH_CHECK(
      !gate || (gate->dim() == 2 && gate->size(0) == batch && gate->size(1) == steps && gate->scalar_type() == x.scalar_type()),
      "gate: expected [B, T] of the dtype of x");
  STD_TORCH_CHECK(
      !mask || (mask->dim() == 2 && mask->size(0) == batch && mask->size(1) == steps && mask->scalar_type() == ScalarType::Bool),
      "mask: expected bool [B, T]");
  if (tokens == 0) return torch::stable::clone(x);
  const std::array<int64_t, 2> flat{tokens, width};
  const std::array<int64_t, 2> per_step{batch, steps};
  const std::array<int64_t, 3> shape{batch, steps, width};
  const Tensor rows = torch::stable::contiguous(torch::stable::reshape(x, {flat.data(), flat.size()}));
  Tensor depth = torch::stable::empty({per_step.data(), per_step.size()}, ScalarType::Float);
  if (!gate) torch::stable::fill_(depth, 1.0);
  const Tensor gates = gate ? torch::stable::contiguous(*gate) : depth;
  auto found = call("tzn_native::active_tokens", gates, window, mask);
  const Tensor active = to<Tensor>(found[0]), halo = to<Tensor>(found[1]);
  const int64_t queries = active.size(0), keys = halo.size(0);
  if (queries == 0) return torch::stable::clone(x);
  // Rank of the active rows among the halo's, which contains them; times with a gap of a radius between recordings.
  const Tensor rank = empty_long(active, queries), position = empty_long(halo, keys);
  const auto *at = data<const int64_t>(active), *reads = data<const int64_t>(halo);
  auto *ranks = data<int64_t>(rank), *times = data<int64_t>(position);
  for (int64_t i = 0, next = 0; i < keys; ++i) {
    times[i] = reads[i] + reads[i] / steps * (window / 2);
    if (next < queries && at[next] == reads[i]) ranks[next++] = i;
  }
  const Optional chosen = queries == tokens ? Optional() : Optional(active);
  const Optional read = keys == tokens ? Optional() : Optional(halo);
  const std::array<int64_t, 1> vector{tokens};
  const Optional factors =
      gate ? Optional(torch::stable::view(gates, {vector.data(), vector.size()})) : Optional();

  auto first = call("tzn_native::gather_layer_norm", rows, read, w[NORM1_WEIGHT], w[NORM1_BIAS], NORM_EPS, keys);
  const Tensor normed = to<Tensor>(first[0]), first_stats = to<Tensor>(first[1]);
  const Tensor query =
      linear(queries == keys ? normed : rows_of(normed, rank), &w[QUERY_WEIGHT]);
  const Tensor key_value = linear(normed, &w[KEY_VALUE_WEIGHT]);
  const Tensor attended = torch::stable::empty_like(query);
  call(
      "tzn_native::packed_local_attention", split(query, heads),
      split(torch::stable::narrow(const_cast<Tensor&>(key_value), 1, 0, width), heads),
      split(torch::stable::narrow(const_cast<Tensor&>(key_value), 1, width, width), heads), window, rank, position,
      Optional(w[POSITION_BIAS]), split(attended, heads));
  const Tensor branch = linear(attended, &w[OUTPUT_WEIGHT]);
  auto second = call(
      "tzn_native::gated_add_layer_norm", rows, chosen, branch, factors, w[NORM2_WEIGHT], w[NORM2_BIAS], NORM_EPS, queries);
  const Tensor y = to<Tensor>(second[0]), inner = to<Tensor>(second[1]), second_stats = to<Tensor>(second[2]);
  const Tensor down = linear(inner, &w[UP_WEIGHT], &w[DOWN_WEIGHT]);
  const Tensor out = to<Tensor>(call("tzn_native::gated_scatter", rows, chosen, y, down, factors)[0]);
  return torch::stable::view(out, {shape.data(), shape.size()});
}

}  // namespace
}  // namespace tzn

STABLE_TORCH_LIBRARY_FRAGMENT(tzn_native, m) {
  m.def("variable_depth_block(Tensor x, Tensor? gate, Tensor[] weights, Tensor? mask) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tzn_native, CPU, m) { m.impl("variable_depth_block", TORCH_BOX(&tzn::whole_block)); }
