// The pass in bytes for narrow rows: lanes = rows. What it leaves is a few panels a row, which float32 decides.
//
// bytes.h with these differences: the codes of a panel share one step t, so that s t takes one product a panel; a row
// keeps of a panel its largest upper bound, max U_k, which is at most 2 t s T above its best score. Panels whose bound
// reaches the best lower bound over all panels, less the slack, are scored in float32: those left out hold no code
// that the oracle prefers to that best one. Among all others the argument of nearest.h decides.
#pragma once

#include "bytes.h"
#include "rows.h"

#if defined(__AVX512VNNI__)

namespace fastvq::cpu::FASTVQ_ISA {

// Of a panel: its step, then its codes' bytes plus 128, a row of entries for each four of the PADDED values.
FASTVQ_INLINE int64_t column_size(int64_t padded) { return LANES + padded / 4 * PANEL; }

// Entries of four bytes each from four vectors of whole numbers in [-128, 127].
FASTVQ_INLINE __m512i join_bytes(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i low = _mm512_set1_epi32(255);
  const __m512i ab = _mm512_or_si512(_mm512_and_si512(a, low), _mm512_slli_epi32(_mm512_and_si512(b, low), 8));
  const __m512i cd = _mm512_or_si512(_mm512_slli_epi32(_mm512_and_si512(c, low), 16), _mm512_slli_epi32(d, 24));
  return _mm512_or_si512(ab, cd);
}

// LANES columns of `padded` values, `stride` apart, in steps: writes their entries and adds up what that took.
template <int PADDED>
FASTVQ_INLINE void column_bytes(const float* values, int64_t stride, Floats step, __m512i (&entries)[PADDED / 4],
                                Floats& lost) {
  const Floats inverse = splat(1.0f) / step;
#pragma GCC unroll 4
  for (int i = 0; i < PADDED / 4; ++i) {
    __m512i p[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Floats y = load<Floats>(values + (4 * i + j) * stride);
      p[j] = _mm512_cvtps_epi32(y * inverse);
      const Floats left = multiply_add(-_mm512_cvtepi32_ps(p[j]), step, y);
      lost += left * left;
    }
    entries[i] = join_bytes(p[0], p[1], p[2], p[3]);
  }
}

// Packs the columns of one panel, whose float32 codes are packed already.
template <int PADDED>
static void pack_columns(const float* panel, int64_t dim, float* largest_steps, float* largest_lost, float* to) {
  Floats largest_entry{}, square[VECTORS] = {}, lost[VECTORS] = {};
  for (int v = 0; v < VECTORS; ++v)
    for (int d = 0; d < PADDED; ++d) {
      const Floats e = load<Floats>(panel + (d + 1) * PANEL + v * LANES);
      largest_entry = maximum(magnitude(e), largest_entry);
      square[v] += e * e;
    }
  const float step = step_of(largest(largest_entry));
  const double unit = (1 + 0x1p-20) / (double(step) * double(step)), unseen = double(dim) * 0x1p-126;
  store(to, splat(step));
  *largest_steps = *largest_lost = 0;
  for (int v = 0; v < VECTORS; ++v) {
    __m512i entries[PADDED / 4];
    column_bytes<PADDED>(panel + PANEL + v * LANES, PANEL, splat(step), entries, lost[v]);
    for (int i = 0; i < PADDED / 4; ++i)
      _mm512_storeu_si512(to + LANES + i * PANEL + v * LANES, _mm512_xor_si512(entries[i], _mm512_set1_epi8(-128)));
    const auto long_steps = static_cast<float>((double(largest(square[v])) + unseen) * unit);
    const auto lost_steps = static_cast<float>((double(largest(lost[v])) + unseen) * unit);
    *largest_steps = long_steps > *largest_steps ? long_steps : *largest_steps;
    *largest_lost = lost_steps > *largest_lost ? lost_steps : *largest_lost;
  }
}

// A set of rows in bytes, a lane each.
template <int PADDED, int VECS>
struct ByteSet {
  __m512i entries[PADDED / 4][VECS], begins[VECS];
  Floats steps[VECS], margins[VECS];  // s and 2 s T

  FASTVQ_INLINE ByteSet(const GroupCodes& codes, const float* centred, const float* squares) {
    const Floats factor = splat(codes.norm_factor), offset = splat(codes.norm_offset);
#pragma GCC unroll 2
    for (int v = 0; v < VECS; ++v) {
      Floats largest_entry{}, lost{};
#pragma GCC unroll 16
      for (int d = 0; d < PADDED; ++d)
        largest_entry = maximum(magnitude(load<Floats>(centred + (d * VECS + v) * LANES)), largest_entry);
      steps[v] = maximum(largest_entry * splat(1 / 127.0f), splat(LEAST_STEP));
      __m512i own[PADDED / 4];
      column_bytes<PADDED>(centred + v * LANES, VECS * LANES, steps[v], own, lost);
      const Floats Y = square_root((load<Floats>(squares + v * LANES) + offset) * factor);
      const Floats R = square_root((lost + offset) * factor);
      const Floats bound = R * splat(codes.steps_long) + (Y + R) * splat(codes.steps_lost);
      const __m512i T = _mm512_cvtps_epi32(bound / steps[v] * splat(1 + 0x1p-9f) + splat(1.5f));
      margins[v] = _mm512_cvtepi32_ps(T) * steps[v] * splat(2 + 0x1p-9f);
      __m512i total = _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int i = 0; i < PADDED / 4; ++i) {
        total = _mm512_dpbusd_epi32(total, _mm512_set1_epi8(1), own[i]);
        entries[i][v] = own[i];
      }
      begins[v] = _mm512_sub_epi32(T, _mm512_slli_epi32(total, 7));
    }
  }
};

