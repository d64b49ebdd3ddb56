// Arithmetic and comparisons of the coarse pass.
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
FASTVQ_INLINE Mask greater(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
FASTVQ_INLINE Mask at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
FASTVQ_INLINE Ints select(Mask mask, Ints yes, Ints no) {
  return (Ints)_mm512_mask_mov_epi32((__m512i)no, mask, (__m512i)yes);
}
FASTVQ_INLINE uint32_t bits(Mask mask) { return mask; }
FASTVQ_INLINE Floats square_root(Floats a) { return _mm512_sqrt_ps(a); }

#else

using Mask = Ints;
FASTVQ_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
FASTVQ_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }
FASTVQ_INLINE Floats minimum(Floats a, Floats b) { return a < b ? a : b; }
FASTVQ_INLINE Mask greater(Floats a, Floats b) { return a > b; }
FASTVQ_INLINE Mask at_least(Floats a, Floats b) { return a >= b; }
FASTVQ_INLINE Ints select(Mask mask, Ints yes, Ints no) { return mask ? yes : no; }
FASTVQ_INLINE uint32_t bits(Mask mask) {
  uint32_t result = 0;
  for (int lane = 0; lane < LANES; ++lane) result |= static_cast<uint32_t>(mask[lane] & 1) << lane;
  return result;
}
FASTVQ_INLINE Floats square_root(Floats a) {
  for (int lane = 0; lane < LANES; ++lane) a[lane] = __builtin_sqrtf(a[lane]);
  return a;
}

#endif

FASTVQ_INLINE Floats magnitude(Floats a) { return maximum(a, -a); }

}  // namespace fastvq::cpu::FASTVQ_ISA
