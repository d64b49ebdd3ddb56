// The coarse pass in float32, and what the passes have in common.
//
// A pass has a FORMAT; VALUES of a row that become one 4-byte entry; `pack_tile`, which packs the first TILE of `count`
// rows (the last one again where they are fewer), centred and scaled, d-major after TILE_HEADER rows of its own, and
// leaves each row's square and what else the pass must know of it; and `score_panel`, each code's score or, for bytes,
// a bound of it. TILE results are used of each array, LANES may be written.
#pragma once

#include "pack.h"

namespace fastvq::cpu::FASTVQ_ISA {

struct Singles {
  static constexpr Format FORMAT = SINGLES;
  static constexpr int64_t VALUES = 1;
  static constexpr int TILE_HEADER = 0;

  static void pack_tile(const Nearest& call, int64_t group, const float* const* rows, int count, float* tile,
                        float* squares, float*) {
    const int64_t dim = call.x.dim;
    const Floats scale = splat(call.groups[group].row_scale);
    const float* shift = call.row_shift + group * call.width;
    for (int r0 = 0; r0 < TILE; r0 += LANES) {
      constexpr int ROWS = TILE < LANES ? TILE : LANES;
      static_assert(TILE < LANES || TILE % LANES == 0);
      Floats square{};
      for (int64_t d0 = 0; d0 < dim; d0 += LANES) {
        const Floats m = load<Floats>(shift + d0);
        Floats y[LANES] = {};
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
          y[r] = load_part(rows[r0 + r < count ? r0 + r : count - 1] + d0, dim - d0) * scale - m;
          // The next tile's rows are fetched meanwhile: they come from memory.
          __builtin_prefetch(rows[r0 + r + TILE < count ? r0 + r + TILE : count - 1] + d0);
        }
        transpose(y);
        // A store that covers the start of the next row of the tile comes before that row's own.
        for (int i = 0; i < LANES && d0 + i < dim; ++i) {
          square += y[i] * y[i];
          store(tile + (d0 + i) * TILE + r0, y[i]);
        }
      }
      store(squares + r0, square);
    }
  }

  static FASTVQ_INLINE void score_panel(int64_t depth, const float* tile, const float* panel,
                                        Floats (&score)[TILE][VECTORS]) {
    start_from_biases(panel, score);
    for (int64_t d = 0; d < depth; ++d, tile += TILE) {
      panel += PANEL;
      Floats c[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) c[v] = load<Floats>(panel + v * LANES);
#pragma GCC unroll 16
      for (int r = 0; r < TILE; ++r) {
        const Floats x = splat(tile[r]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) score[r][v] = multiply_add(x, c[v], score[r][v]);
      }
    }
  }
};

}  // namespace fastvq::cpu::FASTVQ_ISA
