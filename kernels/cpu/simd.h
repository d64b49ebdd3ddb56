// Float vectors as wide as the instruction set this file is compiled for.
//
// One spelling serves all: GCC's vector extension, which a compiler maps on SSE, AVX2 or NEON. Everything here has
// internal linkage or lives in the namespace of its instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "common.h"

namespace fastvq::cpu::FASTVQ_ISA {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef double Doubles __attribute__((vector_size(4 * LANES)));
typedef int64_t Longs __attribute__((vector_size(4 * LANES)));
typedef float Quad __attribute__((vector_size(16)));

template <class Vector, class T>
FASTVQ_INLINE Vector load(const T* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class Vector, class T>
FASTVQ_INLINE void store(T* to, Vector value) {
  std::memcpy(to, &value, sizeof value);
}

FASTVQ_INLINE Floats splat(float value) { return value - Floats{}; }
FASTVQ_INLINE Ints splat(int32_t value) { return value + Ints{}; }
FASTVQ_INLINE Doubles splat(double value) { return value - Doubles{}; }
FASTVQ_INLINE Longs splat(int64_t value) { return value + Longs{}; }

FASTVQ_INLINE float largest(Floats values) {
  float result = values[0];
  for (int lane = 1; lane < LANES; ++lane) result = values[lane] > result ? values[lane] : result;
  return result;
}

// Four rows of four become four columns of four.
FASTVQ_INLINE void transpose(Quad (&q)[4]) {
#if defined(__clang__) || __GNUC__ >= 12
  const Quad a = __builtin_shufflevector(q[0], q[1], 0, 4, 1, 5), b = __builtin_shufflevector(q[2], q[3], 0, 4, 1, 5);
  const Quad c = __builtin_shufflevector(q[0], q[1], 2, 6, 3, 7), d = __builtin_shufflevector(q[2], q[3], 2, 6, 3, 7);
  q[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  q[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  q[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  q[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
#else
  for (int i = 0; i < 4; ++i)
    for (int j = i + 1; j < 4; ++j) {
      const float swapped = q[i][j];
      q[i][j] = q[j][i];
      q[j][i] = swapped;
    }
#endif
}

}  // namespace fastvq::cpu::FASTVQ_ISA
