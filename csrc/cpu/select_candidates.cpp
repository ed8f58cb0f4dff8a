// Candidates from class probabilities: what tzn/reference/select_candidates.py defines.
#include "common.h"

#include <algorithm>
#include <map>
#include <vector>

namespace tzn {
namespace {

template <typename F> struct Entry {
  F score;
  int64_t index;  // point * C + label

  bool operator<(const Entry& other) const {  // better first; of equal scores the earlier
    return score > other.score || (score == other.score && index < other.index);
  }
};

template <typename F>
std::tuple<Tensor, Tensor, Tensor> run_select(
    const Tensor& scores, const Tensor& level, double min_score, int64_t topk) {
  const int64_t points = scores.size(0), classes = scores.size(1);
  const F *score = data<const F>(scores), lowest = static_cast<F>(min_score);
  const auto* of_point = data<const int64_t>(level);
  std::map<int64_t, std::vector<Entry<F>>> levels;
  std::vector<Entry<F>>* entries = nullptr;
  for (int64_t p = 0; p < points; ++p) {
    if (p == 0 || of_point[p] != of_point[p - 1]) entries = &levels[of_point[p]];
    for (int64_t i = p * classes; i < (p + 1) * classes; ++i)
      if (score[i] > lowest) entries->push_back({score[i], i});
  }
  std::vector<std::vector<Entry<F>>*> rows;
  for (auto& item : levels) rows.push_back(&item.second);
  torch::stable::parallel_for(0, static_cast<int64_t>(rows.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      std::vector<Entry<F>>& row = *rows[r];
      if (static_cast<int64_t>(row.size()) > topk) {
        std::nth_element(row.begin(), row.begin() + topk, row.end());
        row.resize(topk);
      }
      std::sort(row.begin(), row.end());
    }
  });
  int64_t count = 0;
  for (const auto* row : rows) count += static_cast<int64_t>(row->size());
  Tensor point = empty_long(scores, count), label = empty_long(scores, count);
  Tensor value = torch::stable::new_empty(scores, {count}, scores.scalar_type());
  int64_t n = 0;
  for (const auto* row : rows)
    for (const Entry<F>& entry : *row) {
      data<int64_t>(point)[n] = entry.index / classes;
      data<int64_t>(label)[n] = entry.index % classes;
      data<F>(value)[n++] = entry.score;
    }
  return {point, label, value};
}

std::tuple<Tensor, Tensor, Tensor> select_candidates(Tensor scores, Tensor level, double min_score, int64_t topk) {
  STD_TORCH_CHECK(scores.dim() == 2, "scores: expected [P, C]");
  STD_TORCH_CHECK(
      level.dim() == 1 && level.size(0) == scores.size(0) && level.scalar_type() == ScalarType::Long,
      "level: expected int64 [P]");
  scores = torch::stable::contiguous(scores);
  level = torch::stable::contiguous(level);
  topk = std::max<int64_t>(topk, 0);
  if (scores.scalar_type() == ScalarType::Float) return run_select<float>(scores, level, min_score, topk);
  STD_TORCH_CHECK(scores.scalar_type() == ScalarType::Double, "scores: expected float32 or float64");
  return run_select<double>(scores, level, min_score, topk);
}

}  // namespace
}  // namespace tzn

STABLE_TORCH_LIBRARY_FRAGMENT(tzn_native, m) {
  m.def("select_candidates(Tensor scores, Tensor level, float min_score, int topk) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tzn_native, CPU, m) {
  m.impl("select_candidates", TORCH_BOX(&tzn::select_candidates));
}
