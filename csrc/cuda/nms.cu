// Batched suppression on CUDA: tzn_native::suppress_groups, whose definition is in csrc/cpu/nms.cpp.
//
// Nothing is read back: grids follow from the capacities, counts stay on the device, so a CUDA graph can capture the call.
#include "../suppress_groups.h"
#include "suppress_group.cuh"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <cuda_runtime.h>

namespace tzn {
namespace {

constexpr int PLACE_BYTES = 4 * sizeof(float), MOST_THREADS = 1024;
// Without asking for more a block has 48 KB; a little of that is the workspace's.
constexpr int DEFAULT_PLACES = (48 * 1024 - 1024) / PLACE_BYTES;
static_assert(sizeof(Workspace) <= 1024);

template <Method method>
__global__ void __launch_bounds__(MOST_THREADS, 1) suppress_groups_kernel(
    Candidates candidates, Picks picks, Decay<float> decay, int shared_places, float* table, int64_t table_places) {
  extern __shared__ float members[];
  __shared__ Workspace work;
  suppress_group<method>(candidates, picks, decay, members, shared_places, table, table_places, work, blockIdx.x);
}

using Kernel = void (*)(Candidates, Picks, Decay<float>, int, float*, int64_t);

Kernel kernel_of(Method method) {
  switch (method) {
    case Method::gaussian: return suppress_groups_kernel<Method::gaussian>;
    case Method::linear: return suppress_groups_kernel<Method::linear>;
    case Method::zero: return suppress_groups_kernel<Method::zero>;
    case Method::remove: return suppress_groups_kernel<Method::remove>;
    default: return suppress_groups_kernel<Method::remove_distant>;
  }
}

// A single group gets what the device has; several groups share the candidates, and the multiprocessors several blocks.
int places_in_shared(const GroupArguments& given, int device) {
  int most = DEFAULT_PLACES;
  if (given.groups == 1 && given.number > most) {
    int bytes = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    most = std::max(most, (bytes - 1024) / PLACE_BYTES);
  }
  return static_cast<int>(std::min<int64_t>(given.number, most));
}

std::tuple<GroupTensor, GroupTensor, GroupTensor> suppress_groups(
    GroupTensor segments, GroupTensor scores, std::optional<GroupTensor> labels, std::optional<GroupTensor> counts,
    int64_t groups, int64_t capacity, int64_t method, double iou_threshold, double sigma, double min_score,
    double above) {
  STD_TORCH_CHECK(scores.is_cuda(), "scores: expected on a CUDA device");
  const int device = scores.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const GroupArguments given(segments, scores, labels, counts, groups, capacity, method);
  const int64_t rows = given.recordings * given.groups;
  if (rows == 0) return {given.index, given.score, given.made};

  const int places = places_in_shared(given, device);
  const int64_t table_places = given.number > places ? given.recordings * given.number : 0;
  const GroupTensor table =
      torch::stable::new_empty(given.scores, {4 * table_places}, torch::headeronly::ScalarType::Float);
  const Candidates candidates{given.segment_data(), given.score_data(), given.label_data(), given.count_data(),
                              static_cast<int>(given.number), static_cast<int>(given.groups), static_cast<float>(above)};
  const Picks picks{given.index_out(), given.score_out(), given.made_out(), static_cast<int>(given.capacity)};
  const Decay<float> decay{static_cast<Method>(method), static_cast<float>(iou_threshold), static_cast<float>(sigma),
                           static_cast<float>(min_score)};
  const Kernel kernel = kernel_of(decay.method);
  const int bytes = places * PLACE_BYTES;
  if (places > DEFAULT_PLACES)
    STD_CUDA_CHECK(cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  // A pick waits for a barrier of the block: no more warps than members keep busy. One class of many has a share of them.
  const int64_t members = given.number / given.groups;
  const int threads = members > 4096 ? MOST_THREADS : given.number > 256 ? 256 : 64;
  kernel<<<static_cast<unsigned>(rows), threads, bytes, static_cast<cudaStream_t>(stream)>>>(
      candidates, picks, decay, places, static_cast<float*>(table.data_ptr()), table_places);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {given.index, given.score, given.made};
}

}  // namespace
}  // namespace tzn

STABLE_TORCH_LIBRARY_IMPL(tzn_native, CUDA, m) { m.impl("suppress_groups", TORCH_BOX(&tzn::suppress_groups)); }
