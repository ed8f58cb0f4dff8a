// Boundaries of distance fields: what tzn/reference/boundary_crossings.py defines.
#include "common.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace tzn {
namespace {

template <typename F> struct Crossing {
  F position, std, slope;
};

enum class Estimator : int64_t { crossing, vote_mean, vote_median };

template <typename F> struct Field {
  const F *distance, *scale;
  const bool* valid;  // null: all
  int64_t steps;

  bool counts(int64_t t) const { return !valid || valid[t]; }
};

template <typename F> struct Vote {
  F place, scale;
};

// Votes t - d(t) of the steps within `window` of the crossing, as far as they land within it; the others vote for the
// crossing itself with an infinite scale: all those outside of the recording, of which there is one at least, by one vote.
template <typename F>
void cast_votes(const Field<F>& field, F position, int64_t window, std::vector<Vote<F>>& votes) {
  const F infinity = std::numeric_limits<F>::infinity(), reach = static_cast<F>(window);
  votes.assign(1, {position, infinity});
  if (!std::isfinite(position)) return;  // a distance of -inf: no step is near
  const auto floor = static_cast<int64_t>(std::floor(position));
  const int64_t last = std::min(floor + window + 1, field.steps - 1);
  for (int64_t t = std::max<int64_t>(floor - window, 0); t <= last; ++t) {
    Vote<F> vote{position, infinity};
    if (field.counts(t) && std::abs(static_cast<F>(t) - position) <= reach) {
      const F place = static_cast<F>(t) - field.distance[t];
      if (std::abs(place - position) <= reach) vote = {place, field.scale[t]};
    }
    votes.push_back(vote);
  }
}

// Median with weights 1 / scale; where half of the weight lies on either side, the middle of what lies between.
template <typename F> void weighted_median(std::vector<Vote<F>>& votes, Crossing<F>& out) {
  std::stable_sort(votes.begin(), votes.end(), [](const Vote<F>& a, const Vote<F>& b) { return a.place < b.place; });
  std::vector<F> reached;
  double total = 0, information = 0;
  for (const Vote<F>& vote : votes) {
    total += F(1) / vote.scale;
    reached.push_back(static_cast<F>(total));
    information += F(1) / (vote.scale * vote.scale);
  }
  const F half = reached.back() / 2, low = half * F(1 - 1e-6), high = half * F(1 + 1e-6);
  const auto at = [&](auto wanted) {
    const auto found = std::find_if(reached.begin(), reached.end(), wanted);
    return votes[found == reached.end() ? 0 : found - reached.begin()].place;
  };
  out.position = F(0.5) * (at([&](F r) { return r >= low; }) + at([&](F r) { return r > high; }));
  out.std = static_cast<F>(1 / std::sqrt(information));
}

template <typename F> void weighted_mean(const std::vector<Vote<F>>& votes, Crossing<F>& out) {
  double total = 0, sum = 0;
  for (const Vote<F>& vote : votes) {
    const double weight = F(1) / (vote.scale * vote.scale);
    total += weight;
    sum += static_cast<double>(vote.place) * weight;
  }
  out.position = static_cast<F>(sum / total);
  out.std = static_cast<F>(std::sqrt(2 / total));
}

template <typename F>
std::vector<Crossing<F>> crossings_of(const Field<F>& field, Estimator estimator, int64_t window, F min_slope) {
  std::vector<Crossing<F>> found;
  std::vector<Vote<F>> votes;
  for (int64_t t = 0; t + 1 < field.steps; ++t) {
    const F left = field.distance[t], right = field.distance[t + 1], slope = right - left;
    if (!(left < 0 && right >= 0 && slope > min_slope && field.counts(t) && field.counts(t + 1))) continue;
    const F fraction = -left / slope;
    Crossing<F> crossing{static_cast<F>(t) + fraction, F(0), slope};
    if (estimator == Estimator::crossing) {
      const F spread = std::hypot((1 - fraction) * field.scale[t], fraction * field.scale[t + 1]);
      crossing.std = static_cast<F>(1.4142135623730951) * spread / slope;
    } else {
      cast_votes(field, crossing.position, window, votes);
      if (estimator == Estimator::vote_median)
        weighted_median(votes, crossing);
      else
        weighted_mean(votes, crossing);
    }
    found.push_back(crossing);
  }
  std::stable_sort(found.begin(), found.end(), [](const Crossing<F>& a, const Crossing<F>& b) {
    return a.position < b.position || (std::isnan(b.position) && !std::isnan(a.position));  // NaN last
  });
  return found;
}

using Table = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <typename F>
Table run_crossings(
    const Tensor& distance, const Tensor& scale, const bool* valid, Estimator estimator, int64_t window,
    double min_slope) {
  const int64_t fields = distance.size(0), steps = distance.size(1);
  std::vector<std::vector<Crossing<F>>> found(fields);
  torch::stable::parallel_for(0, fields, 2, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t base = b * steps;
      const Field<F> field{
          data<const F>(distance) + base, data<const F>(scale) + base, valid ? valid + base : nullptr, steps};
      found[b] = crossings_of(field, estimator, window, static_cast<F>(min_slope));
    }
  });
  const int64_t capacity = steps / 2;  // two crossings lie two steps apart or more
  const auto table = [&] { return torch::stable::new_empty(distance, {fields, capacity}, distance.scalar_type()); };
  Tensor position = table(), std = table(), slope = table(), count = empty_long(distance, fields);
  const F infinity = std::numeric_limits<F>::infinity();
  F *positions = data<F>(position), *stds = data<F>(std), *slopes = data<F>(slope);
  std::fill_n(positions, fields * capacity, infinity), std::fill_n(stds, fields * capacity, infinity);
  std::fill_n(slopes, fields * capacity, F(0));
  for (int64_t b = 0; b < fields; ++b) {
    data<int64_t>(count)[b] = static_cast<int64_t>(found[b].size());
    int64_t place = b * capacity;
    for (const Crossing<F>& crossing : found[b]) {
      positions[place] = crossing.position, stds[place] = crossing.std, slopes[place] = crossing.slope;
      ++place;
    }
  }
  return {position, std, slope, count};
}

