// What windowed attention works on: strided rows, and the plan of which query reads which keys.
//
// out_i = sum_j softmax_j(q_i . k_j / sqrt(D) + bias[time_j - time_i + r]) v_j over the valid keys with
// |time_j - time_i| <= r (tzn/reference/local_attention.py). A query's keys are one range of key rows, because both are
// in order of time; queries with almost the same range form a tile, which reads each key once.
#pragma once

#include "simd/level.h"

#include <algorithm>
#include <atomic>
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

// Addresses of ascending rows, without a division for each.
template <typename Scalar> class RowCursor {
 public:
  TZN_INLINE RowCursor(const Rows<Scalar>& rows, int64_t head) : rows_(rows), data_(rows.data + head * rows.head_stride) {}

  TZN_INLINE Scalar* at(int64_t row) {
    if (row - first_ >= rows_.steps) {
      const int64_t recording = row / rows_.steps;
      first_ = recording * rows_.steps;
      base_ = recording * rows_.batch_stride;
    }
    return data_ + base_ + (row - first_) * rows_.step_stride;
  }

 private:
  const Rows<Scalar>& rows_;
  Scalar* data_;
  int64_t first_ = 0, base_ = 0;  // of the recording of the last row
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
  void reserve(int64_t queries) {
    for (auto* list : {&row, &low, &high, &offset}) list->reserve(queries);
  }
  // Whether a query's keys are one step apart, so that its biases are adjacent.
  TZN_INLINE bool regular(int64_t query) const {
    return !time || time[high[query] - 1] - time[low[query]] == high[query] - 1 - low[query];
  }
};

// Queries per tile: long enough that few keys are packed twice, short enough for the caches (window 19, 128 channels).
constexpr int64_t TILE = 64;
constexpr int64_t CLEARED = 64;  // rows per unit of clearing

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

// Zeros for the rows first … last - 1 of some heads, in as few and as long runs as their memory allows.
template <typename Scalar>
void clear_rows(const Rows<Scalar>& rows, int64_t first, int64_t last, int64_t head_begin, int64_t head_end, int64_t width) {
  const int64_t heads = head_end - head_begin;
  if (heads == 0 || width == 0) return;  // memory of size zero may be at null
  const bool together = rows.head_stride == width || heads == 1;
  while (first < last) {
    const int64_t end = std::min(last, (first / rows.steps + 1) * rows.steps);  // of the recording
    const bool solid = together && rows.step_stride == heads * width;
    const int64_t run = solid ? end - first : 1;
    const size_t bytes = run * (together ? heads : 1) * width * sizeof(Scalar);
    for (int64_t head = head_begin; head < (together ? head_begin + 1 : head_end); ++head)
      std::memset(static_cast<void*>(rows.at(first, head)), 0, bytes);
    first += run;
  }
}

// Rows that belong to no query are zero: those before each query of the tile, and those after the last of all.
template <typename Scalar>
void clear_gaps(const Plan& plan, const Tile& tile, const Rows<Scalar>& rows, int64_t head_begin, int64_t head_end) {
  int64_t next = tile.query_begin ? plan.row[tile.query_begin - 1] + 1 : 0;
  for (int64_t i = tile.query_begin; i < tile.query_end; next = plan.row[i++] + 1)
    if (next < plan.row[i]) clear_rows(rows, next, plan.row[i], head_begin, head_end, plan.width);
  if (tile.query_end == plan.queries()) clear_rows(rows, next, plan.query_rows, head_begin, head_end, plan.width);
}

// Zeros for those of the rows first … last - 1 that belong to no query.
template <typename Scalar>
void clear_between(const Plan& plan, const Rows<Scalar>& rows, int64_t first, int64_t last) {
  auto query = std::lower_bound(plan.row.begin(), plan.row.end(), first);
  while (first < last) {
    const int64_t next = query == plan.row.end() ? last : std::min(*query++, last);
    if (first < next) clear_rows(rows, first, next, 0, plan.heads, plan.width);
    first = next + 1;
  }
}

// Hands units of work to whichever thread asks next, so that none waits for another that was held up. Results do not
// depend on who computes them.
class Units {
 public:
  int64_t take() { return next_.fetch_add(1, std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> next_{0};
};

// Memory of one thread, aligned to a cache line. What is padded to whole vectors must be `clear`, zero at first, so that
// padding adds nothing.
template <typename F> class Scratch {
 public:
  F* take(int64_t count, bool clear = true) {
    const size_t bytes = (static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(F) + 127) / 64 * 64;
    blocks_.emplace_back(new char[bytes + 64]);
    const auto address = (reinterpret_cast<uintptr_t>(blocks_.back().get()) + 63) / 64 * 64;
    if (clear) std::memset(reinterpret_cast<void*>(address), 0, bytes);
    return reinterpret_cast<F*>(address);
  }

 private:
  std::vector<std::unique_ptr<char[]>> blocks_;
};

template <typename Scalar> struct Forward {
  const Plan* plan;
  const Compute<Scalar>* bias;  // [heads, window] or null
  Rows<const Scalar> q, k, v;
  Rows<Scalar> out;
  int64_t heads_together;  // heads whose rows of a tile are packed at once
  Units* units;            // first all (tile, block of heads), heads fastest; then runs of rows to clear

  int64_t blocks() const { return (plan->heads + heads_together - 1) / heads_together; }
  int64_t tile_units() const { return static_cast<int64_t>(plan->tiles.size()) * blocks(); }
  int64_t clear_units() const {
    return plan->queries() == plan->query_rows ? 0 : (plan->query_rows + CLEARED - 1) / CLEARED;
  }
};

// As many as fit into half a megabyte of the second-level cache, but few enough to share the work out evenly.
template <typename F> int64_t heads_together(const Plan& plan) {
  const int64_t bytes = (TILE + 2 * plan.longest_tile) * std::max<int64_t>(plan.width, 1) * int64_t{sizeof(F)};
  const int64_t fit = (int64_t{1} << 19) / bytes, even = plan.heads * static_cast<int64_t>(plan.tiles.size()) / 8;
  return std::clamp<int64_t>(std::min(fit, even), 1, std::max<int64_t>(plan.heads, 1));
}

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
