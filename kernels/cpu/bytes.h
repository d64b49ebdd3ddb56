// The coarse pass in bytes: four times the products of a float32 pass, for a bound that differs from code to code.
//
// A row has the step s = max |y^_d| / 127 and the bytes p_d = round(y^_d / s), a code the step t_k and the bytes q_d,
// all in [-127, 127]; no step is below 2^-60. R = |y^ - s p| of this row is measured. So are, at most of any code, its
// norm A = |e^_k| / t_k and what rounding took from it, B = |e^_k - t_k q| / t_k, both counted in its own steps. One
// instruction adds four products of bytes to each int32 sum, exactly up to MOST_BYTES of them. In the terms of
// nearest.h:
//   * s t_k p.q - y^.e^ = (s p - y^).e^ + s p.(t_k q - e^), hence
//       |s t_k p.q - y^.e^| <= t_k (R A + (Y + R) B) <= t_k s T,   T = ceil((R A + (Y + R) B) / s), an integer.
//   * The sums begin with T, so that a score is an upper bound, U_k = bias + t_k s (p.q + T), and U_k - 2 t_k s T a
//     lower one. A code that the oracle prefers to the one with the best lower bound has an upper bound above that.
//   * Besides, the operands are rounded as in nearest.h, the sum to float32, times s, times t_k plus the bias (and
//     2 t_k s T less, which threshold() and the inflation of T allow for). With
//     R <= Y and |e^_k - t_k q| <= E (rounding to the nearest step takes no more than the value itself),
//       |U^_k - U_k| <= 4 u (4 Y E + t_k s T) + 4 u E^2/2,
//     and t_k s T <= 0.0057 D Y E for D >= 9: s <= Y / 127, R <= s sqrt(D) / 2, A <= 127 sqrt(D), t_k <= E / 127 and
//     B <= 0.63 sqrt(D). Where the least step stands for less than Y / 127 or E / 127, Y + 2^-53 and E + 2^-53 serve.
//     All that is below eps = g(D+5) (4 (Y + 2^-53) (E + 2^-53) + E^2/2), and no product of steps underflows.
//   * The slack is 2 eps and the oracle's own share.
// T is computed in float32, inflated by 2^-9 of its value and by one step. Y and R are bounded from sums of squares as
// Y is in nearest.h; so are A and B, with D 2^-126 for squares that underflow: D 2^-6 of a step's square at most.
//
// The bound is a code's own, through its step. By simulation, on codes that k-means found for rows of 512 dimensions,
// it lists 1.4 to 1.8 candidates a row, where the longest code's for all lists 80 to 100 (and bfloat16 1.4 to 2.2).
#pragma once

#include "codes.h"

namespace fastvq::cpu::FASTVQ_ISA {

constexpr int64_t LEAST_BYTES = 9;                // of a row: fewer are faster in float32
constexpr int64_t MOST_BYTES = int64_t{1} << 15;  // of a row: its sums stay below 2^31

#if defined(__AVX512VNNI__)

constexpr int64_t QUADS = 4 * LANES;  // values that become one vector of bytes
constexpr float LEAST_STEP = 0x1p-60f;

FASTVQ_INLINE float step_of(float largest) {
  const float step = largest * (1 / 127.0f);
  return step > LEAST_STEP ? step : LEAST_STEP;
}

// 64 values d0 .. d0 + 63 of a row (zeros beyond `dim`), centred and scaled, as bytes; adds the squares of what that
// took to `lost`.
FASTVQ_INLINE __m512i quad_bytes(const float* row, int64_t d0, int64_t dim, Floats scale, const float* shift,
                                 Floats step, Floats inverse, Floats& lost) {
  __m128i parts[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const int64_t d = d0 + i * LANES, rest = dim - d;
    const Floats y = (rest > 0 ? load_part(row + d, rest) : Floats{}) * scale - load<Floats>(shift + d);
    const __m512i p = _mm512_cvtps_epi32(y * inverse);
    const Floats left = multiply_add(-_mm512_cvtepi32_ps(p), step, y);
    lost += left * left;
    parts[i] = _mm512_cvtepi32_epi8(p);
  }
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(parts[0]), parts[1], 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(parts[2]), parts[3], 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// sums += unsigned bytes x signed bytes. GCC 12 copies the sums around its own intrinsic.
FASTVQ_INLINE void add_products(__m512i& sums, __m512i codes, __m512i rows) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(codes), "v"(rows));
}

