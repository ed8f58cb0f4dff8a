// Rows of chosen tokens: gather with LayerNorm, gated residual, scatter, and their gradients (tzn/ops/variable_depth_block.py).
//
// `index` picks rows of the [N, D] residual stream in ascending order; without it all rows are meant.
#pragma once

#include "simd/level.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

namespace tzn {

template <typename Scalar> struct AccumulateType { using type = float; };
template <> struct AccumulateType<double> { using type = double; };
template <typename Scalar> using Accumulate = typename AccumulateType<Scalar>::type;

constexpr int64_t ROW_CHUNK = 64;  // rows of one unit of work; sums over rows are made per chunk, then over chunks in order

// y = x + gate * branch where there is a branch, else y = x; out = LayerNorm(y).
template <typename Scalar> struct NormTask {
  using F = Accumulate<Scalar>;
  const Scalar *x, *branch;   // [N, D]; [S, D] or null
  const int64_t* index;       // [S] or null
  const F* gate;              // [N] or null: 1
  const F *weight, *bias;     // [D]
  F eps;
  int64_t width;
  Scalar *y, *out;            // [S, D]; y may be null
  F* stats;                   // [S, 2]: mean, 1 / standard deviation
};

// dx[index] += gradient of LayerNorm; parts: [chunks, 2, D] sums for weight and bias.
template <typename Scalar> struct NormBackwardTask {
  using F = Accumulate<Scalar>;
  const Scalar *grad, *x;     // [S, D], [N, D]
  const int64_t* index;
  const F *weight, *stats;
  int64_t rows, width;
  Scalar* dx;                 // [N, D]
  F* parts;
};

// out = x, but y + gate * branch in the rows of `index`.
template <typename Scalar> struct ScatterTask {
  using F = Accumulate<Scalar>;
  const Scalar *x, *y, *branch;  // [N, D], [A, D], [A, D]
  const int64_t* index;
  int64_t chosen;                // A
  const F* gate;
  int64_t width;
  Scalar* out;                   // [N, D]
};

// dbranch = gate * grad[index], dgate = grad[index] . branch.
template <typename Scalar> struct GateBackwardTask {
  using F = Accumulate<Scalar>;
  const Scalar *grad, *branch;   // [N, D] ([A, D] without gather), [A, D]
  const int64_t *index, *gate_index;  // of grad and of gate, or null
  const F* gate;                      // [N]
  int64_t width;
  Scalar* dbranch;               // [A, D]
  F* dgate;                      // [A]
};

// Arguments of the ops.

inline void check(bool condition, const char* name, const char* expected) {
  STD_TORCH_CHECK(condition, name, ": expected ", expected);
}

inline ScalarType accumulate_of(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// [rows, D] like `like`, contiguous; rows < 0: any.
inline void check_rows(const Tensor& x, const Tensor& like, int64_t rows, const char* name) {
  check(
      x.dim() == 2 && x.size(1) == like.size(1) && (rows < 0 || x.size(0) == rows) &&
          x.scalar_type() == like.scalar_type() && x.is_contiguous(),
      name, "contiguous rows of the width and dtype of the others, one for each index");
}

inline void check_vector(const Tensor& x, const Tensor& like, int64_t size, const char* name) {
  check(
      x.dim() == 1 && x.size(0) == size && x.scalar_type() == accumulate_of(like) && x.is_contiguous(), name,
      "a contiguous vector in the dtype of accumulation, of a matching size");
}

template <typename T> T* pointer(const Tensor& x) { return static_cast<T*>(x.data_ptr()); }
template <typename T> const T* pointer_or_null(const std::optional<Tensor>& x) {
  return x ? static_cast<const T*>(x->data_ptr()) : nullptr;
}

// Calls run<Scalar>() for the dtype.
template <typename Run> auto of_dtype(const Tensor& x, const char* name, Run run) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return run(float{});
    case ScalarType::Double: return run(double{});
    case ScalarType::BFloat16: return run(torch::headeronly::BFloat16{});
    case ScalarType::Half: return run(torch::headeronly::Half{});
    default: STD_TORCH_CHECK(false, name, ": expected a floating dtype");
  }
}

template <typename Work> void over_rows(int64_t rows, Work work) {
  torch::stable::parallel_for(0, rows, ROW_CHUNK, [&](int64_t begin, int64_t end) { work(begin, end); });
}

}  // namespace tzn
