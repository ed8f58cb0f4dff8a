// Convolutions of kernel 3 with LayerNorm and ReLU in plain inference (tzn/nn/conv.py), and the products of whole_block.cpp.
#include "product.h"

#define TZN_KERNELS "product_kernels.h"
#include "simd/levels.h"

namespace tzn {

void pack_layer(Layer& layer) { TZN_DISPATCH(pack(layer)) }

static void run(const LinearTask& task, const Layer& first, const Layer* second, int64_t begin, int64_t end) {
  TZN_DISPATCH(linear(task, first, second, begin, end))
}

static void run(const Conv3Task& task, const Layer& layer, int64_t begin, int64_t end) {
  TZN_DISPATCH(conv3(task, layer, begin, end))
}

void linear_rows(const LinearTask& task, const Layer& first, const Layer* second) {
  torch::stable::parallel_for(
      0, task.rows, PRODUCT_CHUNK, [&](int64_t begin, int64_t end) { run(task, first, second, begin, end); });
}

namespace {

const float* checked(const std::optional<Tensor>& x, int64_t size, const char* name) {
  if (!x) return nullptr;
  STD_TORCH_CHECK(
      x->dim() == 1 && x->size(0) == size && x->scalar_type() == ScalarType::Float && x->is_contiguous(), name,
      ": expected contiguous float32 [N], one for each row of weight");
  return data<const float>(*x);
}

Tensor conv3_layer(
    Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias,
    std::optional<Tensor> mask, double eps) {
  STD_TORCH_CHECK(x.dim() == 3 && x.scalar_type() == ScalarType::Float, "x: expected float32 [B, T, C]");
  STD_TORCH_CHECK(
      weight.dim() == 2 && weight.scalar_type() == ScalarType::Float && weight.size(1) == 3 * x.size(2),
      "weight: expected float32 [N, 3 C]");
  STD_TORCH_CHECK(norm_weight.has_value() == norm_bias.has_value(), "norm: expected weight and bias, or neither");
  STD_TORCH_CHECK(
      !mask || (mask->dim() == 2 && mask->size(0) == x.size(0) && mask->size(1) == x.size(1) &&
                mask->scalar_type() == ScalarType::Bool),
      "mask: expected bool [B, T]");
  x = torch::stable::contiguous(x), weight = torch::stable::contiguous(weight);
  if (mask) mask = torch::stable::contiguous(*mask);
  const int64_t out = weight.size(0), total = x.size(0) * x.size(1);
  Tensor to = torch::stable::new_empty(x, {x.size(0), x.size(1), out}, x.scalar_type());
  const std::vector<float> zeros(x.size(2), 0.0f);
  Layer layer{data<const float>(weight), checked(bias, out, "bias"), weight.size(1), out};
  const Conv3Task task{
      data<const float>(x), checked(norm_weight, out, "norm weight"), checked(norm_bias, out, "norm bias"),
      data_or_null(mask), static_cast<float>(eps), x.size(1), x.size(2), zeros.data(), data<float>(to)};
  if (total == 0 || out == 0) return to;
  pack_layer(layer);
  torch::stable::parallel_for(0, total, PRODUCT_CHUNK, [&](int64_t begin, int64_t end) { run(task, layer, begin, end); });
  return to;
}

}  // namespace
}  // namespace tzn

STABLE_TORCH_LIBRARY_FRAGMENT(tzn_native, m) {
  m.def(
      "conv3(Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, Tensor? mask, float eps) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tzn_native, CPU, m) { m.impl("conv3", TORCH_BOX(&tzn::conv3_layer)); }
