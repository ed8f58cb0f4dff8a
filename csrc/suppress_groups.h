// Arguments and results of tzn_native::suppress_groups, the same on CPU and CUDA.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>

namespace tzn {

using GroupTensor = torch::stable::Tensor;

inline void check_row(const GroupTensor& given, const GroupTensor& like, const char* name) {
  STD_TORCH_CHECK(
      given.dim() == 2 && given.size(0) == like.size(0) && given.size(1) == like.size(1), name, ": expected [R, N]");
}

// Checked, contiguous arguments and empty results.
struct GroupArguments {
  GroupTensor segments, scores;
  std::optional<GroupTensor> labels, counts;
  int64_t recordings, number, groups, capacity;
  GroupTensor index, score, made;

  GroupArguments(
      const GroupTensor& segments_, const GroupTensor& scores_, const std::optional<GroupTensor>& labels_,
      const std::optional<GroupTensor>& counts_, int64_t groups_, int64_t capacity_, int64_t method)
      : segments(checked(segments_, scores_)), scores(torch::stable::contiguous(scores_)), recordings(scores.size(0)),
        number(scores.size(1)), groups(groups_), capacity(capacity_) {
    using torch::headeronly::ScalarType;
    STD_TORCH_CHECK(method >= 0 && method <= 4, "method: expected 0 to 4, got ", method);
    STD_TORCH_CHECK(groups >= 1 && capacity >= 0, "groups, capacity: expected at least 1 and 0");
    constexpr int64_t most = std::numeric_limits<int32_t>::max();
    STD_TORCH_CHECK(
        number < most / 2 && groups < most && capacity < most && recordings <= most / groups,
        "more candidates, groups or rows than 32 bits count");
    const auto same_device = [&](const GroupTensor& given) {
      return given.is_cuda() == scores.is_cuda() && (!given.is_cuda() || given.get_device_index() == scores.get_device_index());
    };
    if (labels_) {
      check_row(*labels_, scores, "labels");
      STD_TORCH_CHECK(labels_->scalar_type() == ScalarType::Int, "labels: expected int32");
      STD_TORCH_CHECK(same_device(*labels_), "labels: expected on the device of scores");
      labels = torch::stable::contiguous(*labels_);
    }
    if (counts_) {
      STD_TORCH_CHECK(
          counts_->dim() == 1 && counts_->size(0) == recordings && counts_->scalar_type() == ScalarType::Long,
          "counts: expected [R] int64");
      STD_TORCH_CHECK(same_device(*counts_), "counts: expected on the device of scores");
      counts = torch::stable::contiguous(*counts_);
    }
    STD_TORCH_CHECK(same_device(segments), "segments: expected on the device of scores");
    index = torch::stable::new_empty(scores, {recordings, groups, capacity}, ScalarType::Int);
    score = torch::stable::new_empty(scores, {recordings, groups, capacity}, ScalarType::Float);
    made = torch::stable::new_empty(scores, {recordings, groups}, ScalarType::Int);
  }

  const float* segment_data() const { return static_cast<const float*>(segments.data_ptr()); }
  const float* score_data() const { return static_cast<const float*>(scores.data_ptr()); }
  const int* label_data() const { return labels ? static_cast<const int*>(labels->data_ptr()) : nullptr; }
  const int64_t* count_data() const { return counts ? static_cast<const int64_t*>(counts->data_ptr()) : nullptr; }
  int* index_out() const { return static_cast<int*>(index.data_ptr()); }
  float* score_out() const { return static_cast<float*>(score.data_ptr()); }
  int* made_out() const { return static_cast<int*>(made.data_ptr()); }

 private:
  static GroupTensor checked(const GroupTensor& segments, const GroupTensor& scores) {
    using torch::headeronly::ScalarType;
    STD_TORCH_CHECK(segments.dim() == 3 && segments.size(2) == 2, "segments: expected [R, N, 2]");
    check_row(scores, scores, "scores");
    STD_TORCH_CHECK(
        scores.size(0) == segments.size(0) && scores.size(1) == segments.size(1), "scores: expected [R, N]");
    STD_TORCH_CHECK(
        segments.scalar_type() == ScalarType::Float && scores.scalar_type() == ScalarType::Float,
        "segments, scores: expected float32");
    return torch::stable::contiguous(segments);
  }
};

}  // namespace tzn
