// Candidates of one group (a class, or all classes together), laid out so that a pick touches little more than what it
// overlaps: sorted by length octave and start into blocks of 64, and 64 blocks to a page, each with its span and its best
// score. With millions of candidates a pick looks at the pages first.
#pragma once

#include "../suppression_rule.h"
#include "common.h"

#include <algorithm>
#include <vector>

namespace tzn {

constexpr int64_t BLOCK = 64, PAGE = 64, OCTAVES = 32;

template <typename F> struct Group {
  std::vector<F> start, end, length, score;  // by place, padded to whole blocks with score -inf
  std::vector<int64_t> index;                // of the input
  std::vector<F> block_start, block_end, block_best, page_start, page_end, page_best;
  F best = LOWEST<F>;
  bool picked = false;

  int64_t blocks() const { return static_cast<int64_t>(block_best.size()); }
  int64_t pages() const { return static_cast<int64_t>(page_best.size()); }
  int64_t page_end_block(int64_t page) const { return std::min((page + 1) * PAGE, blocks()); }
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
  for (F best : group.page_best) group.best = best > group.best ? best : group.best;
}

template <typename F> TZN_INLINE void refresh_page(Group<F>& group, int64_t page) {
  F best = LOWEST<F>;
  for (int64_t b = page * PAGE; b < group.page_end_block(page); ++b)
    best = group.block_best[b] > best ? group.block_best[b] : best;
  group.page_best[page] = best;
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
  const int64_t bins = std::min<int64_t>(count / 16, 1 << 16);
  const F bins_per_unit = last > first ? static_cast<F>(bins) / (last - first) : F(0);
  std::vector<int64_t> key(count), begin(OCTAVES * bins + 1);
  for (int64_t n = 0; n < count; ++n) {
    const F start = segments[2 * order[n]], end = segments[2 * order[n] + 1];
    int octave = 0;
    std::frexp(static_cast<double>(end - start), &octave);
    const F place = (start - first) * bins_per_unit;  // NaN where bins_per_unit overflows; then any bin will do
    const int64_t bin = place > F(0) ? static_cast<int64_t>(std::min(place, static_cast<F>(bins - 1))) : 0;
    key[n] = std::min(std::max<int64_t>(octave + 8, 0), OCTAVES - 1) * bins + bin;
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
    group.length[n] = (group.end[n] - group.start[n]) + LENGTH_EPS<F>;
    group.score[n] = scores[i], group.index[n] = i;
    group.block_start[block] = std::min(group.block_start[block], group.start[n]);
    group.block_end[block] = std::max(group.block_end[block], group.end[n]);
  }
  for (int64_t b = 0; b < blocks; ++b) group.block_best[b] = best_of(group.score.data() + b * BLOCK);
  const int64_t pages = (blocks + PAGE - 1) / PAGE;
  group.page_start.resize(pages), group.page_end.resize(pages), group.page_best.resize(pages);
  for (int64_t p = 0; p < pages; ++p) {
    const int64_t first = p * PAGE, last = group.page_end_block(p);
    group.page_start[p] = *std::min_element(group.block_start.begin() + first, group.block_start.begin() + last);
    group.page_end[p] = *std::max_element(group.block_end.begin() + first, group.block_end.begin() + last);
    refresh_page(group, p);
  }
  refresh(group);
  return group;
}

// Place of the best score, the first of the input where several are best.
template <typename F> int64_t best_place(const Group<F>& group) {
  int64_t found = -1;
  for (int64_t p = 0; p < group.pages(); ++p) {
    if (group.page_best[p] != group.best) continue;
    for (int64_t b = p * PAGE; b < group.page_end_block(p); ++b) {
      if (group.block_best[b] != group.best) continue;
      for (int64_t n = b * BLOCK; n < (b + 1) * BLOCK; ++n)
        if (group.score[n] == group.best && (found < 0 || group.index[n] < group.index[found])) found = n;
    }
  }
  return found;
}

template <typename F, Method method>
TZN_INLINE void decay_block(Group<F>& group, int64_t block, const Picked<F>& picked, const Decay<F>& decay) {
  const F *starts = group.start.data() + block * BLOCK, *ends = group.end.data() + block * BLOCK;
  const F* lengths = group.length.data() + block * BLOCK;
  F* score = group.score.data() + block * BLOCK;
  for (int64_t j = 0; j < BLOCK; ++j)
    score[j] = decayed<method>(score[j], starts[j], ends[j], lengths[j], picked, decay);
  group.block_best[block] = best_of(score);
}

// Takes the candidate at `place` out and decays the others of its group.
template <typename F, Method method> TZN_INLINE void pick_with(Group<F>& group, int64_t place, const Decay<F>& decay) {
  const Picked<F> picked{group.start[place], group.end[place], group.length[place]};
  group.score[place] = LOWEST<F>;
  const bool everywhere = reaches_all<method>(!group.picked, decay);
  const auto overlaps = [&](F start, F end) { return everywhere || (start < picked.end && end > picked.start); };
  for (int64_t p = 0; p < group.pages(); ++p) {
    if (group.page_best[p] == LOWEST<F> || !overlaps(group.page_start[p], group.page_end[p])) continue;
    for (int64_t b = p * PAGE; b < group.page_end_block(p); ++b)
      if (group.block_best[b] != LOWEST<F> && overlaps(group.block_start[b], group.block_end[b]))
        decay_block<F, method>(group, b, picked, decay);
    refresh_page(group, p);
  }
  // Its own block may have been left out, when it has no length.
  const int64_t own = place / BLOCK;
  group.block_best[own] = best_of(group.score.data() + own * BLOCK);
  refresh_page(group, own / PAGE);
  group.picked = true;
}

}  // namespace tzn
