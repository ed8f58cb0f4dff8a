// Products of rows with the weights of a layer, and what follows them, of float32: nothing between is written to memory.
//
// PyTorch's product is as fast while a recording's rows stay in the cache; of many recordings side by side they do not.
#pragma once

#include "simd/level.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace tzn {

constexpr int64_t PRODUCT_CHUNK = 120;  // rows of one unit of work, a multiple of the kernels' rows

// A linear layer; of a convolution its input is three rows one after the other.
struct Layer {
  const float* weight;  // [out, depth]
  const float* bias;    // [out] or null
  int64_t depth, out;
  std::vector<float> packed{};  // the weight as pack_layer lays it out
};

// Convolution of kernel 3 over time, then LayerNorm and ReLU, or nothing.
struct Conv3Task {
  const float* x;               // [B, T, C], zero where padded
  const float *scale, *shift;   // [out] of the norm, or null: no norm, no ReLU
  const bool* mask;             // [B, T] or null; rows outside come out as zeros
  float eps;
  int64_t steps, in;            // T, C
  const float* zeros;           // [C]
  float* to;                    // [B, T, out]
};

// Rows through a linear layer, or through two with GELU between.
struct LinearTask {
  const float* x;  // [N, first.depth]
  int64_t rows;
  float* to;       // [N, out of the last]
};

// For rows begin ... end - 1 at the instruction set of this machine. `layer` must have been packed.
void pack_layer(Layer& layer);
void linear_rows(const LinearTask& task, const Layer& first, const Layer* second);

// Whether these kernels are the faster ones: not where there is no fused multiply-add.
inline bool has_products() { return TZN_X86_LEVELS && simd_level() != SimdLevel::portable; }

}  // namespace tzn
