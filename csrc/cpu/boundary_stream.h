// An exit of a boundary stream in inference, with the gate of the block behind it (tzn/nn/zoom.py has the definitions):
//
//   raw += gate * (W LayerNorm(h) + b), where the block before ran;  next = gate * activity(raw)
#pragma once

#include "variable_depth_block.h"

#include <limits>

namespace tzn {

constexpr int EXIT_ROWS = 4;  // rows side by side: one's sums do not wait for their own last product
constexpr int64_t EXIT_CHUNK = 512;  // rows of one unit of work

// When a step goes on.
struct Dial {
  float least;      // of a scale
  float settled;    // logarithm of the threshold
  float ramp;
  float low, high;  // of the probability of reach
  bool full;        // whether every step does
};

template <typename Scalar> struct ExitTask {
  using F = Accumulate<Scalar>;
  const Scalar* h;             // [N, D]
  const F *scale, *shift;      // [D] of the norm
  F eps;
  const F *weight, *bias;      // [C, D], [C]
  int64_t width, columns;      // D, C = 3 F: distances, spreads, logits of reach
  float* raw;                  // [N, C]
  const bool* mask;            // [N]: the gate of the first exit
  const float* gate;           // [N] of the block before, or null: the first exit, which fills raw
  float* next;                 // [N] or null
  const float* moved;          // [B] added to the logarithm of the scale, or null
  int64_t steps;               // N / B
  Dial dial;
};

}  // namespace tzn
