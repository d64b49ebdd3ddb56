// Float vectors as wide as the instruction set this file is compiled for.
//
// One spelling serves all: GCC's vector extension, which a compiler maps on SSE, AVX2 or NEON. Everything here has
// internal linkage or lives in the namespace of its instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

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
typedef float HalfFloats __attribute__((vector_size(2 * LANES)));
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

#if defined(__clang__) || __GNUC__ >= 12
#define FASTVQ_SHUFFLES
#endif

// Four rows of four become four columns of four.
FASTVQ_INLINE void transpose_four(Quad (&q)[4]) {
#if defined(FASTVQ_SHUFFLES)
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

// The same for four of any type, by shuffles that stay in or swap halves.
template <class Four>
FASTVQ_INLINE void transpose_four(Four (&q)[4]) {
#if defined(FASTVQ_SHUFFLES)
  const Four a = __builtin_shufflevector(q[0], q[1], 0, 4, 2, 6), b = __builtin_shufflevector(q[0], q[1], 1, 5, 3, 7);
  const Four c = __builtin_shufflevector(q[2], q[3], 0, 4, 2, 6), d = __builtin_shufflevector(q[2], q[3], 1, 5, 3, 7);
  q[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  q[1] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  q[2] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  q[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
#else
  for (int i = 0; i < 4; ++i)
    for (int j = i + 1; j < 4; ++j) {
      const auto swapped = q[i][j];
      q[i][j] = q[j][i];
      q[j][i] = swapped;
    }
#endif
}

// Four values of a row from `d` on, zeros beyond its end.
FASTVQ_INLINE Quad load_quad(const float* row, int64_t d, int64_t dim) {
  if (d + 4 <= dim) return load<Quad>(row + d);
  Quad result{};
  for (int i = 0; d + i < dim; ++i) result[i] = row[d + i];
  return result;
}

#if defined(FASTVQ_SHUFFLES) && defined(__AVX512F__)

FASTVQ_INLINE Floats joined(HalfFloats low, HalfFloats high) {
  return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// In each part of four lanes: four rows of four become four columns of four.
FASTVQ_INLINE void transpose_parts(Floats& a, Floats& b, Floats& c, Floats& d) {
  const Floats e = __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
  const Floats f = __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  const Floats g = __builtin_shufflevector(c, d, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
  const Floats h = __builtin_shufflevector(c, d, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  a = __builtin_shufflevector(e, g, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
  b = __builtin_shufflevector(e, g, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  c = __builtin_shufflevector(f, h, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
  d = __builtin_shufflevector(f, h, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}

#endif

// LANES rows of LANES become as many columns.
#if defined(FASTVQ_SHUFFLES) && defined(__AVX512F__)
FASTVQ_INLINE void transpose(Floats (&v)[LANES]) {
  Floats w[LANES];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) transpose_parts(v[i], v[i + 1], v[i + 2], v[i + 3]);
  // v[4 r + c] holds the columns c, c + 4, c + 8, c + 12 of the rows 4 r .. 4 r + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const Floats *a = v + c, *b = v + 4 + c, *e = v + 8 + c, *f = v + 12 + c;
    w[c] = __builtin_shufflevector(*a, *b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    w[c + 4] = __builtin_shufflevector(*a, *b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    w[c + 8] = __builtin_shufflevector(*e, *f, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    w[c + 12] = __builtin_shufflevector(*e, *f, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
#pragma GCC unroll 8
  for (int c = 0; c < 8; ++c) {
    // w[c] of c < 4: columns c and c + 8 of the rows 0-3 and 4-7; of c >= 4: columns c and c + 8.
    v[c] = __builtin_shufflevector(w[c], w[c + 8], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    v[c + 8] = __builtin_shufflevector(w[c], w[c + 8], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
}
#elif defined(FASTVQ_SHUFFLES) && defined(__AVX__)
FASTVQ_INLINE void transpose(Floats (&v)[LANES]) {
  Floats w[LANES];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    w[i] = __builtin_shufflevector(v[i], v[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    w[i + 1] = __builtin_shufflevector(v[i], v[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      v[i + 2 * j] = __builtin_shufflevector(w[i + j], w[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      v[i + 2 * j + 1] = __builtin_shufflevector(w[i + j], w[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const Floats a = v[c], b = v[c + 4];
    v[c] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    v[c + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  }
}
#elif !defined(__AVX__)
FASTVQ_INLINE void transpose(Floats (&v)[LANES]) { transpose_four(v); }
#else
FASTVQ_INLINE void transpose(Floats (&v)[LANES]) {
  for (int i = 0; i < LANES; ++i)
    for (int j = i + 1; j < LANES; ++j) {
      const float swapped = v[i][j];
      v[i][j] = v[j][i];
      v[j][i] = swapped;
    }
}
#endif

// The sum of every vector, in the lane of its number. Each step folds two vectors into one: lanes whose number has the
// bit STEP become the second one's. (An integer_sequence is a type and leaves nothing to link.)
#if defined(FASTVQ_SHUFFLES)
template <int STEP, int... LANE>
FASTVQ_INLINE Floats folded(Floats a, Floats b, std::integer_sequence<int, LANE...>) {
  return __builtin_shufflevector(a, b, (LANE & STEP ? LANE + LANES : LANE)...) +
         __builtin_shufflevector(a, b, (LANE & STEP ? LANE - STEP + LANES : LANE + STEP)...);
}
template <int STEP = LANES / 2>
FASTVQ_INLINE Floats sum_each(Floats (&v)[LANES]) {
#pragma GCC unroll 8
  for (int i = 0; i < STEP; ++i)
    v[i] = folded<STEP>(v[i], v[i + STEP], std::make_integer_sequence<int, LANES>());
  if constexpr (STEP > 1) return sum_each<STEP / 2>(v);
  return v[0];
}
#else
FASTVQ_INLINE Floats sum_each(Floats (&v)[LANES]) {
  transpose(v);
  for (int i = 1; i < LANES; ++i) v[0] += v[i];
  return v[0];
}
#endif

}  // namespace fastvq::cpu::FASTVQ_ISA
