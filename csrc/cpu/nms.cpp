// Non-maximum suppression in time with the picks of the definition (tzn/reference/nms.py).
//
// Groups are suppressed on their own, but picks are made in the order of their score over all groups: the first `total`
// are the result, and nothing beyond them is computed.
#include "../suppress_groups.h"
#include "suppression.h"

#include <queue>
#include <utility>

#define TZN_KERNELS "nms_kernels.h"
#include "simd/levels.h"

namespace tzn {
namespace {

template <typename F> void pick(Group<F>& group, int64_t place, const Decay<F>& decay) {
  TZN_DISPATCH(pick(group, place, decay));
}

struct Found {
  std::vector<int64_t> index;
  std::vector<double> score;  // exact for float
};

// Stable; by counting where labels are few and close together, as classes are.
void sort_by_label(std::vector<int64_t>& member, const int64_t* labels) {
  if (member.empty()) return;
  int64_t low = labels[member[0]], high = low;
  for (int64_t i : member) low = std::min(low, labels[i]), high = std::max(high, labels[i]);
  constexpr int64_t few = 1 << 14;
  if (low < -few || high > few) {
    std::stable_sort(member.begin(), member.end(), [&](int64_t a, int64_t b) { return labels[a] < labels[b]; });
    return;
  }
  std::vector<int64_t> begin(high - low + 2), sorted(member.size());
  for (int64_t i : member) ++begin[labels[i] - low + 1];
  for (size_t k = 1; k < begin.size(); ++k) begin[k] += begin[k - 1];
  for (int64_t i : member) sorted[begin[labels[i] - low]++] = i;
  member = std::move(sorted);
}

// Candidates by label in ascending order; members of group g are member[begin[g]] … member[begin[g + 1] - 1].
struct Grouping {
  std::vector<int64_t> member, begin;

  int64_t groups() const { return static_cast<int64_t>(begin.size()) - 1; }
};

// `above`: only scores above it count, if positive. Without labels all form one group.
template <typename F>
Grouping group_by_label(const F* scores, const int64_t* labels, int64_t count, double above) {
  Grouping grouping;
  grouping.member.reserve(count);
  for (int64_t i = 0; i < count; ++i)
    if (!(above > 0) || scores[i] > static_cast<F>(above)) grouping.member.push_back(i);
  auto& member = grouping.member;
  if (labels) sort_by_label(member, labels);
  for (size_t n = 0; n < member.size(); ++n)
    if (n == 0 || (labels && labels[member[n]] != labels[member[n - 1]])) grouping.begin.push_back(n);
  grouping.begin.push_back(member.size());
  return grouping;
}

template <typename F>
Found suppress(
    const F* segments, const F* scores, const Grouping& grouping, const Decay<F>& decay, int64_t total) {
  const int64_t groups = grouping.groups();
  std::vector<Group<F>> parts;
  parts.reserve(groups);
  for (int64_t g = 0; g < groups; ++g)
    parts.push_back(make_group(
        segments, scores, grouping.member.data() + grouping.begin[g], grouping.begin[g + 1] - grouping.begin[g]));
  // Highest score first, the lower group where they are equal.
  const auto later = [&](int64_t a, int64_t b) {
    return parts[a].best < parts[b].best || (parts[a].best == parts[b].best && a > b);
  };
  std::priority_queue<int64_t, std::vector<int64_t>, decltype(later)> next(later);
  for (int64_t g = 0; g < groups; ++g)
    if (parts[g].best != LOWEST<F>) next.push(g);
  Found found;
  while (!next.empty() && (total <= 0 || static_cast<int64_t>(found.index.size()) < total)) {
    const int64_t g = next.top();
    next.pop();
    Group<F>& group = parts[g];
    const int64_t place = best_place(group);
    found.index.push_back(group.index[place]);
    found.score.push_back(static_cast<double>(group.best));
    pick(group, place, decay);
    if (group.best != LOWEST<F>) next.push(g);
  }
  return found;
}

void check_candidates(const Tensor& segments, const Tensor& scores) {
  STD_TORCH_CHECK(segments.dim() == 2 && segments.size(1) == 2, "segments: expected [N, 2]");
  STD_TORCH_CHECK(
      scores.dim() == 1 && scores.size(0) == segments.size(0) && scores.scalar_type() == segments.scalar_type(),
      "scores: expected [N] in the dtype of segments");
}

void check_groups(const Tensor& group, int64_t count, const char* name) {
  STD_TORCH_CHECK(
      group.dim() == 1 && group.size(0) == count && group.scalar_type() == ScalarType::Long, name,
      ": expected int64 of one dimension, one number per segment");
}

// Candidates of the recordings one after the other; `bounds`: where each begins, and the end of the last.
template <typename F>
std::tuple<Tensor, Tensor, Tensor, Tensor> run_suppress(
    const Tensor& segments, const Tensor& scores, const int64_t* labels, const std::vector<int64_t>& bounds,
    const Decay<F>& decay, double above, int64_t total) {
  const auto recordings = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<Found> found(recordings);
  torch::stable::parallel_for(0, recordings, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t first = bounds[r];
      const F* own = data<const F>(scores) + first;
      const Grouping grouping = group_by_label(own, labels ? labels + first : nullptr, bounds[r + 1] - first, above);
      found[r] = suppress(data<const F>(segments) + 2 * first, own, grouping, decay, total);
    }
  });
  int64_t count = 0;
  for (const Found& one : found) count += static_cast<int64_t>(one.index.size());
  Tensor index = empty_long(scores, count), made = empty_long(scores, recordings);
  Tensor score = torch::stable::new_empty(scores, {count}, scores.scalar_type());
  auto *next_index = static_cast<int64_t*>(index.data_ptr()), *next_made = static_cast<int64_t*>(made.data_ptr());
  Tensor kept = torch::stable::new_empty(segments, {count, 2}, segments.scalar_type());
  auto *next_score = static_cast<F*>(score.data_ptr()), *next_kept = static_cast<F*>(kept.data_ptr());
  const F* ends = data<const F>(segments);
  for (int64_t r = 0; r < recordings; ++r) {
    for (int64_t i : found[r].index) {
      const F* own = ends + 2 * (bounds[r] + i);
      *next_index++ = bounds[r] + i, *next_kept++ = own[0], *next_kept++ = own[1];
    }
    next_score = std::copy(found[r].score.begin(), found[r].score.end(), next_score);
    *next_made++ = static_cast<int64_t>(found[r].index.size());
  }
  return {index, score, kept, made};
}