// Scores the codes of one panel for one row in float32; raises its best score and the best of all others, which is
// that of a code within `slack` of the best where one is.
template <int PADDED>
FASTVQ_INLINE void score_row(const float* row, int64_t stride, const float* panel, int32_t first_code, float slack,
                             float& best, int32_t& where, float& second) {
  Floats score[VECTORS];
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) score[v] = load<Floats>(panel + v * LANES);
#pragma GCC unroll 16
  for (int d = 0; d < PADDED; ++d)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v)
      score[v] = multiply_add(splat(row[d * stride]), load<Floats>(panel + (d + 1) * PANEL + v * LANES), score[v]);
  Floats most = score[0];
#pragma GCC unroll 4
  for (int v = 1; v < VECTORS; ++v) most = maximum(score[v], most);
  const float top = largest(most);
  const Floats lowest = threshold(splat(top), splat(slack));
  uint64_t near = 0, at = 0;
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    near |= uint64_t{bits(at_least(score[v], lowest))} << v * LANES;
    at |= uint64_t{bits(at_least(score[v], splat(top)))} << v * LANES;
  }
  // Without a branch, which nothing would foresee.
  const bool better = top > best, several = (near & (near - 1)) != 0;
  const float other = better && !several ? best : top;
  second = other > second ? other : second;
  where = better ? first_code + static_cast<int32_t>(__builtin_ctzll(at)) : where;
  best = better ? top : best;
}

// The best code of every row of a set by float32 scores, and the best score of all others or, where that is out of the
// question, something below. `most` holds (panels, SET); returns how many panels were scored.
template <int PADDED, int VECS>
static int64_t best_by_bytes(const GroupCodes& codes, const float* centred, const float* squares, const float* packed,
                             const float* columns, int64_t panels, float* most, float* best, int32_t* where,
                             float* second) {
  constexpr int SET = VECS * LANES;
  const ByteSet<PADDED, VECS> rows(codes, centred, squares);
  Floats least[VECS];
#pragma GCC unroll 2
  for (int v = 0; v < VECS; ++v) least[v] = splat(-HUGE_VALF);
  for (int64_t panel = 0; panel < panels; ++panel) {
    const float* biases = packed + panel * (PADDED + 1) * PANEL;
    const float* column = columns + panel * column_size(PADDED);
    const Floats step = splat(*column);
    Floats unit[VECS], top[VECS];
#pragma GCC unroll 2
    for (int v = 0; v < VECS; ++v) {
      unit[v] = rows.steps[v] * step;
      top[v] = splat(-HUGE_VALF);
    }
    column += LANES;
#pragma GCC unroll 4
    for (int k = 0; k < PANEL; ++k) {
      __m512i sums[VECS];
#pragma GCC unroll 2
      for (int v = 0; v < VECS; ++v) sums[v] = rows.begins[v];
#pragma GCC unroll 4
      for (int i = 0; i < PADDED / 4; ++i) {
        const __m512i code = _mm512_castps_si512(_mm512_set1_ps(column[i * PANEL + k]));
#pragma GCC unroll 2
        for (int v = 0; v < VECS; ++v) add_products(sums[v], code, rows.entries[i][v]);
      }
#pragma GCC unroll 2
      for (int v = 0; v < VECS; ++v)
        top[v] = maximum(multiply_add(_mm512_cvtepi32_ps(sums[v]), unit[v], splat(biases[k])), top[v]);
    }
#pragma GCC unroll 2
    for (int v = 0; v < VECS; ++v) {
      store(most + panel * SET + v * LANES, top[v]);
      least[v] = maximum(multiply_add(-rows.margins[v], step, top[v]), least[v]);
    }
  }

  Floats lowest[VECS];
  float slacks[SET];
#pragma GCC unroll 2
  for (int v = 0; v < VECS; ++v) {
    const Floats square = load<Floats>(squares + v * LANES);
    lowest[v] = threshold(least[v], slack_of(codes, codes.slack[BYTES], square, Floats{}));
    store(slacks + v * LANES, slack_of(codes, codes.slack[SINGLES], square, Floats{}));
  }
  for (int r = 0; r < SET; ++r) {
    best[r] = second[r] = -HUGE_VALF;
    where[r] = 0;
  }
  int64_t scored = 0;
  for (int64_t panel = 0; panel < panels; ++panel) {
    uint64_t hits = 0;
#pragma GCC unroll 2
    for (int v = 0; v < VECS; ++v)
      hits |= uint64_t{bits(at_least(load<Floats>(most + panel * SET + v * LANES), lowest[v]))} << v * LANES;
    for (; hits; hits &= hits - 1, ++scored) {
      const int r = __builtin_ctzll(hits);
      score_row<PADDED>(centred + r, SET, packed + panel * (PADDED + 1) * PANEL, static_cast<int32_t>(panel * PANEL),
                        slacks[r], best[r], where[r], second[r]);
    }
  }
  return scored;
}

}  // namespace fastvq::cpu::FASTVQ_ISA

#endif
