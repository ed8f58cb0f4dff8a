// Which tokens a variable-depth layer updates, and which it reads as keys (tzn/reference/depth.py).
//
// Two passes over each recording: one counts, one writes, so nothing is allocated but the two results.
#include "common.h"

#include <algorithm>
#include <vector>

namespace tzn {
namespace {

struct Counts {
  int64_t active = 0, halo = 0;
};

// Calls on_active(t) and on_halo(t) in ascending order; the halo is every valid step within `radius` of an active one.
template <typename T, typename OnActive, typename OnHalo>
TZN_INLINE void scan(
    const T* gate, const bool* valid, int64_t steps, int64_t radius, OnActive on_active, OnHalo on_halo) {
  int64_t done = 0;  // steps below are settled
  for (int64_t t = 0; t < steps; ++t) {
    if (!(static_cast<float>(gate[t]) > 0.0f) || (valid && !valid[t])) continue;
    on_active(t);
    // A radius beyond the recording must not overflow.
    const int64_t end = radius >= steps - t ? steps : t + radius + 1;
    for (int64_t s = std::max(done, t - radius); s < end; ++s)
      if (!valid || valid[s]) on_halo(s);
    done = std::max(done, end);
  }
}

template <typename T>
std::tuple<Tensor, Tensor> run(const Tensor& gate, int64_t radius, const bool* valid) {
  const int64_t batch = gate.size(0), steps = gate.size(1);
  const T* data = static_cast<const T*>(gate.data_ptr());
  Counts total;
  for (int64_t b = 0; b < batch; ++b)
    scan(
        data + b * steps, valid ? valid + b * steps : nullptr, steps, radius, [&](int64_t) { ++total.active; },
        [&](int64_t) { ++total.halo; });
  Tensor active = empty_long(gate, total.active), halo = empty_long(gate, total.halo);
  auto* next_active = static_cast<int64_t*>(active.data_ptr());
  auto* next_halo = static_cast<int64_t*>(halo.data_ptr());
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t base = b * steps;
    scan(
        data + base, valid ? valid + base : nullptr, steps, radius,
        [&](int64_t t) { *next_active++ = base + t; }, [&](int64_t t) { *next_halo++ = base + t; });
  }
  return {active, halo};
}

std::tuple<Tensor, Tensor> active_tokens(Tensor gate, int64_t window, std::optional<Tensor> mask) {
  STD_TORCH_CHECK(gate.dim() == 2, "gate: expected [B, T], got ", gate.dim(), " dimensions");
  STD_TORCH_CHECK(window >= 1 && window % 2 == 1, "window: expected an odd number >= 1, got ", window);
  gate = torch::stable::contiguous(gate);
  if (mask) {
    STD_TORCH_CHECK(
        mask->dim() == 2 && mask->size(0) == gate.size(0) && mask->size(1) == gate.size(1) &&
            mask->scalar_type() == ScalarType::Bool,
        "mask: expected bool of the shape of gate");
    mask = torch::stable::contiguous(*mask);
  }
  const bool* valid = data_or_null(mask);
  switch (gate.scalar_type()) {
    case ScalarType::Float: return run<float>(gate, window / 2, valid);
    case ScalarType::Double: return run<double>(gate, window / 2, valid);
    case ScalarType::BFloat16: return run<torch::headeronly::BFloat16>(gate, window / 2, valid);
    case ScalarType::Half: return run<torch::headeronly::Half>(gate, window / 2, valid);
    default: STD_TORCH_CHECK(false, "gate: expected a floating dtype");
  }
  return {};
}

}  // namespace
}  // namespace tzn

STABLE_TORCH_LIBRARY_FRAGMENT(tzn_native, m) {
  m.def("active_tokens(Tensor gate, int window, Tensor? mask) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tzn_native, CPU, m) { m.impl("active_tokens", TORCH_BOX(&tzn::active_tokens)); }
