// The CUDA kernel of csrc/cuda/suppress_group.cuh on the host, block after block; called by test_nms.py through ctypes.
#include "emulation.h"
// Needs the names above.
#include "../../csrc/cuda/suppress_group.cuh"

namespace {

#ifdef TZN_EMULATE_WITHOUT_BARRIERS
constexpr int UNWRITTEN = 0;  // wrong results are wanted, not addresses that do not exist
#else
constexpr int UNWRITTEN = 0xa5;
#endif

template <tzn::Method method>
void suppress_all(
    const tzn::Candidates& candidates, const tzn::Picks& picks, const tzn::Decay<float>& decay, int64_t recordings,
    int shared_places, unsigned threads, unsigned seed) {
  const int64_t table_places = recordings * candidates.number;
  std::vector<float> table(4 * table_places, NAN);
  for (int64_t row = 0; row < recordings * candidates.groups; ++row) {
    std::vector<float> shared(4 * shared_places, NAN);  // what nobody has written is no number
    tzn::Workspace work;
    std::memset(&work, UNWRITTEN, sizeof work);
    emulation::run(threads, seed + static_cast<unsigned>(row), [&] {
      tzn::suppress_group<method>(
          candidates, picks, decay, shared.data(), shared_places, table.data(), table_places, work, row);
    });
  }
}

}  // namespace

extern "C" void suppress_groups(
    const float* segments, const float* scores, const int* labels, const int64_t* counts, int64_t recordings,
    int64_t number, int64_t groups, int64_t capacity, int64_t method, float iou_threshold, float sigma, float min_score,
    float above, int64_t shared_places, int64_t threads, int64_t seed, int* index, float* score, int* count) {
  const tzn::Candidates candidates{segments, scores, labels, counts, static_cast<int>(number), static_cast<int>(groups),
                                   above};
  const tzn::Picks picks{index, score, count, static_cast<int>(capacity)};
  const tzn::Decay<float> decay{static_cast<tzn::Method>(method), iou_threshold, sigma, min_score};
  const auto run = [&](auto suppress) {
    suppress(candidates, picks, decay, recordings, static_cast<int>(shared_places), static_cast<unsigned>(threads),
             static_cast<unsigned>(seed));
  };
  switch (decay.method) {
    case tzn::Method::gaussian: run(suppress_all<tzn::Method::gaussian>); break;
    case tzn::Method::linear: run(suppress_all<tzn::Method::linear>); break;
    case tzn::Method::zero: run(suppress_all<tzn::Method::zero>); break;
    case tzn::Method::remove: run(suppress_all<tzn::Method::remove>); break;
    default: run(suppress_all<tzn::Method::remove_distant>);
  }
}
