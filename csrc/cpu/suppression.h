// Candidates of one group (a class, or all classes together), laid out so that a pick touches little more than what it
// overlaps: sorted by length octave and start into blocks of 64, which are the leaves of a tree of 16 children a node.
// Every node knows its span and its best score, so the work of a pick grows with the logarithm of the candidates.
#pragma once

#include "../suppression_rule.h"
#include "common.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace tzn {

constexpr int64_t BLOCK = 64, CHILDREN = 16, OCTAVES = 32;

template <typename F> struct Group {
  std::vector<F> start, end, length, score;  // by place, padded to whole blocks with score -inf
  std::vector<int64_t> index;                // of the input
  // Blocks, then their parents, and so on to the root, the last. `first`: place of the best, the first of the
  // input where several are, -1 until asked for.
  std::vector<F> node_start, node_end, node_best;
  std::vector<int64_t> first, parent, children;  // of node n >= blocks: children[n - blocks] … children[n - blocks + 1] - 1
  std::vector<int64_t> reached;                  // by the pick at hand
  int64_t blocks = 0;
  F best = LOWEST<F>;
  bool picked = false;
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

template <typename F> TZN_INLINE void refresh(Group<F>& group, int64_t node) {
  F best = LOWEST<F>;
  if (node < group.blocks) {
    const F own = best_of(group.score.data() + node * BLOCK);
    best = own > best ? own : best;  // NaN is never best
  } else {
    const int64_t* child = group.children.data() + (node - group.blocks);
    for (int64_t c = child[0]; c < child[1]; ++c) best = group.node_best[c] > best ? group.node_best[c] : best;
  }
  group.node_best[node] = best;
  group.first[node] = -1;
}

// Equal bins of time for starts between the first and the last; a later start never has an earlier bin.
template <typename F> struct Bins {
  F first = std::numeric_limits<F>::infinity(), last = LOWEST<F>, per_unit = F(0);
  int64_t count = 1;

  void see(F start) { first = std::min(first, start), last = std::max(last, start); }
  void divide(int64_t bins) {
    count = std::max<int64_t>(bins, 1);
    per_unit = last > first ? static_cast<F>(count) / (last - first) : F(0);
  }
  int64_t of(F start) const {
    const F place = (start - first) * per_unit;  // NaN where per_unit overflows; then any bin will do
    return place > F(0) ? static_cast<int64_t>(std::min(place, static_cast<F>(count - 1))) : 0;
  }
};

// Members by octave of their length, then by bin of their start, in one counting pass: neighbours span little time.
template <typename F>
std::vector<int64_t> clustered(const F* segments, const int64_t* members, int64_t count) {
  std::vector<int64_t> order(members, members + count);
  if (count <= BLOCK) return order;
  Bins<F> bins;
  for (int64_t i : order) bins.see(segments[2 * i]);
  bins.divide(std::min<int64_t>(count / 16, 1 << 16));
  std::vector<int64_t> key(count), begin(OCTAVES * bins.count + 1);
  for (int64_t n = 0; n < count; ++n) {
    const F start = segments[2 * order[n]], end = segments[2 * order[n] + 1];
    int octave = 0;
    std::frexp(static_cast<double>(end - start), &octave);
    key[n] = std::min(std::max<int64_t>(octave + 8, 0), OCTAVES - 1) * bins.count + bins.of(start);
    ++begin[key[n] + 1];
  }
  for (size_t k = 1; k < begin.size(); ++k) begin[k] += begin[k - 1];
  for (int64_t n = 0; n < count; ++n) order[begin[key[n]]++] = members[n];
  return order;
}

// The nodes above the blocks, whose spans are known.
template <typename F> void plant(Group<F>& group) {
  group.parent.resize(group.blocks);
  group.children.push_back(0);
  for (int64_t begin = 0, end = group.blocks; end - begin > 1;) {
    for (int64_t child = begin; child < end; ++child) {
      if ((child - begin) % CHILDREN == 0) {
        group.node_start.push_back(group.node_start[child]), group.node_end.push_back(group.node_end[child]);
        group.children.push_back(child), group.parent.push_back(-1);
      }
      const int64_t node = static_cast<int64_t>(group.node_start.size()) - 1;
      group.parent[child] = node, group.children.back() = child + 1;
      group.node_start[node] = std::min(group.node_start[node], group.node_start[child]);
      group.node_end[node] = std::max(group.node_end[node], group.node_end[child]);
    }
    begin = end, end = static_cast<int64_t>(group.node_start.size());
  }
  const auto nodes = static_cast<int64_t>(group.node_start.size());
  if (nodes) group.parent[nodes - 1] = nodes;
  group.node_best.resize(nodes), group.first.resize(nodes);
  for (int64_t node = 0; node < nodes; ++node) refresh(group, node);
  if (nodes) group.best = group.node_best.back();
}

template <typename F> Group<F> make_group(const F* segments, const F* scores, const int64_t* members, int64_t count) {
  const std::vector<int64_t> order = clustered(segments, members, count);
  Group<F> group;
  group.blocks = (count + BLOCK - 1) / BLOCK;
  const int64_t places = group.blocks * BLOCK;
  for (auto* part : {&group.start, &group.end, &group.length}) part->assign(places, F(0));
  group.score.assign(places, LOWEST<F>);
  group.index.assign(places, -1);
  group.node_start.assign(group.blocks, std::numeric_limits<F>::infinity());
  group.node_end.assign(group.blocks, LOWEST<F>);
  for (int64_t n = 0; n < count; ++n) {
    const int64_t i = order[n], block = n / BLOCK;
    group.start[n] = segments[2 * i], group.end[n] = segments[2 * i + 1];
    group.length[n] = (group.end[n] - group.start[n]) + LENGTH_EPS<F>;
    group.score[n] = scores[i], group.index[n] = i;
    group.node_start[block] = std::min(group.node_start[block], group.start[n]);
    group.node_end[block] = std::max(group.node_end[block], group.end[n]);
  }
  plant(group);
  return group;
}

// Place of the best score of a block, the first of the input where several are best.
template <typename F> TZN_INLINE int64_t best_of_block(const Group<F>& group, int64_t block) {
  const F* score = group.score.data() + block * BLOCK;
  const F best = group.node_best[block];
  int matches[8] = {}, where[8] = {};
  for (int j = 0; j < BLOCK; j += 8)
    for (int i = 0; i < 8; ++i) {
      const int match = score[j + i] == best;
      matches[i] += match, where[i] += match ? j + i : 0;
    }
  for (int i = 1; i < 8; ++i) matches[0] += matches[i], where[0] += where[i];
  if (matches[0] == 1) return block * BLOCK + where[0];
  int64_t found = -1;
  for (int64_t n = block * BLOCK; n < (block + 1) * BLOCK; ++n)
    if (group.score[n] == best && (found < 0 || group.index[n] < group.index[found])) found = n;
  return found;
}

// Place of the best score below a node, the first of the input where several are best. Kept until the node changes:
// thousands of equal scores are looked through once, not at every pick.
template <typename F> int64_t best_place(Group<F>& group, int64_t node) {
  int64_t& first = group.first[node];
  if (first >= 0) return first;
  if (node < group.blocks) return first = best_of_block(group, node);
  const int64_t* child = group.children.data() + (node - group.blocks);
  int64_t found = -1;
  for (int64_t c = child[0]; c < child[1]; ++c) {
    if (group.node_best[c] != group.node_best[node]) continue;
    const int64_t other = best_place(group, c);
    if (found < 0 || group.index[other] < group.index[found]) found = other;
  }
  return first = found;
}

template <typename F> int64_t best_place(Group<F>& group) {
  return best_place(group, static_cast<int64_t>(group.node_best.size()) - 1);
}

template <typename F, Method method>
TZN_INLINE void decay_block(Group<F>& group, int64_t block, const Picked<F>& picked, const Decay<F>& decay) {
  const F *starts = group.start.data() + block * BLOCK, *ends = group.end.data() + block * BLOCK;
  const F* lengths = group.length.data() + block * BLOCK;
  F* score = group.score.data() + block * BLOCK;
  for (int64_t j = 0; j < BLOCK; ++j)
    score[j] = decayed<method>(score[j], starts[j], ends[j], lengths[j], picked, decay);
}

// Takes the candidate at `place` out and decays the others of its group.
template <typename F, Method method> TZN_INLINE void pick_with(Group<F>& group, int64_t place, const Decay<F>& decay) {
  const Picked<F> picked{group.start[place], group.end[place], group.length[place]};
  group.score[place] = LOWEST<F>;
  const bool everywhere = reaches_all<method>(!group.picked, decay);
  auto& reached = group.reached;
  reached.clear();
  const auto reach = [&](int64_t node) {
    if (group.node_best[node] != LOWEST<F> &&
        (everywhere || (group.node_start[node] < picked.end && group.node_end[node] > picked.start)))
      reached.push_back(node);
  };
  const auto nodes = static_cast<int64_t>(group.node_best.size());
  reach(nodes - 1);
  for (size_t n = 0; n < reached.size() && reached[n] >= group.blocks; ++n) {
    const int64_t* child = group.children.data() + (reached[n] - group.blocks);
    for (int64_t c = child[0]; c < child[1]; ++c) reach(c);
  }
  for (size_t n = reached.size(); n-- > 0;) {  // blocks first, then what is above them
    if (reached[n] < group.blocks) decay_block<F, method>(group, reached[n], picked, decay);
    refresh(group, reached[n]);
  }
  // Its own block was left out where it has no length.
  if (!everywhere && !(picked.start < picked.end))
    for (int64_t node = place / BLOCK; node < nodes; node = group.parent[node]) refresh(group, node);
  group.best = group.node_best.back();
  group.picked = true;
}

}  // namespace tzn
