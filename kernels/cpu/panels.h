// The coarse pass for wide rows: lanes = codes.
//
// Codes lie in panels of VECTORS x LANES, d-major; rows in tiles of TILE, d-major. A TILE x VECTORS block of
// accumulators starts from the codes' biases and stays in registers over the whole sum; then each (row, lane) leaves
// the larger of its VECTORS scores. Per panel and tile: 2 TILE PANEL D flops over (TILE + PANEL) D 4 bytes. Panels are
// taken in stretches: what a tile left over a stretch stays in cache and is swept for each row's best score and for
// the lanes within its slack. Nothing of size rows x codes is ever written.
#pragma once

#include "bfloat16.h"
#include "dense.h"
#include "levels.h"
#include "rescore.h"

namespace fastvq::cpu::FASTVQ_ISA {

constexpr int64_t BLOCK_ROWS = 96;           // rows that share one walk over the codes
constexpr int64_t BLOCK_BYTES = 192 * 1024;  // of row tiles, which stay in the second-level cache
constexpr int STRETCH = 32;                  // panels
#if defined(__AVX512BF16__)
constexpr bool HAS_PAIRS = true;
#else
constexpr bool HAS_PAIRS = false;
#endif

// Packs one panel for the first level.
static void pack_codes(const PreparedCodes& call, int64_t group, int64_t panel) {
  if (call.groups[group].example < 0) return;
  const int64_t at = group * call.panels + panel;
  const uint8_t* absent = call.excluded + group * call.codebook.codes;
  float* to = reinterpret_cast<float*>(call.packed[0]) + group * call.packed_size[0] +
              panel * (call.depth[0] + 1) * PANEL;
#if defined(__AVX512BF16__)
  const double square = call.pairs ? pack_pairs(call, group, panel, absent, call.panel_rounding + at, to)
                                   : pack_singles(call, group, panel, absent, call.depth[0], to);
#else
  const double square = pack_singles(call, group, panel, absent, call.depth[0], to);
#endif
  call.panel_square[at] = static_cast<float>(square * (1 + 0x1p-20));
}

struct PanelScratch {
  BlockRows rows;
  float* tiles;       // (block / TILE, depth, TILE)
  float* squares;     // (block), and so on, rounded up to LANES
  float* roundings;   // (block)
  float* slacks;      // (block)
  float* tops;        // (block): each row's best score
  float* most;        // (block / TILE, STRETCH, TILE, LANES)
  float* scores;      // (block, LISTED)
  int32_t* slots;     // (block, LISTED): panel and lane
  int32_t* counts;    // (block)
  DenseScratch dense;
  ScanQueue queue;

  int64_t lay_out(char* base, const Nearest& call, int64_t block) {
    Arena arena(base);
    const int64_t dim = call.codebook.dim;
    block = round_up(block, TILE);
    rows.lay_out(arena, dim, block);
    tiles = arena.take<float>(block * dim + LANES);
    squares = arena.take<float>(block + LANES);
    roundings = arena.take<float>(block + LANES);
    slacks = arena.take<float>(block + LANES);
    tops = arena.take<float>(block + LANES);
    most = arena.take<float>(block * LANES * (call.panels < STRETCH ? call.panels : STRETCH));
    scores = arena.take<float>(block * LISTED);
    slots = arena.take<int32_t>(block * LISTED);
    counts = arena.take<int32_t>(block);
    dense.lay_out(arena, dim, block);
    queue.lay_out(arena, dim);
    return arena.used();
  }
};

// The pass over float32.
struct Singles {
  static FASTVQ_INLINE void add_products(const float* tile, const float* codes, Floats (&score)[TILE][VECTORS]) {
    Floats c[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) c[v] = load<Floats>(codes + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < TILE; ++r) {
      const Floats x = splat(tile[r]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) score[r][v] = multiply_add(x, c[v], score[r][v]);
    }
  }
};

template <class Pass>
FASTVQ_INLINE void score_panel(int64_t depth, const float* tile, const float* panel,
                               Floats (&score)[TILE][VECTORS]) {
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    const Floats bias = load<Floats>(panel + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < TILE; ++r) score[r][v] = bias;
  }
  panel += PANEL;
  for (int64_t d = 0; d < depth; ++d) Pass::add_products(tile + d * TILE, panel + d * PANEL, score);
}

