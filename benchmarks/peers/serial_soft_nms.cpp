// Soft-NMS as the original's serial loop goes, written anew: each pick scans all that is left, twice.
#include <algorithm>
#include <cmath>
#include <cstdint>

// segments [n, 2] and scores [n] are reordered and decayed in place; returns how many are picked, best first.
extern "C" int64_t serial_soft_nms(
    float* segments, float* scores, int64_t n, float iou_threshold, float sigma, float min_score, bool gaussian) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t best = std::max_element(scores + i, scores + n) - scores;
    std::swap(scores[i], scores[best]);
    std::swap_ranges(segments + 2 * i, segments + 2 * i + 2, segments + 2 * best);
    const float start = segments[2 * i], end = segments[2 * i + 1], length = end - start + 1e-6f;
    for (int64_t j = i + 1; j < n;) {
      const float other = segments[2 * j + 1] - segments[2 * j] + 1e-6f;
      const float overlap =
          std::max(std::min(end, segments[2 * j + 1]) - std::max(start, segments[2 * j]), 0.0f);
      const float iou = overlap / (length + other - overlap);
      if (gaussian)
        scores[j] *= std::exp(-(iou * iou) / sigma);
      else if (iou >= iou_threshold)
        scores[j] *= 1.0f - iou;
      if (scores[j] < min_score) {  // the last takes its place
        --n;
        scores[j] = scores[n];
        std::copy_n(segments + 2 * n, 2, segments + 2 * j);
      } else {
        ++j;
      }
    }
  }
  return n;
}
