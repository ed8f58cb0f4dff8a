// Candidates of one group (a class, or all classes together), laid out so that a pick touches little more than what it
// overlaps: sorted by length octave and start into blocks of 64, each with its span and its best score.
#pragma once

#include "common.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace tzn {

enum class Method : int64_t { gaussian, linear, zero, remove };

template <typename F> struct Decay {
  Method method;
  F iou_threshold, sigma, min_score;
};

constexpr int64_t BLOCK = 64, OCTAVES = 32;
template <typename F> constexpr F LOWEST = -std::numeric_limits<F>::infinity();

// exp(t) for t <= 0 as the reference computes it: in double, then rounded. The polynomial (Taylor, after taking out a
// power of two) is good to 1e-16, so that both round to the same float; it is plain code that compilers vectorise.
TZN_INLINE float exp_rounded(float t) {
  const double x = t < -110.0f ? -110.0 : static_cast<double>(t);  // below, the float is 0 all the same
  const double shifter = 6755399441055744.0;                       // 1.5 * 2^52: adding it rounds to an integer
  const double rounded = x * 1.4426950408889634 + shifter, n = rounded - shifter;
  const double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  int64_t bits, exponent;
  std::memcpy(&bits, &p, 8);
  std::memcpy(&exponent, &rounded, 8);
  bits += exponent << 52;
  std::memcpy(&p, &bits, 8);
  return static_cast<float>(p);
}
TZN_INLINE double exp_rounded(double t) { return std::exp2(t * 1.4426950408889634); }

template <typename F> struct Group {
  std::vector<F> start, end, length, score;  // by place, padded to whole blocks with score -inf
  std::vector<int64_t> index;                // of the input
  std::vector<F> block_start, block_end, block_best;
  F best = LOWEST<F>;
  bool picked = false;

  int64_t blocks() const { return static_cast<int64_t>(block_best.size()); }
};

// Highest of 64 scores. Eight at a time: one running value would wait for itself.
template <typename F> TZN_INLINE F best_of(const F* score) {
  F top[8];
  for (int i = 0; i < 8; ++i) top[i] = score[i];
  for (int64_t j = 8; j < BLOCK; j += 8)
    for (int i = 0; i < 8; ++i) top[i] = top[i] > score[j + i] ? top[i] : score[j + i];
  for (int i = 1; i < 8; ++i) top[0] = top[0] > top[i] ? top[0] : top[i];
  return top[0];
}

template <typename F> TZN_INLINE void refresh(Group<F>& group) {
  group.best = LOWEST<F>;
  for (F best : group.block_best) group.best = best > group.best ? best : group.best;
}

// Members by octave of their length, then by bin of their start, in one counting pass: neighbours span little time.
template <typename F>
std::vector<int64_t> clustered(const F* segments, const int64_t* members, int64_t count) {
  std::vector<int64_t> order(members, members + count);
  if (count <= BLOCK) return order;
  F first = std::numeric_limits<F>::infinity(), last = LOWEST<F>;
  for (int64_t i : order) {
    first = std::min(first, segments[2 * i]);
    last = std::max(last, segments[2 * i]);
  }
  const int64_t bins = std::min<int64_t>(count / 16, 1024);
  const F bins_per_unit = last > first ? static_cast<F>(bins) / (last - first) : F(0);
  std::vector<int64_t> key(count), begin(OCTAVES * bins + 1);
  for (int64_t n = 0; n < count; ++n) {
    const F start = segments[2 * order[n]], end = segments[2 * order[n] + 1];
    int octave;
    std::frexp(static_cast<double>(end - start), &octave);
    const auto bin = static_cast<int64_t>((start - first) * bins_per_unit);
    key[n] = std::min(std::max<int64_t>(octave + 8, 0), OCTAVES - 1) * bins + std::min(std::max<int64_t>(bin, 0), bins - 1);
    ++begin[key[n] + 1];
  }
  for (size_t k = 1; k < begin.size(); ++k) begin[k] += begin[k - 1];
  for (int64_t n = 0; n < count; ++n) order[begin[key[n]]++] = members[n];
  return order;
}

