// What windowed attention works on: strided rows, and the plan of which query reads which keys.
//
// out_i = sum_j softmax_j(q_i . k_j / sqrt(D) + bias[time_j - time_i + r]) v_j over the valid keys with
// |time_j - time_i| <= r (tzn/reference/local_attention.py). A query's keys are one range of key rows, because both are
// in order of time; queries with almost the same range form a tile, which reads each key once.
#pragma once

#include "simd_level.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

namespace tzn {

template <typename Scalar> struct ComputeType { using type = float; };
template <> struct ComputeType<double> { using type = double; };
template <typename Scalar> using Compute = typename ComputeType<Scalar>::type;

// Rows of `width` adjacent elements; row r is step r % steps of recording r / steps.
template <typename Scalar> struct Rows {
  Scalar* data = nullptr;
  int64_t steps = 1, batch_stride = 0, step_stride = 0, head_stride = 0;

  TZN_INLINE Scalar* at(int64_t row, int64_t head) const {
    return data + row / steps * batch_stride + row % steps * step_stride + head * head_stride;
  }
};

struct Tile {
  int64_t query_begin, query_end;  // entries of the plan
  int64_t key_begin, key_end;      // rows
};

struct Plan {
  int64_t heads = 0, width = 0, window = 1, radius = 0;
  int64_t query_rows = 0, key_rows = 0;
  std::vector<int64_t> row;             // of each query, ascending; rows in between are written as zeros
  std::vector<int64_t> low, high;       // of each query: its keys are the rows low … high - 1
  std::vector<int64_t> offset;          // of each query: time of its first key minus its own, plus the radius
  const int64_t* time = nullptr;        // of each key row; null: key rows are one step apart
  const bool* valid = nullptr;          // of each key row; null: all
  std::vector<Tile> tiles;
  int64_t longest_tile = 0, longest_range = 0;  // in key rows

  int64_t queries() const { return static_cast<int64_t>(row.size()); }
  // Whether a query's keys are one step apart, so that its biases are adjacent.
  TZN_INLINE bool regular(int64_t query) const {
    return !time || time[high[query] - 1] - time[low[query]] == high[query] - 1 - low[query];
  }
};

// Queries per tile: 32 keep K and V of a tile (window 19, 128 channels) in the first-level cache but for a few rows.
constexpr int64_t TILE = 32;

// Cuts the queries into tiles. The cut depends on nothing but the plan, so results do not depend on the threads.
inline void cut_tiles(Plan& plan) {
  const int64_t count = plan.queries();
  for (int64_t begin = 0; begin < count;) {
    const int64_t limit = plan.high[begin] + TILE + 16;
    int64_t end = begin + 1;
    while (end < count && end - begin < TILE && plan.high[end] <= limit) ++end;
    plan.tiles.push_back({begin, end, plan.low[begin], plan.high[end - 1]});
    plan.longest_tile = std::max(plan.longest_tile, plan.high[end - 1] - plan.low[begin]);
    begin = end;
  }
  for (int64_t i = 0; i < count; ++i) plan.longest_range = std::max(plan.longest_range, plan.high[i] - plan.low[i]);
}

// Memory of one thread, aligned to a cache line and zero at first, so that padding computes with finite numbers.
template <typename F> class Scratch {
 public:
  F* take(int64_t count) {
    const size_t bytes = (static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(F) + 127) / 64 * 64;
    blocks_.push_back(std::make_unique<char[]>(bytes + 64));  // value-initialised
    const auto address = reinterpret_cast<uintptr_t>(blocks_.back().get());
    return reinterpret_cast<F*>((address + 63) / 64 * 64);
  }

 private:
  std::vector<std::unique_ptr<char[]>> blocks_;
};

template <typename Scalar> struct Forward {
  const Plan* plan;
  const Compute<Scalar>* bias;  // [heads, window] or null
  Rows<const Scalar> q, k, v;
  Rows<Scalar> out;
};

// Weights of the softmax and gradients of the scores are kept per query over its range of keys: [queries, heads, range].
template <typename Scalar> struct Backward {
  const Plan* plan;
  const Compute<Scalar>* bias;
  Rows<const Scalar> grad, q, k, v;
  Rows<Scalar> dq, dk, dv;
  Compute<Scalar>*weights, *dscores;
  Compute<Scalar>* dbias;                       // [tiles, heads, window] partial sums, or null
  std::vector<int64_t> query_begin, query_end;  // of each key row: the queries that read it
  int64_t longest_readers = 1;                  // most queries that read a block of TILE keys
};

// Both ends of a query's range only grow, so the readers of a key are one range of queries.
template <typename Scalar> void find_readers(Backward<Scalar>& task) {
  const Plan& plan = *task.plan;
  task.query_begin.resize(plan.key_rows);
  task.query_end.resize(plan.key_rows);
  for (int64_t key = 0, begin = 0, end = 0; key < plan.key_rows; ++key) {
    while (begin < plan.queries() && plan.high[begin] <= key) ++begin;
    while (end < plan.queries() && plan.low[end] <= key) ++end;
    task.query_begin[key] = begin;
    task.query_end[key] = end;
  }
  for (int64_t first = 0; first < plan.key_rows; first += TILE) {
    const int64_t last = std::min(first + TILE, plan.key_rows) - 1;
    task.longest_readers = std::max(task.longest_readers, task.query_end[last] - task.query_begin[first]);
  }
}

}  // namespace tzn
