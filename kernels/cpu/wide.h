// Arithmetic in float64 on values that are stored as something narrower.
//
// Four at a time, even where vectors hold eight, with sums as a * 1 + b, which rounds as a + b does: Zen 4 widens 16
// bytes of float32 twice a cycle but 32 bytes once in two, in the units that add, while those that multiply and add
// would wait. To widen and add eight values costs 1.1 cycles so, and 2.0 either with the wider vectors or with
// additions.
#pragma once

#include "load.h"

#if defined(__FMA__)
#include <immintrin.h>
#endif

namespace fastvq::cpu::FASTVQ_ISA {

constexpr int WIDE = LANES >= 8 ? 4 : 2;
typedef double Wide __attribute__((vector_size(8 * WIDE)));

template <class T>
struct NarrowOf {
  typedef T type __attribute__((vector_size(WIDE * sizeof(T))));
};
template <class T>
using Narrow = typename NarrowOf<T>::type;  // as many values as Wide has

// Leaves the sums of WIDE values as what results hold.
template <class T>
FASTVQ_INLINE void store_narrow(T* to, Wide sums) {
  store(to, __builtin_convertvector(sums, Narrow<T>));
}

// The WIDE values that start at `from`.
template <class Source>
FASTVQ_INLINE Wide load_wide(const Source* from) {
  if constexpr (sizeof(Source) == 8) return load<Wide>(from);
  if constexpr (sizeof(Source) == 4) {
#if defined(__FMA__)  // by an intrinsic: GCC 12 widens the vector extension's four values in two halves
    return _mm256_cvtps_pd(load<__m128>(from));
#else
    return __builtin_convertvector(load<Narrow<float>>(from), Wide);
#endif
  }
  double values[WIDE];
  for (int d = 0; d < WIDE; ++d) values[d] = widen(from[d]);
  return load<Wide>(values);
}

FASTVQ_INLINE Wide add_wide(Wide a, Wide b) {
#if defined(__FMA__)
  return _mm256_fmadd_pd(b, _mm256_set1_pd(1), a);
#else
  return a + b;
#endif
}

FASTVQ_INLINE Wide subtract_wide(Wide a, Wide b) {
#if defined(__FMA__)
  return _mm256_fmsub_pd(a, _mm256_set1_pd(1), b);
#else
  return a - b;
#endif
}

}  // namespace fastvq::cpu::FASTVQ_ISA