// Packs one panel: biases, steps, then bytes plus 128, four of a code in each entry. Returns its largest |e^|^2 and
// sets the largest squares of a norm and of what rounding took, counted in steps.
static double pack_bytes(const PreparedCodes& call, int64_t group, int64_t panel, const uint8_t* left_out,
                         float* largest_steps, float* largest_lost, float* to) {
  const int64_t dim = call.codebook.dim, depth = ceil_div(dim, 4);
  const float* mean = call.mean + group * call.width;
  const Floats scale = splat(call.groups[group].scale);
  double largest_square = 0;
  *largest_steps = *largest_lost = 0;
  for (int v = 0; v < VECTORS; ++v, to += LANES) {
    const PanelCodes codes(call, group, panel * PANEL + v * LANES, left_out);
    double squares[LANES];
    float steps[LANES];
    for (int lane = 0; lane < LANES; ++lane) {
      Doubles square{};
      Floats largest{};
      for (int64_t d = 0; d < dim; d += LANES) {
        const Floats e = load_part(codes.rows[lane] + d, dim - d) * scale - load<Floats>(mean + d);
        largest = maximum(magnitude(e), largest);
        square += low(e) * low(e) + high(e) * high(e);
      }
      squares[lane] = sum(square);
      steps[lane] = step_of(fastvq::cpu::FASTVQ_ISA::largest(largest));
      // Sixteen rows at once are more than the processor follows by itself: it is told the next sixteen.
      for (int64_t d = 0; d < dim; d += LANES) __builtin_prefetch(codes.rows[lane] + LANES * dim + d);
    }
    Floats lost[LANES] = {};
    for (int64_t d0 = 0; d0 < dim; d0 += QUADS) {
      Floats quads[LANES];
#pragma GCC unroll 16
      for (int lane = 0; lane < LANES; ++lane) {
        const __m512i bytes = quad_bytes(codes.rows[lane], d0, dim, scale, mean, splat(steps[lane]),
                                         splat(1 / steps[lane]), lost[lane]);
        quads[lane] = _mm512_castsi512_ps(_mm512_xor_si512(bytes, _mm512_set1_epi8(-128)));
      }
      transpose(quads);
      for (int i = 0; i < LANES && d0 / 4 + i < depth; ++i) store(to + (d0 / 4 + i + 2) * PANEL, quads[i]);
    }
    for (int lane = 0; lane < LANES; ++lane) {
      const double unit = 1 / (double(steps[lane]) * double(steps[lane]));
      const double long_steps = squares[lane] * unit * (1 + 0x1p-20);
      const double lost_steps = (double(sum(lost[lane])) + double(dim) * 0x1p-126) * unit * (1 + 0x1p-20);
      if (long_steps > *largest_steps) *largest_steps = static_cast<float>(long_steps);
      if (lost_steps > *largest_lost) *largest_lost = static_cast<float>(lost_steps);
    }
    store(to + PANEL, load<Floats>(steps));
    const double s = write_biases(call, squares, codes.absent, to);
    largest_square = s > largest_square ? s : largest_square;
  }
  return largest_square;
}

// The pass over bytes. A tile holds what its rows' sums begin with, the rows' steps, then bytes.
struct Bytes {
  static constexpr Format FORMAT = BYTES;
  static constexpr int64_t VALUES = 4;
  static constexpr int TILE_HEADER = 2;

