// What every CPU kernel shares: the stable-ABI headers, argument checks, run-time SIMD dispatch, element types.
//
// Only torch/csrc/stable and torch/headeronly are used, so one binary serves every torch from 2.10 on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <optional>
#include <tuple>

// Code that is copied once per instruction set (simd/levels.h) calls only what is inlined into it.
#define TZN_INLINE inline __attribute__((always_inline))

namespace tzn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

TZN_INLINE const bool* data_or_null(const std::optional<Tensor>& mask) {
  return mask ? static_cast<const bool*>(mask->data_ptr()) : nullptr;
}

template <typename T> T* data(const Tensor& x) { return static_cast<T*>(x.data_ptr()); }

inline Tensor empty_long(const Tensor& like, int64_t size) {
  return torch::stable::new_empty(like, {size}, ScalarType::Long);
}

}  // namespace tzn
