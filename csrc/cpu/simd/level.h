// Which instruction set this machine has; TZN_SIMD=portable|avx2|avx512 in the environment lowers the choice.
#pragma once

#include "../common.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define TZN_X86_LEVELS 1
#define TZN_DISPATCH(call)                                                                   \
  switch (::tzn::simd_level()) {                                                             \
    case ::tzn::SimdLevel::avx512: avx512::call; break;                                      \
    case ::tzn::SimdLevel::avx2: avx2::call; break;                                          \
    default: portable::call;                                                                 \
  }
#else
#define TZN_X86_LEVELS 0
#define TZN_DISPATCH(call) portable::call;
#endif

namespace tzn {

enum class SimdLevel { portable, avx2, avx512 };

inline SimdLevel detect_simd_level() {
  SimdLevel found = SimdLevel::portable;
#if TZN_X86_LEVELS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
    found = SimdLevel::avx2;
  if (found == SimdLevel::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    found = SimdLevel::avx512;
#endif
  const char* asked = std::getenv("TZN_SIMD");
  if (asked && !std::strcmp(asked, "portable")) found = SimdLevel::portable;
  if (asked && !std::strcmp(asked, "avx2") && found == SimdLevel::avx512) found = SimdLevel::avx2;
  return found;
}

inline SimdLevel simd_level() {
  static const SimdLevel level = detect_simd_level();
  return level;
}

}  // namespace tzn
