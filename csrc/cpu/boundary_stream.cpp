// Exits of a boundary stream in plain inference (tzn/kernels/cpu/zoom.py).
#include "boundary_stream.h"

#include <atomic>

#define TZN_KERNELS "boundary_stream_kernels.h"
#include "simd/levels.h"

namespace tzn {
namespace {

template <typename Scalar> int64_t run(const ExitTask<Scalar>& task, int64_t begin, int64_t end) {
  int64_t running = 0;
  TZN_DISPATCH(exit_rows<Scalar>(task, begin, end, running))
  return running;
}

bool per_step(const Tensor& x, const Tensor& h, ScalarType dtype) {
  return x.dim() == 2 && x.size(0) == h.size(0) && x.size(1) == h.size(1) && x.scalar_type() == dtype && x.is_contiguous();
}

const float* gates_of(const std::optional<Tensor>& x, const Tensor& h, const char* name) {
  check(!x || per_step(*x, h, ScalarType::Float), name, "contiguous float32 [B, T]");
  return pointer_or_null<float>(x);
}

// The last six arguments are a Dial.
int64_t read_exit(
    Tensor h, Tensor norm_weight, Tensor norm_bias, double eps, Tensor weight, Tensor bias, Tensor raw, Tensor mask,
    std::optional<Tensor> gate, std::optional<Tensor> next, std::optional<Tensor> moved, double least,
    double settled, double ramp, double low, double high, bool full) {
  check(h.dim() == 3 && h.is_contiguous(), "h", "contiguous [B, T, D]");
  const int64_t batch = h.size(0), steps = h.size(1), width = h.size(2), rows = batch * steps;
  check_vector(norm_weight, h, width, "norm weight"), check_vector(norm_bias, h, width, "norm bias");
  check(
      weight.dim() == 2 && weight.size(1) == width && weight.size(0) % 3 == 0 && weight.is_contiguous() &&
          weight.scalar_type() == accumulate_of(h),
      "weight", "a contiguous matrix [3 F, D] in the dtype of accumulation");
  check_vector(bias, h, weight.size(0), "bias");
  check(
      raw.dim() == 2 && raw.size(0) == rows && raw.size(1) == weight.size(0) && raw.scalar_type() == ScalarType::Float &&
          raw.is_contiguous(),
      "raw", "contiguous float32 [B T, 3 F]");
  check(per_step(mask, h, ScalarType::Bool), "mask", "contiguous bool [B, T]");
  check(
      !moved || (moved->dim() == 1 && moved->size(0) == batch && moved->scalar_type() == ScalarType::Float && moved->is_contiguous()),
      "moved", "contiguous float32 [B]");
  const auto number = [](double x) { return static_cast<float>(x); };
  std::atomic<int64_t> running{0};
  of_dtype(h, "h", [&](auto tag) {
    using Scalar = decltype(tag);
    using F = Accumulate<Scalar>;
    const ExitTask<Scalar> task{
        pointer<const Scalar>(h), pointer<const F>(norm_weight), pointer<const F>(norm_bias), static_cast<F>(eps),
        pointer<const F>(weight), pointer<const F>(bias), width, weight.size(0), pointer<float>(raw), pointer<const bool>(mask),
        gates_of(gate, h, "gate"), const_cast<float*>(gates_of(next, h, "next")), pointer_or_null<float>(moved), steps,
        {number(least), number(settled), number(ramp), number(low), number(high), full}};
    torch::stable::parallel_for(0, rows, EXIT_CHUNK, [&](int64_t begin, int64_t end) { running += run(task, begin, end); });
  });
  return running;
}

}  // namespace
}  // namespace tzn

STABLE_TORCH_LIBRARY_FRAGMENT(tzn_native, m) {
  m.def(
      "read_exit(Tensor h, Tensor norm_weight, Tensor norm_bias, float eps, Tensor weight, Tensor bias, Tensor(a!) raw, "
      "Tensor mask, Tensor? gate, Tensor(b!)? next, Tensor? moved, float least, float settled, float ramp, float low, "
      "float high, bool full) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(tzn_native, CPU, m) { m.impl("read_exit", TORCH_BOX(&tzn::read_exit)); }
