// The coarse pass for wide rows: lanes = codes.
//
// Codes lie in panels of VECTORS x LANES, d-major; rows in tiles of TILE, d-major. A TILE x VECTORS block of
// accumulators starts from the codes' biases and stays in registers over the whole sum; then each (row, lane) keeps
// its best score, where that was, and the runner-up. A block of rows meets a panel while both are in cache; nothing
// of size rows x codes is ever written. Per panel and tile: 2 TILE PANEL D flops over (TILE + PANEL) D 4 bytes.
#pragma once

#include "codes.h"
#include "rows.h"
#include "score.h"

namespace fastvq::cpu::FASTVQ_ISA {

// Accumulators, codes and one broadcast row value fill the registers: 32 with AVX-512 and NEON, 16 otherwise.
#if defined(__AVX512F__)
constexpr int TILE = 12, VECTORS = 2;
#elif defined(__aarch64__)
constexpr int TILE = 8, VECTORS = 3;
#else
constexpr int TILE = 4, VECTORS = 3;
#endif
constexpr int PANEL = VECTORS * LANES;
constexpr int64_t BLOCK_ROWS = 96;           // rows that share one walk over the codes
constexpr int64_t BLOCK_BYTES = 192 * 1024;  // of row tiles, which stay in the second-level cache

struct PanelScratch {
  BlockRows rows;
  float* tiles;       // (block / TILE, D, TILE)
  float* squares;     // (block)
  float* best;        // (block, LANES)
  float* second;      // (block, LANES)
  int32_t* where;     // (block, LANES): the vector of codes that held the best
  float* tops;        // (block), rounded up to LANES: each row's best score
  float* thresholds;  // (block), the same
  int32_t* listed;    // (TILE, LISTED)
  ScanQueue queue;

  int64_t lay_out(char* base, const Nearest& call, int64_t block) {
    Arena arena(base);
    const int64_t dim = call.x.dim;
    block = round_up(block, TILE);
    rows.lay_out(arena, dim, block);
    tiles = arena.take<float>(block * (dim + 3));
    squares = arena.take<float>(block + LANES);
    best = arena.take<float>(block * LANES);
    second = arena.take<float>(block * LANES);
    where = arena.take<int32_t>(block * LANES);
    tops = arena.take<float>(block + LANES);
    thresholds = arena.take<float>(block + LANES);
    listed = arena.take<int32_t>(TILE * LISTED);
    queue.rows = arena.take<double>(SCAN_ROWS * dim);
    queue.scratch = arena.take<double>(scan_scratch(dim));
    queue.count = 0;
    return arena.used();
  }
};

FASTVQ_INLINE void score_panel(int64_t dim, const float* tile, const float* panel, Floats (&score)[TILE][VECTORS]) {
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    const Floats bias = load<Floats>(panel + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < TILE; ++r) score[r][v] = bias;
  }
  panel += PANEL;
  for (int64_t d = 0; d < dim; ++d) {
    Floats codes[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) codes[v] = load<Floats>(panel + d * PANEL + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < TILE; ++r) {
      const Floats x = splat(tile[d * TILE + r]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) score[r][v] = multiply_add(x, codes[v], score[r][v]);
    }
  }
}

template <bool RUNNER_UP>
static void best_of_panel(int64_t dim, const float* tile, const float* panel, int32_t vector, float* best,
                          int32_t* where, float* second) {
  Floats score[TILE][VECTORS];
  score_panel(dim, tile, panel, score);
#pragma GCC unroll 16
  for (int r = 0; r < TILE; ++r) {
    Floats top = load<Floats>(best + r * LANES), next{};
    Ints at = load<Ints>(where + r * LANES);
    if (RUNNER_UP) next = load<Floats>(second + r * LANES);
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      if (RUNNER_UP) next = maximum(next, minimum(score[r][v], top));
      at = select(greater(score[r][v], top), splat(vector + v), at);
      top = maximum(score[r][v], top);
    }
    store(best + r * LANES, top);
    store(where + r * LANES, at);
    if (RUNNER_UP) store(second + r * LANES, next);
  }
}