Table boundary_crossings(
    Tensor distance, Tensor scale, std::optional<Tensor> mask, int64_t estimator, int64_t window, double min_slope) {
  STD_TORCH_CHECK(distance.dim() == 2, "distance: expected [B, T]");
  STD_TORCH_CHECK(
      scale.dim() == 2 && scale.size(0) == distance.size(0) && scale.size(1) == distance.size(1) &&
          scale.scalar_type() == distance.scalar_type(),
      "scale: expected the shape and dtype of distance");
  STD_TORCH_CHECK(estimator >= 0 && estimator <= 2, "estimator: expected 0 to 2, got ", estimator);
  STD_TORCH_CHECK(window >= 0 && window <= (int64_t{1} << 30), "window: got ", window);
  distance = torch::stable::contiguous(distance);
  scale = torch::stable::contiguous(scale);
  if (mask) {
    STD_TORCH_CHECK(
        mask->dim() == 2 && mask->size(0) == distance.size(0) && mask->size(1) == distance.size(1) &&
            mask->scalar_type() == ScalarType::Bool,
        "mask: expected bool of the shape of distance");
    mask = torch::stable::contiguous(*mask);
  }
  const auto kind = static_cast<Estimator>(estimator);
  if (distance.scalar_type() == ScalarType::Float)
    return run_crossings<float>(distance, scale, data_or_null(mask), kind, window, min_slope);
  STD_TORCH_CHECK(distance.scalar_type() == ScalarType::Double, "distance: expected float32 or float64");
  return run_crossings<double>(distance, scale, data_or_null(mask), kind, window, min_slope);
}

}  // namespace
}  // namespace tzn

STABLE_TORCH_LIBRARY_FRAGMENT(tzn_native, m) {
  m.def(
      "boundary_crossings(Tensor distance, Tensor scale, Tensor? mask, int estimator, int window, float min_slope) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tzn_native, CPU, m) {
  m.impl("boundary_crossings", TORCH_BOX(&tzn::boundary_crossings));
}
