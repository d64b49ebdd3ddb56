// Sums in float64 of values that are stored as something narrower.
//
// Four at a time, even where vectors hold eight, and added as value * 1 + sum, which rounds as value + sum does: Zen 4
// widens 16 bytes of float32 twice a cycle but 32 bytes once in two, in the units that add, while those that multiply
// and add would wait. Eight values cost 1.1 cycles so, and 2.0 either with the wider vectors or with additions.
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

// sums + the WIDE values that start at `from`.
template <class Source>
FASTVQ_INLINE Wide add_wide(Wide sums, const Source* from) {
  if constexpr (sizeof(Source) == 4) {
#if defined(__FMA__)  // by intrinsics: GCC 12 widens the vector extension's four values in two halves
    return _mm256_fmadd_pd(_mm256_cvtps_pd(load<__m128>(from)), _mm256_set1_pd(1), sums);
#else
    return sums + __builtin_convertvector(load<Narrow<float>>(from), Wide);
#endif
  } else if constexpr (sizeof(Source) == 8) {
    return sums + load<Wide>(from);
  } else {
    double values[WIDE];
    for (int d = 0; d < WIDE; ++d) values[d] = widen(from[d]);
    return sums + load<Wide>(values);
  }
}

}  // namespace fastvq::cpu::FASTVQ_ISA
