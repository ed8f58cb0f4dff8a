// Segments from offsets, each end fused with the nearest crossing: what tzn/reference/decode_segments.py defines.
#include "common.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace tzn {
namespace {

// Crossings of one recording, ascending.
template <typename F> struct Boundaries {
  const F *position, *std;
  int64_t count;
};

template <typename F> struct End {
  F place, std;
};

// The inverse-variance mean of an end and the crossing nearest to it (the earlier of two), where the crossing is surer than
// the end and lies within `sigmas` combined standard errors.
template <typename F> TZN_INLINE End<F> fuse(End<F> end, const Boundaries<F>& found, F sigmas) {
  if (found.count == 0) return end;
  const F* last = found.position + found.count;
  const int64_t later = std::lower_bound(found.position, last, end.place) - found.position;
  const int64_t before = std::max<int64_t>(later - 1, 0), after = std::min(later, found.count - 1);
  const bool second = std::abs(found.position[after] - end.place) < std::abs(found.position[before] - end.place);
  const F place = found.position[second ? after : before], error = found.std[second ? after : before];
  const F own = end.std * end.std, total = own + error * error, spread = std::sqrt(total);
  if (!(error <= end.std && std::abs(place - end.place) <= sigmas * spread)) return end;
  return {end.place + own / total * (place - end.place), end.std * error / spread};
}

template <typename F>
void run(
    const Tensor& position, const Tensor& offset, const Tensor& offset_std, const std::vector<Tensor>& starts,
    const std::vector<Tensor>& ends, double snap_sigmas, const Tensor& segments, const Tensor& std) {
  const int64_t recordings = position.size(0), count = position.size(1);
  const auto of = [](const std::vector<Tensor>& table, int64_t row) -> Boundaries<F> {
    if (table.empty()) return {nullptr, nullptr, 0};
    const int64_t capacity = table[0].size(1);
    return {
        data<const F>(table[0]) + row * capacity, data<const F>(table[1]) + row * capacity,
        std::clamp<int64_t>(data<const int64_t>(table[2])[row], 0, capacity)};
  };
  const F sigmas = static_cast<F>(snap_sigmas);
  torch::stable::parallel_for(0, recordings * count, 1024, [&](int64_t begin, int64_t stop) {
    for (int64_t i = begin; i < stop; ++i) {
      const F at = data<const F>(position)[i];
      const End<F> start{at - data<const F>(offset)[2 * i], data<const F>(offset_std)[2 * i]};
      const End<F> end{at + data<const F>(offset)[2 * i + 1], data<const F>(offset_std)[2 * i + 1]};
      const End<F> new_start = fuse(start, of(starts, i / count), sigmas), new_end = fuse(end, of(ends, i / count), sigmas);
      const bool ordered = new_end.place > new_start.place;  // ends that cross over would lose the segment
      data<F>(segments)[2 * i] = ordered ? new_start.place : start.place;
      data<F>(segments)[2 * i + 1] = ordered ? new_end.place : end.place;
      data<F>(std)[2 * i] = ordered ? new_start.std : start.std;
      data<F>(std)[2 * i + 1] = ordered ? new_end.std : end.std;
    }
  });
}

std::vector<Tensor> checked_table(const std::vector<Tensor>& table, const Tensor& position, const char* name) {
  if (table.empty()) return {};
  STD_TORCH_CHECK(table.size() == 3, name, ": expected position, standard error and count, or nothing");
  for (int i = 0; i < 2; ++i)
    STD_TORCH_CHECK(
        table[i].dim() == 2 && table[i].size(0) == position.size(0) && table[i].size(1) == table[0].size(1) &&
            table[i].scalar_type() == position.scalar_type(),
        name, ": expected [R, K] in the dtype of position");
  STD_TORCH_CHECK(
      table[2].dim() == 1 && table[2].size(0) == position.size(0) && table[2].scalar_type() == ScalarType::Long, name,
      ": expected counts int64 [R]");
  return {torch::stable::contiguous(table[0]), torch::stable::contiguous(table[1]), torch::stable::contiguous(table[2])};
}

std::tuple<Tensor, Tensor> decode_segments(
    Tensor position, Tensor offset, Tensor offset_std, std::vector<Tensor> starts, std::vector<Tensor> ends,
    double snap_sigmas) {
  STD_TORCH_CHECK(position.dim() == 2, "position: expected [R, N]");
  for (const Tensor* x : {&offset, &offset_std})
    STD_TORCH_CHECK(
        x->dim() == 3 && x->size(0) == position.size(0) && x->size(1) == position.size(1) && x->size(2) == 2 &&
            x->scalar_type() == position.scalar_type(),
        "offset, offset_std: expected [R, N, 2] in the dtype of position");
  starts = checked_table(starts, position, "starts"), ends = checked_table(ends, position, "ends");
  position = torch::stable::contiguous(position), offset = torch::stable::contiguous(offset);
  offset_std = torch::stable::contiguous(offset_std);
  const auto like = [&] { return torch::stable::new_empty(offset, {offset.size(0), offset.size(1), 2}, offset.scalar_type()); };
  const Tensor segments = like(), std = like();
  if (position.scalar_type() == ScalarType::Float) {
    run<float>(position, offset, offset_std, starts, ends, snap_sigmas, segments, std);
  } else {
    STD_TORCH_CHECK(position.scalar_type() == ScalarType::Double, "position: expected float32 or float64");
    run<double>(position, offset, offset_std, starts, ends, snap_sigmas, segments, std);
  }
  return {segments, std};
}

}  // namespace
}  // namespace tzn

STABLE_TORCH_LIBRARY_FRAGMENT(tzn_native, m) {
  m.def(
      "decode_segments(Tensor position, Tensor offset, Tensor offset_std, Tensor[] starts, Tensor[] ends, "
      "float snap_sigmas) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tzn_native, CPU, m) { m.impl("decode_segments", TORCH_BOX(&tzn::decode_segments)); }
