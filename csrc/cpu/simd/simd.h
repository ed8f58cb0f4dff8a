// Vectors of one instruction set in namespace tzn::TZN_LEVEL; included by simd_levels.h once per level, so no guard.
//
// Element types: float, BFloat16 and Half compute in float; double in double.

namespace tzn {
namespace TZN_LEVEL {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <typename F> struct Vector;
template <> struct Vector<float> {
  typedef float type __attribute__((vector_size(TZN_VECTOR_BYTES)));
  typedef int32_t integer __attribute__((vector_size(TZN_VECTOR_BYTES)));
};
template <> struct Vector<double> {
  typedef double type __attribute__((vector_size(TZN_VECTOR_BYTES)));
  typedef int64_t integer __attribute__((vector_size(TZN_VECTOR_BYTES)));
};
template <typename F> using Vec = typename Vector<F>::type;
template <typename F> using IntVec = typename Vector<F>::integer;
template <typename F> constexpr int LANES = TZN_VECTOR_BYTES / sizeof(F);

template <typename F> TZN_INLINE Vec<F> load(const F* from) {
  Vec<F> x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}
template <typename F> TZN_INLINE void store(F* to, Vec<F> x) { __builtin_memcpy(to, &x, sizeof x); }
template <typename F> TZN_INLINE Vec<F> splat(F x) { return x - Vec<F>{}; }
template <typename F> TZN_INLINE IntVec<F> lane_index() {
  IntVec<F> index;
  for (int i = 0; i < LANES<F>; ++i) index[i] = i;
  return index;
}

// Lane `i` of the low (or, with `upper`, high) partner in one level of the transposing sum below. Within 16-byte lanes
// the partners interleave, across them each takes every second lane: single instructions on every x86 level.
template <typename F, int distance> constexpr int partner(int i, bool upper) {
  constexpr int lanes = LANES<F>, quad = 16 / sizeof(F);
  if (distance == 0)  // interleave inside a 16-byte lane: {x0, y0, x1, y1} and {x2, y2, x3, y3}
    return i / quad * quad + (upper ? quad / 2 : 0) + i % quad / 2 + (i % 2) * lanes;
  if (distance == 1)  // halves of a 16-byte lane: {x0, x1, y0, y1} and {x2, x3, y2, y3}
    return i / quad * quad + (upper ? quad / 2 : 0) + i % (quad / 2) + (i % quad >= quad / 2 ? lanes : 0);
  const int lane = i / quad, count = lanes / quad;  // 16-byte lanes: even ones, odd ones
  return (lane % (count / 2) * 2 + (upper ? 1 : 0)) * quad + i % quad + (lane >= count / 2 ? lanes : 0);
}

template <typename F, int distance, int... i>
TZN_INLINE Vec<F> fold(Vec<F> x, Vec<F> y, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(x, y, partner<F, distance>(i, false)...) +
         __builtin_shufflevector(x, y, partner<F, distance>(i, true)...);
}

template <typename F, int distance, int count> TZN_INLINE void fold_all(Vec<F>* x) {
#pragma GCC unroll 16
  for (int i = 0; i < count; ++i)
    x[i] = fold<F, distance>(x[2 * i], x[2 * i + 1], std::make_integer_sequence<int, LANES<F>>());
}

// Lane i of the result is the sum over the lanes of x[i], for as many vectors as a vector has lanes; x is overwritten.
template <typename F> TZN_INLINE Vec<F> sums_of(Vec<F>* x) {
  constexpr int lanes = LANES<F>, quad = 16 / sizeof(F);
  fold_all<F, 0, lanes / 2>(x);
  if constexpr (quad == 4) fold_all<F, 1, lanes / 4>(x);
  if constexpr (lanes / quad >= 2) fold_all<F, 2, lanes / quad / 2>(x);
  if constexpr (lanes / quad >= 4) fold_all<F, 2, lanes / quad / 4>(x);
  return x[0];
}

// Every lane with its partner `distance` lanes away.
template <typename F, int distance, int... i>
TZN_INLINE Vec<F> partners(Vec<F> x, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(x, x, (i ^ distance)...);
}

// Sum, or maximum, over the lanes of a vector; a tree.
template <typename F, int distance = LANES<F> / 2> TZN_INLINE F sum(Vec<F> x) {
  x += partners<F, distance>(x, std::make_integer_sequence<int, LANES<F>>());
  if constexpr (distance > 1) return sum<F, distance / 2>(x);
  return x[0];
}

template <typename F> TZN_INLINE Vec<F> larger(Vec<F> x, Vec<F> y) { return x > y ? x : y; }
template <typename F, int distance = LANES<F> / 2> TZN_INLINE F highest(Vec<F> x) {
  x = larger<F>(x, partners<F, distance>(x, std::make_integer_sequence<int, LANES<F>>()));
  if constexpr (distance > 1) return highest<F, distance / 2>(x);
  return x[0];
}

// exp(x) for x <= 0, at most 2 units in the last place off; NaN stays NaN; results below the normal range are 0.
TZN_INLINE Vec<float> exp_negative(Vec<float> x) {
  using V = Vec<float>;
  using I = IntVec<float>;
  const V lowest = splat(-87.33654f);
  const V clamped = x < lowest ? lowest : x;
  const V shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const V rounded = clamped * 1.44269504088896341f + shifter;
  const V n = rounded - shifter;
  const V r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  I exponent, bits;
  __builtin_memcpy(&exponent, &rounded, sizeof exponent);
  __builtin_memcpy(&bits, &p, sizeof bits);
  bits += exponent << 23;
  V y;
  __builtin_memcpy(&y, &bits, sizeof y);
  y = x < lowest ? V{} : y;
  return x != x ? x : y;
}

TZN_INLINE Vec<double> exp_negative(Vec<double> x) {
  for (int i = 0; i < LANES<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// Element conversion of whole rows; the loops become vector code.
TZN_INLINE void widen(const float* from, float* to, int64_t count) { std::memcpy(to, from, count * sizeof(float)); }
TZN_INLINE void widen(const double* from, double* to, int64_t count) { std::memcpy(to, from, count * sizeof(double)); }
TZN_INLINE void widen(const BFloat16* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i].x) << 16;
    __builtin_memcpy(to + i, &bits, 4);
  }
}
TZN_INLINE void widen(const Half* from, float* to, int64_t count) {
  int64_t i = 0;
#if TZN_VECTOR_BYTES >= 32
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
  for (; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

TZN_INLINE void narrow(const float* from, float* to, int64_t count) { std::memcpy(to, from, count * sizeof(float)); }
TZN_INLINE void narrow(const double* from, double* to, int64_t count) { std::memcpy(to, from, count * sizeof(double)); }
TZN_INLINE void narrow(const float* from, BFloat16* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, from + i, 4);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    to[i].x = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
}
TZN_INLINE void narrow(const float* from, Half* to, int64_t count) {
  int64_t i = 0;
#if TZN_VECTOR_BYTES >= 32
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < count; ++i) to[i] = Half(from[i]);
}

}  // namespace TZN_LEVEL
}  // namespace tzn
