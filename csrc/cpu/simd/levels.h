// Compiles the file TZN_KERNELS once per instruction set, each copy in a namespace of its own, and picks one at run time.
//
//   #define TZN_KERNELS "layer_norm_kernels.h"
//   #include "simd/levels.h"
//   ... TZN_DISPATCH(function<T>(arguments));   // tzn::avx512::function, tzn::avx2::function or tzn::portable::function
//
// target_clones would not do: GCC breaks explicit vectors down to the base instruction set before it clones a function.
#include "level.h"

#if TZN_X86_LEVELS
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define TZN_LEVEL avx512
#define TZN_VECTOR_BYTES 64
#include "simd.h"
#include TZN_KERNELS
#undef TZN_LEVEL
#undef TZN_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define TZN_LEVEL avx2
#define TZN_VECTOR_BYTES 32
#include "simd.h"
#include TZN_KERNELS
#undef TZN_LEVEL
#undef TZN_VECTOR_BYTES
#pragma GCC pop_options
#endif

// What every CPU of an architecture has: SSE2 on x86-64, NEON on arm64.
#define TZN_LEVEL portable
#define TZN_VECTOR_BYTES 16
#include "simd.h"
#include TZN_KERNELS
#undef TZN_LEVEL
#undef TZN_VECTOR_BYTES
