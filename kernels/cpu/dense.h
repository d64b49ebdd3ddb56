// The coarse pass in float64, for rows among whose codes too many are close in float32: codes in far tight clusters,
// nearly equal ones, common offsets that centring does not take away.
//
// As the float32 pass with v = 2^-53 for u and biases summed in the same precision, which costs h(D) E^2/2 more:
//   |S^_k - S_k| <= h(2D+6) (Y E + E^2/2)
// with room for the rounding of a threshold, and nothing underflows. The oracle decides among what is left.
#pragma once

#include "levels.h"
#include "rows.h"

namespace fastvq::cpu::FASTVQ_ISA {

constexpr int64_t DENSE_ROWS = 48;  // that share one walk over the codes
constexpr int DENSE_VECTORS = 2;    // of codes: LANES of them are converted at a time

FASTVQ_INLINE int64_t dense_rows(int64_t dim) {
  const int64_t cached = int64_t{192 * 1024} / (8 * dim) / TILE * TILE;
  return cached > DENSE_ROWS ? DENSE_ROWS / TILE * TILE : cached < TILE ? TILE : cached;
}

struct DenseScratch {
  int32_t* waiting;  // (block): which rows of the block
  int count;
  double* tiles;    // (dense_rows / TILE, D, TILE)
  double* panel;    // (D + 1, LANES)
  double* tops;     // (dense_rows)
  double* scores;   // (dense_rows, LISTED)
  int32_t* slots;   // (dense_rows, LISTED): vectors' lanes
  int32_t* counts;  // (dense_rows)

  FASTVQ_INLINE void lay_out(Arena& arena, int64_t dim, int64_t block) {
    const int64_t rows = dense_rows(dim);
    waiting = arena.take<int32_t>(block);
    count = 0;
    tiles = arena.take<double>(rows * dim);
    panel = arena.take<double>((dim + 1) * LANES);
    tops = arena.take<double>(rows);
    scores = arena.take<double>(rows * LISTED);
    slots = arena.take<int32_t>(rows * LISTED);
    counts = arena.take<int32_t>(rows);
  }
};

static void pack_dense_tile(const Nearest& call, int64_t group, const float* const (&rows)[TILE], double* tile) {
  const float* shift = call.row_shift + group * call.width;
  const double scale = call.groups[group].row_scale;
  for (int r = 0; r < TILE; ++r)
    for (int64_t d = 0; d < call.x.dim; ++d) tile[d * TILE + r] = double(rows[r][d]) * scale - double(shift[d]);
}

static void fill_dense_panel(const Nearest& call, int64_t group, int64_t first, const uint8_t* left_out,
                             double* panel) {
  const int64_t dim = call.x.dim;
  const PanelCodes codes(call, group, first, left_out);
  const float* mean = call.mean + group * call.width;
  const Doubles scale = splat(double(call.groups[group].scale));
  Doubles square[2] = {};
  for (int64_t d0 = 0; d0 < dim; d0 += LANES) {
    Floats c[LANES];
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES; ++lane) c[lane] = load_part(codes.rows[lane] + d0, dim - d0);
    transpose(c);
    for (int i = 0; i < LANES && d0 + i < dim; ++i) {
      const Doubles m = splat(double(mean[d0 + i]));
      const Doubles e[2] = {low(c[i]) * scale - m, high(c[i]) * scale - m};
      double* to = panel + (d0 + i + 1) * LANES;
      square[0] += e[0] * e[0];
      square[1] += e[1] * e[1];
      store(to, e[0]);
      store(to + LANES / 2, e[1]);
    }
  }
  double squares[LANES];
  store(squares, square[0]);
  store(squares + LANES / 2, square[1]);
  for (int lane = 0; lane < LANES; ++lane)
    panel[lane] = codes.absent >> lane & 1 ? -HUGE_VAL : call.metric == Metric::l2 ? -0.5 * squares[lane] : 0;
}

FASTVQ_INLINE void dense_scores(int64_t dim, const double* tile, const double* panel,
                                Doubles (&score)[TILE][DENSE_VECTORS]) {
#pragma GCC unroll 2
  for (int v = 0; v < DENSE_VECTORS; ++v) {
    const Doubles bias = load<Doubles>(panel + v * LANES / 2);
#pragma GCC unroll 16
    for (int r = 0; r < TILE; ++r) score[r][v] = bias;
  }
  panel += LANES;
  for (int64_t d = 0; d < dim; ++d) {
    const double* at = panel + d * LANES;
    const Doubles codes[DENSE_VECTORS] = {load<Doubles>(at), load<Doubles>(at + LANES / 2)};
#pragma GCC unroll 16
    for (int r = 0; r < TILE; ++r) {
      const Doubles x = splat(tile[d * TILE + r]);
#pragma GCC unroll 2
      for (int v = 0; v < DENSE_VECTORS; ++v) score[r][v] = multiply_add(x, codes[v], score[r][v]);
    }
  }
}

