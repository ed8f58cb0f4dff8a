// Suppression and voting at one instruction set (included by simd/levels.h, so no guard).

namespace tzn {
namespace TZN_LEVEL {

template <typename F> void pick(Group<F>& group, int64_t place, const Decay<F>& decay) {
  switch (decay.method) {
    case Method::gaussian: pick_with<F, Method::gaussian>(group, place, decay); break;
    case Method::linear: pick_with<F, Method::linear>(group, place, decay); break;
    case Method::zero: pick_with<F, Method::zero>(group, place, decay); break;
    case Method::remove: pick_with<F, Method::remove>(group, place, decay); break;
    default: pick_with<F, Method::remove_distant>(group, place, decay);
  }
}

// How many numbers keep candidates from being plain (plain_candidates says what that is).
template <typename F> void count_odd(const F* ends, const F* score, int64_t count, int64_t& odd) {
  const F infinity = std::numeric_limits<F>::infinity();
  const F far = std::numeric_limits<F>::max() / 8;  // sums of two lengths stay finite
  for (int64_t i = 0; i < 2 * count; ++i) odd += !(ends[i] > -far && ends[i] < far);
  for (int64_t i = 0; i < count; ++i)
    odd += !(score[i] >= F(0) && score[i] < infinity && ends[2 * i + 1] >= ends[2 * i]);
}

// Sums of one kept segment's voters, in the arithmetic of the reference up to the order of the sums, which is in double.
template <typename F>
void vote_one(
    const F* segments, const F* scores, int64_t count, F start, F end, F threshold, bool by_overlap, const int64_t* group,
    int64_t own, F* out) {
  double total[8] = {}, starts[8] = {}, ends[8] = {};
  const F length = end - start;
  const int64_t whole = count / 8 * 8;
  const auto add = [&](int64_t j, int lane) __attribute__((always_inline)) {
    const F other_start = segments[2 * j], other_end = segments[2 * j + 1];
    const F low = other_start > start ? other_start : start, high = other_end < end ? other_end : end;
    const F overlap = high - low > F(0) ? high - low : F(0);
    const F iou = overlap / ((length + (other_end - other_start)) - overlap);
    const bool votes = iou >= threshold && (!group || group[j] == own);
    const double weight = votes ? static_cast<double>(by_overlap ? scores[j] * iou : scores[j]) : 0.0;
    total[lane] += weight;
    starts[lane] += weight * static_cast<double>(other_start);
    ends[lane] += weight * static_cast<double>(other_end);
  };
  for (int64_t j = 0; j < whole; j += 8)
    for (int lane = 0; lane < 8; ++lane) add(j + lane, lane);
  for (int64_t j = whole; j < count; ++j) add(j, 0);
  for (int lane = 1; lane < 8; ++lane) {
    total[0] += total[lane];
    starts[0] += starts[lane];
    ends[0] += ends[lane];
  }
  out[0] = static_cast<F>(starts[0] / total[0]);
  out[1] = static_cast<F>(ends[0] / total[0]);
}

}  // namespace TZN_LEVEL
}  // namespace tzn