std::vector<int64_t> bounds_of(const std::optional<Tensor>& given, int64_t candidates) {
  if (!given) return {0, candidates};
  const Tensor& counts = *given;
  STD_TORCH_CHECK(
      counts.dim() == 1 && counts.scalar_type() == ScalarType::Long && counts.is_contiguous(),
      "counts: expected contiguous int64 [R]");
  std::vector<int64_t> bounds{0};
  for (int64_t r = 0; r < counts.size(0); ++r) {
    const int64_t count = data<const int64_t>(counts)[r];
    STD_TORCH_CHECK(count >= 0 && count <= candidates - bounds.back(), "counts: expected a sum of N, none negative");
    bounds.push_back(bounds.back() + count);
  }
  STD_TORCH_CHECK(bounds.back() == candidates, "counts: expected a sum of ", candidates, ", got ", bounds.back());
  return bounds;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> suppress_recordings(
    Tensor segments, Tensor scores, std::optional<Tensor> labels, std::optional<Tensor> counts, int64_t method, double iou_threshold,
    double sigma, double min_score, double above, int64_t total) {
  check_candidates(segments, scores);
  STD_TORCH_CHECK(method >= 0 && method <= 4, "method: expected 0 to 4, got ", method);
  if (labels) {
    check_groups(*labels, scores.size(0), "labels");
    labels = torch::stable::contiguous(*labels);
  }
  const auto bounds = bounds_of(counts, scores.size(0));
  segments = torch::stable::contiguous(segments);
  scores = torch::stable::contiguous(scores);
  const int64_t* by = labels ? data<const int64_t>(*labels) : nullptr;
  const auto run = [&](auto tag) {
    using F = decltype(tag);
    const Decay<F> decay{
        static_cast<Method>(method), static_cast<F>(iou_threshold), static_cast<F>(sigma), static_cast<F>(min_score)};
    return run_suppress<F>(segments, scores, by, bounds, decay, above, total);
  };
  if (segments.scalar_type() == ScalarType::Float) return run(float{});
  STD_TORCH_CHECK(segments.scalar_type() == ScalarType::Double, "segments: expected float32 or float64");
  return run(double{});
}

// Picks of one group, at most `capacity`; returns how many.
int64_t suppress_group(Group<float>& group, const Decay<float>& decay, int64_t capacity, int* index, float* score) {
  int64_t made = 0;
  for (; made < capacity && group.best != LOWEST<float>; ++made) {
    const int64_t place = best_place(group);
    index[made] = static_cast<int>(group.index[place]);
    score[made] = group.best;
    pick(group, place, decay);
  }
  std::fill(index + made, index + capacity, -1);
  std::fill(score + made, score + capacity, LOWEST<float>);
  return made;
}

// Candidates of recording `which` by group, in the order of the input.
std::vector<std::vector<int64_t>> members_of(const GroupArguments& given, int64_t which, double above) {
  std::vector<std::vector<int64_t>> members(given.groups);
  const float* scores = given.score_data() + which * given.number;
  const int* labels = given.label_data() ? given.label_data() + which * given.number : nullptr;
  const int64_t used = given.count_data() ? std::min(given.count_data()[which], given.number) : given.number;
  for (int64_t i = 0; i < used; ++i) {
    const int64_t group = labels ? labels[i] : 0;
    if (group < 0 || group >= given.groups || !(scores[i] > LOWEST<float>)) continue;
    if (!(above > 0) || scores[i] > above) members[group].push_back(i);
  }
  return members;
}

std::tuple<Tensor, Tensor, Tensor> suppress_groups(
    Tensor segments, Tensor scores, std::optional<Tensor> labels, std::optional<Tensor> counts, int64_t groups,
    int64_t capacity, int64_t method, double iou_threshold, double sigma, double min_score, double above) {
  const GroupArguments given(segments, scores, labels, counts, groups, capacity, method);
  const Decay<float> decay{
      static_cast<Method>(method), static_cast<float>(iou_threshold), static_cast<float>(sigma),
      static_cast<float>(min_score)};
  torch::stable::parallel_for(0, given.recordings, 1, [&](int64_t begin, int64_t end) {
    for (int64_t which = begin; which < end; ++which) {
      const auto members = members_of(given, which, above);
      for (int64_t g = 0; g < given.groups; ++g) {
        const int64_t row = which * given.groups + g, first = row * given.capacity;
        auto group = make_group(
            given.segment_data() + 2 * which * given.number, given.score_data() + which * given.number,
            members[g].data(), static_cast<int64_t>(members[g].size()));
        given.made_out()[row] = static_cast<int>(suppress_group(
            group, decay, given.capacity, given.index_out() + first, given.score_out() + first));
      }
    }
  });
  return {given.index, given.score, given.made};
}

template <typename F> bool plain(const Tensor& segments, const Tensor& scores) {
  int64_t odd = 0;
  TZN_DISPATCH(count_odd(data<const F>(segments), data<const F>(scores), segments.size(0), odd));
  return odd == 0;
}

// Whether all numbers are finite, and so are all lengths, and none of them and no score is negative: then scores only fall.
bool plain_candidates(Tensor segments, Tensor scores) {
  check_candidates(segments, scores);
  segments = torch::stable::contiguous(segments);
  scores = torch::stable::contiguous(scores);
  if (segments.scalar_type() == ScalarType::Float) return plain<float>(segments, scores);
  if (segments.scalar_type() == ScalarType::Double) return plain<double>(segments, scores);
  return false;
}

// Candidates of a recording by bin of their start, so that a kept segment asks only those that may reach its threshold.
template <typename F> struct Voters {
  Bins<F> bins;
  std::vector<int64_t> begin, group;  // begin[b] … begin[b + 1] - 1 are of bin b
  std::vector<F> segments, scores;

  Voters(const F* given, const F* given_scores, const int64_t* given_group, int64_t count) {
    for (int64_t i = 0; i < count; ++i) bins.see(given[2 * i]);
    bins.divide(count / 16);
    begin.resize(bins.count + 1), segments.resize(2 * count), scores.resize(count), group.resize(given_group ? count : 0);
    for (int64_t i = 0; i < count; ++i) ++begin[bins.of(given[2 * i]) + 1];
    for (size_t b = 1; b < begin.size(); ++b) begin[b] += begin[b - 1];
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = next[bins.of(given[2 * i])]++;
      segments[2 * place] = given[2 * i], segments[2 * place + 1] = given[2 * i + 1], scores[place] = given_scores[i];
      if (given_group) group[place] = given_group[i];
    }
  }

  // Candidates of IoU >= t > 0 are at most 1 / t times as long, so they begin no earlier than that before the segment, and
  // before its end. A little more, for rounding.
  std::pair<int64_t, int64_t> near(F start, F end, F threshold) const {
    if (!(threshold > F(0))) return {0, begin.back()};
    const F length = end - start;
    const F slack = F(0.01) * length + 64 * std::numeric_limits<F>::epsilon() * (std::abs(start) + std::abs(end));
    const F first = start - (length / threshold + slack), last = end + slack;
    return {begin[bins.of(first)], begin[bins.of(last) + 1]};
  }
};