// Lists every code that scores at least its row's threshold; counts[r] goes on past LISTED without writing.
static void list_candidates(int64_t dim, const float* tile, const float* panel, int32_t vector,
                            const float* thresholds, int32_t* listed, int* counts) {
  Floats score[TILE][VECTORS];
  score_panel(dim, tile, panel, score);
  for (int r = 0; r < TILE; ++r)
    for (int v = 0; v < VECTORS; ++v)
      for (uint32_t left = bits(at_least(score[r][v], splat(thresholds[r]))); left; left &= left - 1) {
        if (counts[r] < LISTED) listed[r * LISTED + counts[r]] = (vector + v) * LANES + __builtin_ctz(left);
        ++counts[r];
      }
}

// One tile: the first TILE of `count` rows (the last one again where they are fewer), centred and scaled, d-major,
// and the sums of their squares.
static void pack_tile(const Nearest& call, const GroupCodes& codes, const float* shift, const float* const* rows,
                      int count, float* tile, float* squares) {
  const int64_t dim = call.x.dim;
  for (int r0 = 0; r0 < TILE; r0 += 4) {
    Quad square[4] = {};
    const float *row[4], *next[4];  // the next four rows are fetched meanwhile: they come from memory
    for (int i = 0; i < 4; ++i) {
      row[i] = rows[r0 + i < count ? r0 + i : count - 1];
      next[i] = rows[r0 + 4 + i < count ? r0 + 4 + i : count - 1];
    }
    for (int64_t d = 0; d < dim; d += 4) {
      const Quad m = load_quad(shift, d, dim);
      Quad q[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        if (d % 16 == 0) __builtin_prefetch(next[i] + d);
        q[i] = load_quad(row[i], d, dim) * codes.row_scale - m;
        square[i] += q[i] * q[i];
      }
      transpose(q);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store(tile + (d + i) * TILE + r0, q[i]);
    }
    for (int i = 0; i < 4; ++i) squares[r0 + i] = (square[i][0] + square[i][2]) + (square[i][1] + square[i][3]);
  }
}

static float* panel_at(const Nearest& call, int64_t group, int64_t panel) {
  return call.packed + group * call.packed_size + panel * (call.x.dim + 1) * PANEL;
}

static void pack_panel(const Nearest& call, int64_t group, int64_t panel) {
  float* to = panel_at(call, group, panel);
  double largest = 0;
  for (int lane = 0; lane < PANEL; lane += 4) {
    const double square = centre_four(call, group, panel * PANEL + lane, to + lane, [&](int64_t d, Quad(&q)[4]) {
      transpose(q);
      for (int i = 0; i < 4 && d + i < call.x.dim; ++i) store(to + (d + i + 1) * PANEL + lane, q[i]);
    });
    largest = square > largest ? square : largest;
  }
  call.panel_square[group * call.panels + panel] = static_cast<float>(largest * (1 + 0x1p-20));
}

// Rows of one tile whose runner-up in some lane is near: lists their candidates in a second pass over the codes.
static void settle_tile(const Nearest& call, int64_t group, int tile, uint32_t doubtful, PanelScratch& s) {
  const int first = tile * TILE;
  float thresholds[TILE];
  int counts[TILE] = {};
  for (int r = 0; r < TILE; ++r) thresholds[r] = doubtful >> r & 1 ? s.thresholds[first + r] : HUGE_VALF;
  for (int64_t panel = 0; panel < call.panels; ++panel)
    list_candidates(call.x.dim, s.tiles + tile * call.x.dim * TILE, panel_at(call, group, panel),
                    static_cast<int32_t>(panel * VECTORS), thresholds, s.listed, counts);
  const bool l2 = call.metric == Metric::l2;
  for (; doubtful; doubtful &= doubtful - 1) {
    const int r = __builtin_ctz(doubtful);
    const float* row = s.rows.at[first + r];
    if (counts[r] > LISTED) {
      queue_scan(call, group, s.rows.numbers[first + r], row, s.queue);
      continue;
    }
    const Winner winner =
        best_candidate(row, call.float_codes(group), call.x.dim, l2, s.listed + r * LISTED, counts[r]);
    write_row<float>(call, group, s.rows.numbers[first + r], winner.code, winner.cost);
  }
}