template <typename F> Group<F> make_group(const F* segments, const F* scores, const int64_t* members, int64_t count) {
  const std::vector<int64_t> order = clustered(segments, members, count);
  Group<F> group;
  const int64_t blocks = (count + BLOCK - 1) / BLOCK, places = blocks * BLOCK;
  for (auto* part : {&group.start, &group.end, &group.length}) part->assign(places, F(0));
  group.score.assign(places, LOWEST<F>);
  group.index.assign(places, -1);
  group.block_start.assign(blocks, std::numeric_limits<F>::infinity());
  group.block_end.assign(blocks, LOWEST<F>);
  group.block_best.resize(blocks);
  for (int64_t n = 0; n < count; ++n) {
    const int64_t i = order[n], block = n / BLOCK;
    group.start[n] = segments[2 * i], group.end[n] = segments[2 * i + 1];
    group.length[n] = (group.end[n] - group.start[n]) + F(1e-6);
    group.score[n] = scores[i], group.index[n] = i;
    group.block_start[block] = std::min(group.block_start[block], group.start[n]);
    group.block_end[block] = std::max(group.block_end[block], group.end[n]);
  }
  for (int64_t b = 0; b < blocks; ++b) group.block_best[b] = best_of(group.score.data() + b * BLOCK);
  refresh(group);
  return group;
}

// Place of the best score, the first of the input where several are best.
template <typename F> int64_t best_place(const Group<F>& group) {
  int64_t found = -1;
  for (int64_t b = 0; b < group.blocks(); ++b) {
    if (group.block_best[b] != group.best) continue;
    for (int64_t n = b * BLOCK; n < (b + 1) * BLOCK; ++n)
      if (group.score[n] == group.best && (found < 0 || group.index[n] < group.index[found])) found = n;
  }
  return found;
}

// Decays one block by the segment start … end of the given length; arithmetic in the order of the reference.
template <typename F, Method method>
TZN_INLINE void decay_block(Group<F>& group, int64_t block, F start, F end, F length, const Decay<F>& decay) {
  const F *starts = group.start.data() + block * BLOCK, *ends = group.end.data() + block * BLOCK;
  const F* lengths = group.length.data() + block * BLOCK;
  F* score = group.score.data() + block * BLOCK;
  for (int64_t j = 0; j < BLOCK; ++j) {
    const F low = starts[j] > start ? starts[j] : start, high = ends[j] < end ? ends[j] : end;
    F overlap = high - low > F(0) ? high - low : F(0);
    overlap = overlap / ((length + lengths[j]) - overlap);
    F next = score[j];
    if constexpr (method == Method::gaussian) {
      next = next * exp_rounded(-(overlap * overlap) / decay.sigma);
    } else if constexpr (method == Method::linear) {
      next = overlap >= decay.iou_threshold ? next * (F(1) - overlap) : next;
    } else if constexpr (method == Method::zero) {
      next = overlap >= decay.iou_threshold ? next * F(0) : next;
    } else {
      next = overlap >= decay.iou_threshold ? LOWEST<F> : next;
    }
    // What is gone stays gone, whatever 0 * inf makes of it.
    if constexpr (method != Method::remove) next = next < decay.min_score ? LOWEST<F> : next;
    score[j] = score[j] == LOWEST<F> ? LOWEST<F> : next;
  }
  group.block_best[block] = best_of(score);
}

// Takes the candidate at `place` out and decays the others of its group.
template <typename F, Method method> TZN_INLINE void pick_with(Group<F>& group, int64_t place, const Decay<F>& decay) {
  const F start = group.start[place], end = group.end[place], length = group.length[place];
  group.score[place] = LOWEST<F>;
  // An overlap of 0 changes a score only where the threshold is 0, or at the first pick, when scores below min_score go.
  const bool everywhere = !group.picked || (method != Method::gaussian && decay.iou_threshold <= F(0));
  for (int64_t b = 0; b < group.blocks(); ++b) {
    const bool near = group.block_start[b] < end && group.block_end[b] > start;
    if (group.block_best[b] != LOWEST<F> && (everywhere || near))
      decay_block<F, method>(group, b, start, end, length, decay);
  }
  // Its own block may have been left out, when it has no length.
  const int64_t own = place / BLOCK;
  group.block_best[own] = best_of(group.score.data() + own * BLOCK);
  group.picked = true;
}

}  // namespace tzn