// Numbered as VOTE_WEIGHTS of tzn/reference/nms.py.
enum class VoteWeight : int64_t { score_iou, score };

struct Votes {
  std::vector<int64_t> kept_bounds, bounds;  // of the recordings
  const int64_t *kept_group, *group;         // classes that vote among themselves, or null
  VoteWeight weight;
};

template <typename F>
Tensor run_vote(const Tensor& kept, const Tensor& segments, const Tensor& scores, double threshold, const Votes& votes) {
  Tensor out = torch::stable::new_empty(kept, {kept.size(0), 2}, kept.scalar_type());
  const F* from = data<const F>(kept);
  F* to = data<F>(out);
  const auto recordings = static_cast<int64_t>(votes.bounds.size()) - 1;
  std::vector<std::optional<Voters<F>>> voters(recordings);
  torch::stable::parallel_for(0, recordings, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t first = votes.bounds[r];
      if (votes.kept_bounds[r] < votes.kept_bounds[r + 1])
        voters[r].emplace(
            data<const F>(segments) + 2 * first, data<const F>(scores) + first,
            votes.group ? votes.group + first : nullptr, votes.bounds[r + 1] - first);
    }
  });
  torch::stable::parallel_for(0, kept.size(0), 16, [&](int64_t begin, int64_t end) {
    const auto& bounds = votes.kept_bounds;
    int64_t r = std::upper_bound(bounds.begin(), bounds.end(), begin) - bounds.begin() - 1;
    for (int64_t i = begin; i < end; ++i) {
      while (i >= bounds[r + 1]) ++r;
      const Voters<F>& own = *voters[r];
      const auto [first, last] = own.near(from[2 * i], from[2 * i + 1], static_cast<F>(threshold));
      const F *candidates = own.segments.data() + 2 * first, *their_scores = own.scores.data() + first;
      const int64_t* group = votes.group ? own.group.data() + first : nullptr;
      const int64_t count = std::max<int64_t>(last - first, 0), of_kept = votes.kept_group ? votes.kept_group[i] : 0;
      const bool by_overlap = votes.weight == VoteWeight::score_iou;
      TZN_DISPATCH(vote_one(
          candidates, their_scores, count, from[2 * i], from[2 * i + 1], static_cast<F>(threshold), by_overlap, group,
          of_kept, to + 2 * i));
    }
  });
  return out;
}

