// The coarse pass in bfloat16: twice the products of a float32 pass, for a wider slack.
//
// p = bfloat16(y^), q = bfloat16(e^), to nearest even; R = |y^ - p| of this row, Q = max |e^ - q|, both measured. One
// instruction adds two products to each float32 sum. Products of two 8-bit significands are exact in float32, every
// sum rounds to nearest even, and what is below 2^-126, as an operand or as a result, counts as zero. In the terms of
// nearest.h:
//   * p.q - y^.e^ = (p - y^).e^ + p.(q - e^), hence |p.q - y^.e^| <= R E + (Y + R) Q. Operands that count as zero are
//     part of R and Q: the conversion, which is what they measure, has made them zero before.
//   * bias + sum of the products, in any order: g(D+2) (|p||q| + E^2/2 (1 + 2u)) with |p| <= Y + R, |q| <= E + Q. (An
//     odd D is filled up with a product of zeros.)
//   * 3 D + 4 products and sums that count as zero lose 2^-126 each; with what y^ and e^ lose, less than t (1 + Y + E).
// With the roundings of y^, e^ and the bias as in nearest.h,
//   |S^_k - S_k| <= R E + (Y + R) Q + g(D+5) ((Y + R)(E + Q) + E^2/2) + t (1 + Y + E) =: eps
// (without E^2/2 for dot), and the slack is 2 eps and the oracle's own share: a polynomial in Y and R. R^2 is a sum
// of exact differences' squares, and bounded from it as Y^2 is.
#pragma once

#include "codes.h"

#if defined(__AVX512BF16__)

namespace fastvq::cpu::FASTVQ_ISA {

constexpr int64_t PAIRED = 2 * LANES;  // values that become one vector of pairs

// 32 values d0 .. d0 + 31 of a row (zeros beyond `dim`), centred and scaled, and as pairs of bfloat16.
struct PairedValues {
  Floats values[2], lost[2];
  __m512i pairs;

  FASTVQ_INLINE PairedValues(const float* row, int64_t d0, int64_t dim, Floats scale, const float* shift) {
    const int64_t rest = dim - d0 - LANES;
    values[0] = load_part(row + d0, dim - d0) * scale - load<Floats>(shift + d0);
    values[1] = rest > 0 ? load_part(row + d0 + LANES, rest) * scale - load<Floats>(shift + d0 + LANES) : Floats{};
    pairs = (__m512i)_mm512_cvtne2ps_pbh(values[1], values[0]);
    lost[0] = values[0] - widened(_mm512_castsi512_si256(pairs));
    lost[1] = values[1] - widened(_mm512_extracti32x8_epi32(pairs, 1));
  }

  static FASTVQ_INLINE Floats widened(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
};

// Packs one panel as pairs; returns its largest |e^|^2 and sets the largest |e^ - q|^2.
static double pack_pairs(const PreparedCodes& call, int64_t group, int64_t panel, const uint8_t* left_out,
                         float* largest_lost, float* to) {
  const int64_t dim = call.codebook.dim, depth = (dim + 1) / 2;
  const float* mean = call.mean + group * call.width;
  const Floats scale = splat(call.groups[group].scale);
  double largest_square = 0;
  *largest_lost = 0;
  for (int v = 0; v < VECTORS; ++v, to += LANES) {
    const PanelCodes codes(call, group, panel * PANEL + v * LANES, left_out);
    Doubles square[LANES] = {};
    Floats lost[LANES] = {};
    for (int64_t d0 = 0; d0 < dim; d0 += PAIRED) {
      Floats pairs[LANES];
#pragma GCC unroll 16
      for (int lane = 0; lane < LANES; ++lane) {
        const PairedValues e(codes.rows[lane], d0, dim, scale, mean);
        // Sixteen rows at once are more than the processor follows by itself: it is told the next sixteen.
        __builtin_prefetch(codes.rows[lane] + LANES * dim + d0);
        __builtin_prefetch(codes.rows[lane] + LANES * dim + d0 + LANES);
        pairs[lane] = _mm512_castsi512_ps(e.pairs);
        square[lane] += low(e.values[0]) * low(e.values[0]) + high(e.values[0]) * high(e.values[0]);
        square[lane] += low(e.values[1]) * low(e.values[1]) + high(e.values[1]) * high(e.values[1]);
        lost[lane] += e.lost[0] * e.lost[0] + e.lost[1] * e.lost[1];
      }
      transpose(pairs);
      for (int i = 0; i < LANES && d0 / 2 + i < depth; ++i) store(to + (d0 / 2 + i + 1) * PANEL, pairs[i]);
    }
    double squares[LANES];
    for (int lane = 0; lane < LANES; ++lane) {
      squares[lane] = sum(square[lane]);
      const float rounding = sum(lost[lane]);
      if (!(codes.absent >> lane & 1) && rounding > *largest_lost) *largest_lost = rounding;
    }
    const double s = write_biases(call, squares, codes.absent, to);
    largest_square = s > largest_square ? s : largest_square;
  }
  return largest_square;
}

// The pass over pairs.
struct Pairs {
  static constexpr Format FORMAT = PAIRS;
  static constexpr int64_t VALUES = 2;
  static constexpr int TILE_HEADER = 0;

  // Sets `roundings` to the squares of what rounding took.
  static void pack_tile(const Nearest& call, int64_t group, const float* const* rows, int count, float* tile,
                        float* squares, float* roundings) {
    static_assert(TILE <= LANES);
    const int64_t dim = call.x.dim, depth = ceil_div(dim, 2);
    const Floats scale = splat(call.groups[group].row_scale);
    const float* shift = call.row_shift + group * call.width;
    Floats square[LANES] = {}, lost[LANES] = {};
    for (int64_t d0 = 0; d0 < dim; d0 += PAIRED) {
      Floats pairs[LANES] = {};
#pragma GCC unroll 16
      for (int r = 0; r < TILE; ++r) {
        const PairedValues y(rows[r < count ? r : count - 1], d0, dim, scale, shift);
        // The next tile's rows are fetched meanwhile: they come from memory.
        __builtin_prefetch(rows[r + TILE < count ? r + TILE : count - 1] + d0);
        __builtin_prefetch(rows[r + TILE < count ? r + TILE : count - 1] + d0 + LANES);
        pairs[r] = _mm512_castsi512_ps(y.pairs);
        square[r] += y.values[0] * y.values[0] + y.values[1] * y.values[1];
        lost[r] += y.lost[0] * y.lost[0] + y.lost[1] * y.lost[1];
      }
      transpose(pairs);
      // Each store covers the start of the next row of the tile, which is written after it.
      for (int i = 0; i < LANES && d0 / 2 + i < depth; ++i) store(tile + (d0 / 2 + i) * TILE, pairs[i]);
    }
    for (int r = 0; r < TILE; ++r) {
      squares[r] = sum(square[r]);
      roundings[r] = sum(lost[r]);
    }
  }

  static FASTVQ_INLINE void score_panel(int64_t depth, const float* tile, const float* panel,
                                        Floats (&score)[TILE][VECTORS]) {
    start_from_biases(panel, score);
    for (int64_t d = 0; d < depth; ++d, tile += TILE) {
      panel += PANEL;
      __m512bh c[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) c[v] = (__m512bh)load<Floats>(panel + v * LANES);
#pragma GCC unroll 16
      for (int r = 0; r < TILE; ++r) {
        const auto x = (__m512bh)_mm512_set1_ps(tile[r]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) score[r][v] = _mm512_dpbf16_ps(score[r][v], x, c[v]);
      }
    }
  }
};

}  // namespace fastvq::cpu::FASTVQ_ISA

#endif