// Drops listed scores below `lowest`; returns how many are left.
template <class Score>
FASTVQ_INLINE int drop_below(Score lowest, Score* scores, int32_t* slots, int count) {
  int left = 0;
  for (int i = 0; i < count; ++i) {
    if (!(scores[i] >= lowest)) continue;
    scores[left] = scores[i];
    slots[left++] = slots[i];
  }
  return left;
}

// Scores one panel for one tile and lists what lies within each row's slack of its best score so far. A row whose
// list overflows gets the count LISTED + 1.
static void list_dense(int64_t dim, const double* tile, const double* panel, int32_t first_code, const double* slacks,
                       double* tops, double* scores, int32_t* slots, int32_t* counts) {
  Doubles score[TILE][DENSE_VECTORS];
  dense_scores(dim, tile, panel, score);
  for (int r = 0; r < TILE; ++r) {
    const double top = largest(maximum(score[r][0], score[r][1]));
    if (!(top >= tops[r] - slacks[r])) continue;
    if (top > tops[r]) tops[r] = top;
    const Doubles lowest = splat(tops[r] - slacks[r]);
    for (int v = 0; v < DENSE_VECTORS; ++v) {
      double lanes[LANES / 2];
      store(lanes, score[r][v]);
      for (uint32_t left = at_least(score[r][v], lowest); left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        if (counts[r] == LISTED)
          counts[r] = drop_below(lowest[0], scores + r * LISTED, slots + r * LISTED, LISTED);
        if (counts[r] < LISTED) {
          scores[r * LISTED + counts[r]] = lanes[lane];
          slots[r * LISTED + counts[r]] = first_code + v * LANES / 2 + lane;
          ++counts[r];
        } else {
          counts[r] = LISTED + 1;
        }
      }
    }
  }
}

// Decides the waiting rows of one block: `at`, `numbers` and `squares` are the block's.
static void search_dense(const Nearest& call, int64_t group, const float* const* at, const int64_t* numbers,
                         const float* squares, DenseScratch& s, ScanQueue& queue) {
  const int64_t dim = call.x.dim, codes = call.codebook.codes, most = dense_rows(dim);
  const GroupCodes& prepared = call.groups[group];
  const uint8_t* absent = left_out(call, group, call.levels);
  for (int64_t first = 0; first < s.count; first += most) {
    const int count = static_cast<int>(s.count - first < most ? s.count - first : most);
    const int32_t* rows = s.waiting + first;
    double slacks[DENSE_ROWS + TILE];
    for (int r = 0; r < round_up(count, TILE); r += TILE) {
      const float* tile[TILE];
      for (int i = 0; i < TILE; ++i) {
        const int32_t row = rows[r + i < count ? r + i : count - 1];
        tile[i] = at[row];
        const float slack = slack_of(prepared, prepared.slack[DOUBLES], splat(squares[row]), Floats{})[0];
        slacks[r + i] = call.exact ? slack : 0;
        s.tops[r + i] = -HUGE_VAL;
        s.counts[r + i] = 0;
      }
      pack_dense_tile(call, group, tile, s.tiles + r * dim);
    }
    for (int64_t code = 0; code < codes; code += LANES) {
      fill_dense_panel(call, group, code, absent, s.panel);
      for (int r = 0; r < count; r += TILE)
        list_dense(dim, s.tiles + r * dim, s.panel, static_cast<int32_t>(code), slacks + r, s.tops + r,
                   s.scores + r * LISTED, s.slots + r * LISTED, s.counts + r);
    }
    for (int r = 0; r < count; ++r) {
      const float* row = at[rows[r]];
      int32_t* slots = s.slots + r * LISTED;
      if (s.counts[r] > LISTED) {
        queue_scan(call, group, numbers[rows[r]], row, queue);
        continue;
      }
      const int left = drop_below(s.tops[r] - slacks[r], s.scores + r * LISTED, slots, s.counts[r]);
      const Winner winner =
          best_candidate(row, call.float_codes(group), dim, call.metric == Metric::l2, slots, left);
      write_code(call, group, numbers[rows[r]], row, winner.code, winner.cost);
    }
  }
  s.count = 0;
}

// The same for rows that no other pass has seen.
static void search_all_dense(const Nearest& call, int64_t group, const float* const* at, const int64_t* numbers,
                             int count, float* squares, DenseScratch& s, ScanQueue& queue) {
  const Floats scale = splat(call.groups[group].row_scale);
  const float* shift = call.row_shift + group * call.width;
  for (int r = 0; r < count; ++r) {
    Floats square{};
    for (int64_t d = 0; d < call.x.dim; d += LANES) {
      const Floats y = load_part(at[r] + d, call.x.dim - d) * scale - load<Floats>(shift + d);
      square += y * y;
    }
    squares[r] = sum(square);
    if (squares[r] < LARGEST_SQUARE) s.waiting[s.count++] = r;
    else scan_or_drop(call, group, numbers[r], at[r], queue);
  }
  search_dense(call, group, at, numbers, squares, s, queue);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