// The larger score of every lane.
template <class Pass>
static void most_of_panel(int64_t depth, const float* tile, const float* panel, float* most) {
  Floats score[TILE][VECTORS];
  score_panel<Pass>(depth, tile, panel, score);
#pragma GCC unroll 16
  for (int r = 0; r < TILE; ++r) {
    Floats result = score[r][0];
#pragma GCC unroll 4
    for (int v = 1; v < VECTORS; ++v) result = maximum(score[r][v], result);
    store(most + r * LANES, result);
  }
}

// One tile: the first TILE of `count` rows (the last one again where they are fewer), centred and scaled, d-major,
// and the sums of their squares.
static void pack_single_tile(const float* const* rows, int count, int64_t dim, float scale, const float* shift,
                             float* tile, float* squares) {
  for (int r0 = 0; r0 < TILE; r0 += LANES) {
    constexpr int ROWS = TILE < LANES ? TILE : LANES;
    static_assert(TILE < LANES || TILE % LANES == 0);
    Floats square{};
    for (int64_t d0 = 0; d0 < dim; d0 += LANES) {
      const Floats m = load<Floats>(shift + d0);
      Floats y[LANES] = {};
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        y[r] = load_part(rows[r0 + r < count ? r0 + r : count - 1] + d0, dim - d0) * splat(scale) - m;
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

// The tiles of `count` rows, for a pass over pairs or over float32.
static void pack_tiles(const Nearest& call, int64_t group, bool pairs, const float* const* rows, int count,
                       float* tiles, float* squares, [[maybe_unused]] float* roundings) {
  const int64_t dim = call.x.dim, depth = pairs ? call.depth[0] : dim;
  const float scale = call.groups[group].row_scale;
  const float* shift = call.row_shift + group * call.width;
  for (int r = 0; r < count; r += TILE) {
#if defined(__AVX512BF16__)
    if (pairs) {
      pack_pair_tile(rows + r, count - r, dim, scale, shift, tiles + r * depth, squares + r, roundings + r);
      continue;
    }
#endif
    pack_single_tile(rows + r, count - r, dim, scale, shift, tiles + r * depth, squares + r);
  }
}

// What one stretch of panels left for one tile: raises the rows' best scores and lists the slots within their slack.
// A row whose list overflows gets the count LISTED + 1.
static void sweep(int first_row, int64_t first_panel, int64_t panels, const float* most, PanelScratch& s) {
  for (int r0 = 0; r0 < TILE; r0 += LANES) {
    constexpr int ROWS = TILE < LANES ? TILE : LANES;
    Floats best[LANES];
#pragma GCC unroll 16
    for (int r = 0; r < LANES; ++r) best[r] = splat(-HUGE_VALF);
    for (int64_t p = 0; p < panels; ++p)
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r)
        best[r] = maximum(load<Floats>(most + (p * TILE + r0 + r) * LANES), best[r]);
    transpose(best);
    Floats top = best[0];
#pragma GCC unroll 16
    for (int i = 1; i < LANES; ++i) top = maximum(best[i], top);
    const int base = first_row + r0;
    const Floats all = maximum(top, load<Floats>(s.tops + base));
    store(s.tops + base, all);
    const Floats lowest = threshold(all, load<Floats>(s.slacks + base));
    float limits[LANES];
    store(limits, lowest);
    for (uint32_t hits = bits(at_least(top, lowest)) & ((1u << ROWS) - 1); hits; hits &= hits - 1) {
      const int r = __builtin_ctz(hits);
      const Floats limit = splat(limits[r]);
      float* scores = s.scores + (base + r) * LISTED;
      int32_t* slots = s.slots + (base + r) * LISTED;
      int32_t count = s.counts[base + r];
      for (int64_t p = 0; p < panels; ++p) {
        const float* from = most + (p * TILE + r0 + r) * LANES;
        for (uint32_t left = bits(at_least(load<Floats>(from), limit)); left; left &= left - 1) {
          const int lane = __builtin_ctz(left);
          if (count == LISTED) count = drop_below(limits[r], scores, slots, LISTED);
          if (count >= LISTED) {
            count = LISTED + 1;
            continue;
          }
          scores[count] = from[lane];
          slots[count++] = static_cast<int32_t>((first_panel + p) * LANES + lane);
        }
      }
      s.counts[base + r] = count;
    }
  }
}

// Decides one row from its slots; returns how many codes it had to rescore.
static int finish_row(const Nearest& call, int64_t group, Level level, int r, int64_t number, const float* row,
                      PanelScratch& s) {
  const float lowest = threshold(splat(s.tops[r]), splat(s.slacks[r]))[0];
  int32_t* slots = s.slots + r * LISTED;
  const int slot_count = drop_below(lowest, s.scores + r * LISTED, slots, s.counts[r]);
  int32_t list[LISTED * VECTORS];
  int count = 0;
  const uint8_t* absent = left_out(call, group, level);
  for (int i = 0; i < slot_count; ++i) {
    const int32_t first = slots[i] / LANES * PANEL + slots[i] % LANES;
    for (int32_t code = first; code < first + PANEL && code < call.codebook.codes; code += LANES)
      if (!absent[code]) list[count++] = code;
  }
  const int32_t code = decide(call, group, row, s.squares[r], list, count);
  const bool oracle = call.kind == Kind::lanes;
  write_code(call, group, number, row, code,
             oracle ? best_candidate(row, call.float_codes(group), call.x.dim, call.metric == Metric::l2, &code, 1).cost
                    : 0);
  return count;
}

// Searches `count` of the block's rows, from `first` on, with packed codes; returns what close calls cost.
template <class Pass>
static int64_t search_tiles(const Nearest& call, int64_t group, Level level, int first, int count, PanelScratch& s) {
  const int64_t dim = call.x.dim;
  const int slot = packed_slot(call, group, level);
  const bool pairs = slot == 0 && call.pairs;
  const int64_t depth = pairs ? call.depth[slot] : dim, panel_size = (call.depth[slot] + 1) * PANEL;
  const auto* packed = reinterpret_cast<const float*>(call.packed[slot]) + group * call.packed_size[slot];
  const GroupCodes& codes = call.groups[group];
  const float* const* at = s.rows.at + first;
  const int64_t* numbers = s.rows.numbers + first;
  const int tiles = static_cast<int>(ceil_div(count, TILE));
  pack_tiles(call, group, pairs, at, count, s.tiles, s.squares, s.roundings);
  for (int r = 0; r < tiles * TILE; ++r) {
    s.tops[r] = -HUGE_VALF;
    s.counts[r] = 0;
  }
  for (int r = 0; r < tiles * TILE; r += LANES)
    store(s.slacks + r, call.exact ? slack_of(codes, codes.slack[pairs ? FIRST : SECOND], load<Floats>(s.squares + r),
                                              load<Floats>(s.roundings + r))
                                   : Floats{});
  for (int64_t panel = 0; panel < call.panels; panel += STRETCH) {
    const int64_t stretch = call.panels - panel < STRETCH ? call.panels - panel : STRETCH;
    for (int64_t p = 0; p < stretch; ++p)
      for (int t = 0; t < tiles; ++t)
        most_of_panel<Pass>(depth, s.tiles + t * TILE * depth, packed + (panel + p) * panel_size,
                            s.most + (t * stretch + p) * TILE * LANES);
    for (int t = 0; t < tiles; ++t) sweep(t * TILE, panel, stretch, s.most + t * stretch * TILE * LANES, s);
  }

  int64_t rescored = 0;
  for (int r = 0; r < count; ++r) {
    if (!(s.squares[r] < LARGEST_SQUARE)) scan_or_drop(call, group, numbers[r], at[r], s.queue);
    else if (s.counts[r] > LISTED || !(s.squares[r] < codes.near_square)) s.dense.waiting[s.dense.count++] = r;
    else rescored += finish_row(call, group, level, r, numbers[r], at[r], s);
  }
  const int64_t effort = rescore_effort(call, rescored, s.dense.count);
  search_dense(call, group, at, numbers, s.squares, s.dense, s.queue);
  return effort;
}

static void search_panels(const Nearest& call, int64_t group, int64_t first, int64_t last, int64_t block,
                          char* scratch) {
  PanelScratch s;
  s.lay_out(scratch, call, block);
  const int total = s.rows.collect(call, group, first, last);
  for (int from = 0, count; from < total; from += count) {
    const Level level = level_of(call, group);
    count = is_trial(call, group) && total - from > TRIAL_ROWS ? static_cast<int>(TRIAL_ROWS) : total - from;
    if (level == DENSE) {
      search_all_dense(call, group, s.rows.at + from, s.rows.numbers + from, count, s.squares, s.dense, s.queue);
      continue;
    }
#if defined(__AVX512BF16__)
    const auto search = level == FIRST && call.pairs ? search_tiles<Pairs> : search_tiles<Singles>;
#else
    const auto search = search_tiles<Singles>;
#endif
    report(call, group, level, count, search(call, group, level, from, count, s));
  }
  scan_queued<float>(call, group, s.queue);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
