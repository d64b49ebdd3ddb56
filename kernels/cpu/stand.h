// Narrow rows side by side: each becomes a column, as it is given and centred.
#pragma once

#include "nearest.h"
#include "score.h"

namespace fastvq::cpu::FASTVQ_ISA {

constexpr int LARGEST_SET = 4 * LANES;  // rows that are searched side by side at most

// Vectors of rows that stand side by side: enough independent sums to hide their latency, few enough for the registers.
template <int PADDED>
constexpr int SET_VECTORS = PADDED == 16  ? 1
                            : LANES == 16 ? 2
                            : PADDED == 8 ? 1
                                          : 2;

// LANES rows (each dim long) become columns of `out`, `SET` apart, padded with zeros; missing rows repeat the last.
template <int PADDED, int SET, bool WHOLE>
FASTVQ_INLINE void stand_up(const float* const* rows, int count, int64_t dim, float* out) {
  const auto row = [&](int r) { return rows[r < count ? r : count - 1]; };
#if defined(FASTVQ_SHUFFLES) && defined(__AVX512F__)
  if constexpr (PADDED == 8) {
    // A vector takes two rows, whose columns d and d + 4 come out of the same parts.
    const auto pair = [&](int r) {
      if constexpr (WHOLE) return joined(load<HalfFloats>(row(r)), load<HalfFloats>(row(r + 4)));
      const Floats low = load_part(row(r), dim), high = load_part(row(r + 4), dim);
      return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    };
    Floats a[4], b[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      a[i] = pair(i);
      b[i] = pair(i + 8);
    }
    transpose_parts(a[0], a[1], a[2], a[3]);
    transpose_parts(b[0], b[1], b[2], b[3]);
#pragma GCC unroll 4
    for (int d = 0; d < 4; ++d) {
      store(out + d * SET,
            __builtin_shufflevector(a[d], b[d], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27));
      store(out + (d + 4) * SET,
            __builtin_shufflevector(a[d], b[d], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31));
    }
    return;
  }
  if constexpr (PADDED == LANES) {
    Floats v[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) v[i] = WHOLE ? load<Floats>(row(i)) : load_part(row(i), dim);
    transpose(v);
#pragma GCC unroll 16
    for (int d = 0; d < LANES; ++d) store(out + d * SET, v[d]);
    return;
  }
#endif
  for (int r = 0; r < LANES; r += 4) {
#pragma GCC unroll 4
    for (int d = 0; d < PADDED; d += 4) {
      Quad q[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) q[i] = WHOLE ? load<Quad>(row(r + i) + d) : load_quad(row(r + i), d, dim);
      transpose_four(q);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store(out + (d + i) * SET + r, q[i]);
    }
  }
}

template <int PADDED, int SET>
static void stand_up(const float* const* rows, int count, int64_t dim, float* out) {
  for (int r = 0; r < SET; r += LANES) {
    const int first = r < count ? r : count - 1;
    if (dim == PADDED) stand_up<PADDED, SET, true>(rows + first, count - first, dim, out + r);
    else stand_up<PADDED, SET, false>(rows + first, count - first, dim, out + r);
  }
}

template <int PADDED, int SET>
static void centre_set(const GroupCodes& codes, const float* shift, const float* given, float* centred,
                       float* squares) {
  for (int r = 0; r < SET; r += LANES) {
    Floats square{};
    for (int d = 0; d < PADDED; ++d) {
      const Floats y = load<Floats>(given + d * SET + r) * splat(codes.row_scale) - splat(shift[d]);
      square += y * y;
      store(centred + d * SET + r, y);
    }
    store(squares + r, square);
  }
}

// Centres rows where they lie; `count` of them, and no more.
template <int PADDED>
static void lay_down(const GroupCodes& codes, const float* shift, const float* const* rows, int count, int64_t dim,
                     float* out) {
  const float scale = codes.row_scale;
  for (int r = 0; r < count; ++r, out += PADDED)
#pragma GCC unroll 4
    for (int d = 0; d < PADDED; d += 4) {
      const Quad given = dim == PADDED ? load<Quad>(rows[r] + d) : load_quad(rows[r], d, dim);
      store(out + d, given * scale - load<Quad>(shift + d));
    }
}

}  // namespace fastvq::cpu::FASTVQ_ISA