// Decides one row from its lanes; true where the row needs settle_tile.
static bool finish_row(const Nearest& call, int64_t group, int r, PanelScratch& s) {
  const int64_t dim = call.x.dim, number = s.rows.numbers[r];
  const bool l2 = call.metric == Metric::l2;
  const float* row = s.rows.at[r];
  const Ints where = load<Ints>(s.where + r * LANES);
  const Floats lowest = splat(call.exact ? s.thresholds[r] : s.tops[r]);
  if (call.exact && bits(at_least(load<Floats>(s.second + r * LANES), lowest))) return true;
  int32_t list[LANES];
  int count = 0;
  for (uint32_t left = bits(at_least(load<Floats>(s.best + r * LANES), lowest)); left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    list[count++] = where[lane] * LANES + lane;
  }
  if (count > 1 && call.exact) {
    const Winner winner = best_candidate(row, call.float_codes(group), dim, l2, list, count);
    write_row<float>(call, group, number, winner.code, winner.cost);
    return false;
  }
  int32_t code = list[0];
  for (int i = 1; i < count; ++i) code = list[i] < code ? list[i] : code;
  write_row<float>(call, group, number, code, cost_of(row, call.float_codes(group) + code * dim, dim, l2));
  return false;
}

static void search_panels(const Nearest& call, int64_t group, int64_t first, int64_t last, int64_t block,
                          char* scratch) {
  PanelScratch s;
  s.lay_out(scratch, call, block);
  const int64_t dim = call.x.dim;
  const GroupCodes& codes = call.groups[group];
  const int count = s.rows.collect(call, group, first, last);
  if (count == 0) return;

  const float* shift = call.row_shift + group * call.padded_dim;
  const int tiles = static_cast<int>(ceil_div(count, TILE));
  for (int t = 0; t < tiles; ++t)
    pack_tile(call, codes, shift, s.rows.at + t * TILE, count - t * TILE, s.tiles + t * dim * TILE,
              s.squares + t * TILE);
  for (int64_t i = 0; i < int64_t{tiles} * TILE * LANES; i += LANES) {
    store(s.best + i, splat(-HUGE_VALF));
    store(s.second + i, splat(-HUGE_VALF));
    store(s.where + i, Ints{});
  }
  const auto best_of = call.exact ? best_of_panel<true> : best_of_panel<false>;
  for (int64_t panel = 0; panel < call.panels; ++panel)
    for (int t = 0; t < tiles; ++t)
      best_of(dim, s.tiles + t * dim * TILE, panel_at(call, group, panel), static_cast<int32_t>(panel * VECTORS),
              s.best + t * TILE * LANES, s.where + t * TILE * LANES, s.second + t * TILE * LANES);

  for (int r = 0; r < count; ++r) s.tops[r] = largest(load<Floats>(s.best + r * LANES));
  for (int r = 0; r < count; r += LANES)
    store(s.thresholds + r, threshold(codes, load<Floats>(s.tops + r), load<Floats>(s.squares + r)));
  for (int t = 0; t < tiles; ++t) {
    uint32_t doubtful = 0;
    for (int r = t * TILE; r < (t + 1) * TILE && r < count; ++r) {
      if (s.squares[r] < LARGEST_SQUARE) {
        doubtful |= static_cast<uint32_t>(finish_row(call, group, r, s)) << (r - t * TILE);
      } else {
        scan_or_drop(call, group, s.rows.numbers[r], s.rows.at[r], s.queue);
      }
    }
    if (doubtful) settle_tile(call, group, t, doubtful, s);
  }
  scan_queued<float>(call, group, s.queue);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
