// What a pick does to the score of another candidate: one arithmetic, in the reference's order (tzn/reference/nms.py), for
// the CPU kernels, the CUDA kernel and its emulation on the host. No products are fused into sums where it matters: nvcc
// compiles it with -fmad=false, and the CPU's rule outside of exp has no product that is added.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __CUDACC__
#define TZN_RULE __host__ __device__ __forceinline__
#else
#define TZN_RULE inline __attribute__((always_inline))
#endif

namespace tzn {

// remove: by IoU; remove_distant: by IoU less the squared distance of the centres over the length of the hull (DIoU).
enum class Method : int64_t { gaussian, linear, zero, remove, remove_distant };

template <typename F> struct Decay {
  Method method;
  F iou_threshold, sigma, min_score;
};

template <typename F> constexpr F LOWEST = -std::numeric_limits<F>::infinity();
template <typename F> constexpr F LENGTH_EPS = static_cast<F>(1e-6);  // added to every length

// exp(t) for t <= 0 as the reference computes it: in double, then rounded. The polynomial (Taylor, after taking out a
// power of two) is good to 1e-16, so that both round to the same float; it is plain code that compilers vectorise.
TZN_RULE float exp_rounded(float t) {
  const double x = t < -110.0f ? -110.0 : static_cast<double>(t);  // below, the float is 0 all the same
  const double shifter = 6755399441055744.0;                       // 1.5 * 2^52: adding it rounds to an integer
  const double rounded = x * 1.4426950408889634 + shifter, n = rounded - shifter;
  const double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  int64_t bits, exponent;
  std::memcpy(&bits, &p, 8);
  std::memcpy(&exponent, &rounded, 8);
  bits += exponent << 52;
  std::memcpy(&p, &bits, 8);
  return static_cast<float>(p);
}
TZN_RULE double exp_rounded(double t) { return std::exp2(t * 1.4426950408889634); }

template <typename F> struct Picked {
  F start, end, length;  // length with LENGTH_EPS
};

// The score of a candidate after a pick; LOWEST: removed, and what is removed stays so, whatever 0 * inf makes of it.
template <Method method, typename F>
TZN_RULE F decayed(F score, F start, F end, F length, const Picked<F>& picked, const Decay<F>& decay) {
  const F low = start > picked.start ? start : picked.start, high = end < picked.end ? end : picked.end;
  F overlap = high - low > F(0) ? high - low : F(0);
  overlap = overlap / ((picked.length + length) - overlap);
  if constexpr (method == Method::remove_distant) {
    const F first = start < picked.start ? start : picked.start, last = end > picked.end ? end : picked.end;
    const F apart = (((start + end) - (picked.start + picked.end)) * F(0.5)) / ((last - first) + LENGTH_EPS<F>);
    const F penalty = apart * apart;
    overlap = overlap - penalty;
  }
  F next = score;
  if constexpr (method == Method::gaussian) {
    next = next * exp_rounded(-(overlap * overlap) / decay.sigma);
  } else if constexpr (method == Method::linear) {
    next = overlap >= decay.iou_threshold ? next * (F(1) - overlap) : next;
  } else if constexpr (method == Method::zero) {
    next = overlap >= decay.iou_threshold ? next * F(0) : next;
  } else {
    next = overlap >= decay.iou_threshold ? LOWEST<F> : next;
  }
  if constexpr (method != Method::remove && method != Method::remove_distant) next = next < decay.min_score ? LOWEST<F> : next;
  return score == LOWEST<F> ? LOWEST<F> : next;
}

// Whether a pick can change the score of a candidate that it does not overlap: only where a threshold of 0 counts
// everything as overlapping; and at the first pick of a group, when scores below min_score go.
template <Method method, typename F> TZN_RULE bool reaches_all(bool first, const Decay<F>& decay) {
  return first || (method != Method::gaussian && decay.iou_threshold <= F(0));
}

}  // namespace tzn