// Each recording's kept segments after the votes of its own candidates.
Tensor vote_segments(
    Tensor kept, Tensor kept_counts, Tensor segments, Tensor scores, std::optional<Tensor> counts, double threshold,
    std::optional<Tensor> kept_group, std::optional<Tensor> group, int64_t weight) {
  check_candidates(segments, scores);
  STD_TORCH_CHECK(
      kept.dim() == 2 && kept.size(1) == 2 && kept.scalar_type() == segments.scalar_type(),
      "kept: expected [M, 2] in the dtype of segments");
  STD_TORCH_CHECK(kept_group.has_value() == group.has_value(), "group: expected with kept_group, or neither");
  STD_TORCH_CHECK(weight >= 0 && weight <= 1, "weight: expected 0 or 1, got ", weight);
  if (group) {
    check_groups(*group, segments.size(0), "group");
    check_groups(*kept_group, kept.size(0), "kept_group");
    group = torch::stable::contiguous(*group);
    kept_group = torch::stable::contiguous(*kept_group);
  }
  kept = torch::stable::contiguous(kept);
  segments = torch::stable::contiguous(segments);
  scores = torch::stable::contiguous(scores);
  const Votes votes{
      bounds_of(kept_counts, kept.size(0)), bounds_of(counts, scores.size(0)),
      kept_group ? data<const int64_t>(*kept_group) : nullptr, group ? data<const int64_t>(*group) : nullptr,
      static_cast<VoteWeight>(weight)};
  STD_TORCH_CHECK(votes.kept_bounds.size() == votes.bounds.size(), "kept_counts, counts: expected as many recordings");
  if (segments.scalar_type() == ScalarType::Float) return run_vote<float>(kept, segments, scores, threshold, votes);
  STD_TORCH_CHECK(segments.scalar_type() == ScalarType::Double, "segments: expected float32 or float64");
  return run_vote<double>(kept, segments, scores, threshold, votes);
}

}  // namespace
}  // namespace tzn

STABLE_TORCH_LIBRARY_FRAGMENT(tzn_native, m) {
  m.def(
      "suppress_groups(Tensor segments, Tensor scores, Tensor? labels, Tensor? counts, int groups, int capacity, "
      "int method, float iou_threshold, float sigma, float min_score, float above) -> (Tensor, Tensor, Tensor)");
  m.def(
      "suppress_recordings(Tensor segments, Tensor scores, Tensor? labels, Tensor? counts, int method, "
      "float iou_threshold, float sigma, float min_score, float above, int total) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("plain_candidates(Tensor segments, Tensor scores) -> bool");
  m.def(
      "vote_segments(Tensor kept, Tensor kept_counts, Tensor segments, Tensor scores, Tensor? counts, float threshold, "
      "Tensor? kept_group, Tensor? group, int weight) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tzn_native, CPU, m) {
  m.impl("suppress_groups", TORCH_BOX(&tzn::suppress_groups));
  m.impl("suppress_recordings", TORCH_BOX(&tzn::suppress_recordings));
  m.impl("plain_candidates", TORCH_BOX(&tzn::plain_candidates));
  m.impl("vote_segments", TORCH_BOX(&tzn::vote_segments));
}