  // Sets `margins` to 2 s T of each row.
  static void pack_tile(const Nearest& call, int64_t group, const float* const* rows, int count, float* tile,
                        float* squares, float* margins) {
    static_assert(TILE <= LANES);
    const GroupCodes& codes = call.groups[group];
    const int64_t dim = call.x.dim, depth = ceil_div(dim, 4);
    const float* shift = call.row_shift + group * call.width;
    const Floats scale = splat(codes.row_scale);
    float steps[LANES] = {}, inverses[LANES] = {};
    Floats square[LANES] = {}, lost[LANES] = {};
    __m512i total[LANES];
    for (int r = 0; r < TILE; ++r) {
      const float* row = rows[r < count ? r : count - 1];
      const float* next = rows[r + TILE < count ? r + TILE : count - 1];
      Floats largest{}, sum_of{};
      for (int64_t d = 0; d < dim; d += LANES) {
        const Floats y = load_part(row + d, dim - d) * scale - load<Floats>(shift + d);
        largest = maximum(magnitude(y), largest);
        sum_of += y * y;
        __builtin_prefetch(next + d);  // the next tile's rows are fetched meanwhile: they come from memory
      }
      square[r] = sum_of;
      steps[r] = step_of(fastvq::cpu::FASTVQ_ISA::largest(largest));
      inverses[r] = 1 / steps[r];
      total[r] = _mm512_setzero_si512();
    }
    for (int64_t d0 = 0; d0 < dim; d0 += QUADS) {
      Floats quads[LANES] = {};
#pragma GCC unroll 16
      for (int r = 0; r < TILE; ++r) {
        const __m512i bytes = quad_bytes(rows[r < count ? r : count - 1], d0, dim, scale, shift, splat(steps[r]),
                                         splat(inverses[r]), lost[r]);
        total[r] = _mm512_dpbusd_epi32(total[r], _mm512_set1_epi8(1), bytes);
        quads[r] = _mm512_castsi512_ps(bytes);
      }
      transpose(quads);
      // Each store covers the start of the next row of the tile, which is written after it.
      for (int i = 0; i < LANES && d0 / 4 + i < depth; ++i) store(tile + (d0 / 4 + i + TILE_HEADER) * TILE, quads[i]);
    }
    float losses[LANES] = {};
    int32_t begins[TILE];
    for (int r = 0; r < TILE; ++r) {
      squares[r] = sum(square[r]);
      losses[r] = sum(lost[r]);
    }
    const Floats factor = splat(codes.norm_factor), offset = splat(codes.norm_offset);
    const Floats Y = square_root((load<Floats>(squares) + offset) * factor);
    const Floats R = square_root((load<Floats>(losses) + offset) * factor);
    const Floats bound = R * splat(codes.steps_long) + (Y + R) * splat(codes.steps_lost);
    const __m512i T = _mm512_cvtps_epi32(bound * load<Floats>(inverses) * splat(1 + 0x1p-9f) + splat(1.5f));
    int32_t slack[LANES];
    _mm512_storeu_si512(slack, T);
    store(margins, _mm512_cvtepi32_ps(T) * load<Floats>(steps) * splat(2 + 0x1p-9f));
    for (int r = 0; r < TILE; ++r)
      begins[r] = static_cast<int32_t>(static_cast<uint32_t>(slack[r]) -
                                       (static_cast<uint32_t>(_mm512_reduce_add_epi32(total[r])) << 7));
    std::memcpy(tile, begins, sizeof begins);
    std::memcpy(tile + TILE, steps, TILE * sizeof(float));
  }

  static FASTVQ_INLINE void score_panel(int64_t depth, const float* tile, const float* panel,
                                        Floats (&score)[TILE][VECTORS]) {
    __m512i sums[TILE][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < TILE; ++r) {
      const __m512i begin = _mm512_castps_si512(_mm512_set1_ps(tile[r]));
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = begin;
    }
    const float *row = tile + TILE_HEADER * TILE, *codes = panel + 2 * PANEL;
    for (int64_t d = 0; d < depth; ++d, row += TILE, codes += PANEL) {
      __m512i c[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) c[v] = _mm512_castps_si512(load<Floats>(codes + v * LANES));
#pragma GCC unroll 16
      for (int r = 0; r < TILE; ++r) {
        const __m512i x = _mm512_castps_si512(_mm512_set1_ps(row[r]));
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) add_products(sums[r][v], c[v], x);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const Floats bias = load<Floats>(panel + v * LANES), step = load<Floats>(panel + PANEL + v * LANES);
#pragma GCC unroll 16
      for (int r = 0; r < TILE; ++r)
        score[r][v] = multiply_add(_mm512_cvtepi32_ps(sums[r][v]) * splat(tile[TILE + r]), step, bias);
    }
  }

  // The largest step of the codes of a slot: each of the LANES x `kept` first slots of a panel stands for every kept
  // vector after it.
  static FASTVQ_INLINE float step_at(const float* panel, int64_t slot, int kept) {
    float step = 0;
    for (; slot < PANEL; slot += kept * LANES) step = panel[PANEL + slot] > step ? panel[PANEL + slot] : step;
    return step;
  }
};

#endif

}  // namespace fastvq::cpu::FASTVQ_ISA
