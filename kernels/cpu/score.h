// Arithmetic and comparisons of the coarse passes.
//
// AVX-512 takes intrinsics, since its comparisons live in mask registers and GCC 12 keeps the operands of the vector
// extension's version on the stack (half the speed). The other instruction sets take the vector extension; files
// that include this are compiled with -ffp-contract=fast, so that a * b + c becomes one instruction where there is
// one.
#pragma once

#include "simd.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fastvq::cpu::FASTVQ_ISA {

#if defined(__AVX512F__)

using Mask = __mmask16;
FASTVQ_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
FASTVQ_INLINE Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }
FASTVQ_INLINE Floats minimum(Floats a, Floats b) { return _mm512_min_ps(a, b); }
FASTVQ_INLINE Ints maximum(Ints a, Ints b) { return (Ints)_mm512_max_epi32((__m512i)a, (__m512i)b); }
FASTVQ_INLINE Mask greater(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
FASTVQ_INLINE Mask at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
FASTVQ_INLINE Ints select(Mask mask, Ints yes, Ints no) {
  return (Ints)_mm512_mask_mov_epi32((__m512i)no, mask, (__m512i)yes);
}
FASTVQ_INLINE uint32_t bits(Mask mask) { return mask; }
FASTVQ_INLINE Floats square_root(Floats a) { return _mm512_sqrt_ps(a); }
FASTVQ_INLINE float sum(Floats a) { return _mm512_reduce_add_ps(a); }
FASTVQ_INLINE float largest(Floats a) { return _mm512_reduce_max_ps(a); }

FASTVQ_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
FASTVQ_INLINE Doubles maximum(Doubles a, Doubles b) { return _mm512_max_pd(a, b); }
FASTVQ_INLINE uint32_t at_least(Doubles a, Doubles b) { return _mm512_cmp_pd_mask(a, b, _CMP_GE_OQ); }
FASTVQ_INLINE double largest(Doubles a) { return _mm512_reduce_max_pd(a); }
FASTVQ_INLINE double sum(Doubles a) { return _mm512_reduce_add_pd(a); }
FASTVQ_INLINE Doubles low(Floats a) { return _mm512_cvtps_pd(_mm512_castps512_ps256(a)); }
FASTVQ_INLINE Doubles high(Floats a) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)); }

// The first `count` of LANES values, then zeros; reads no further.
FASTVQ_INLINE Floats load_part(const float* from, int64_t count) {
  if (count >= LANES) return load<Floats>(from);
  return _mm512_maskz_loadu_ps(static_cast<Mask>((1u << count) - 1), from);
}

#else

using Mask = Ints;
FASTVQ_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
FASTVQ_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }
FASTVQ_INLINE Floats minimum(Floats a, Floats b) { return a < b ? a : b; }
FASTVQ_INLINE Ints maximum(Ints a, Ints b) { return a > b ? a : b; }
FASTVQ_INLINE Mask greater(Floats a, Floats b) { return a > b; }
FASTVQ_INLINE Mask at_least(Floats a, Floats b) { return a >= b; }
FASTVQ_INLINE Ints select(Mask mask, Ints yes, Ints no) { return mask ? yes : no; }
FASTVQ_INLINE uint32_t bits(Mask mask) {
#if defined(__AVX__)
  return static_cast<uint32_t>(__builtin_ia32_movmskps256((Floats)mask));
#elif defined(__SSE__)
  return static_cast<uint32_t>(__builtin_ia32_movmskps((Floats)mask));
#else
  uint32_t result = 0;
  for (int lane = 0; lane < LANES; ++lane) result |= static_cast<uint32_t>(mask[lane] & 1) << lane;
  return result;
#endif
}
FASTVQ_INLINE Floats square_root(Floats a) {
  for (int lane = 0; lane < LANES; ++lane) a[lane] = __builtin_sqrtf(a[lane]);
  return a;
}
FASTVQ_INLINE float sum(Floats a) {
  float result = a[0];
  for (int lane = 1; lane < LANES; ++lane) result += a[lane];
  return result;
}
FASTVQ_INLINE float largest(Floats a) {
  float result = a[0];
  for (int lane = 1; lane < LANES; ++lane) result = a[lane] > result ? a[lane] : result;
  return result;
}

FASTVQ_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) { return a * b + c; }
FASTVQ_INLINE Doubles maximum(Doubles a, Doubles b) { return a > b ? a : b; }
FASTVQ_INLINE uint32_t at_least(Doubles a, Doubles b) {
  uint32_t result = 0;
  for (int lane = 0; lane < LANES / 2; ++lane) result |= static_cast<uint32_t>(a[lane] >= b[lane]) << lane;
  return result;
}
FASTVQ_INLINE double largest(Doubles a) {
  double result = a[0];
  for (int lane = 1; lane < LANES / 2; ++lane) result = a[lane] > result ? a[lane] : result;
  return result;
}
FASTVQ_INLINE double sum(Doubles a) {
  double result = a[0];
  for (int lane = 1; lane < LANES / 2; ++lane) result += a[lane];
  return result;
}
FASTVQ_INLINE Doubles half(Floats a, int which) {
  HalfFloats halves[2];
  std::memcpy(halves, &a, sizeof a);
  return __builtin_convertvector(halves[which], Doubles);
}
FASTVQ_INLINE Doubles low(Floats a) { return half(a, 0); }
FASTVQ_INLINE Doubles high(Floats a) { return half(a, 1); }

FASTVQ_INLINE Floats load_part(const float* from, int64_t count) {
  if (count >= LANES) return load<Floats>(from);
  Floats value{};
  for (int lane = 0; lane < count; ++lane) value[lane] = from[lane];
  return value;
}

#endif

FASTVQ_INLINE Floats magnitude(Floats a) { return maximum(a, -a); }

}  // namespace fastvq::cpu::FASTVQ_ISA
