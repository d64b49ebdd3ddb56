// The coarse pass for wide rows: lanes = codes.
//
// Codes lie in panels of VECTORS x LANES, d-major; rows in tiles of TILE, d-major. A TILE x VECTORS block of
// accumulators stays in registers over the whole sum; then each (row, lane) leaves the largest of its VECTORS scores,
// or, where codes are so wide that rescoring one costs more than to look at more of them, all KEPT of them. Per panel
// and tile: 2 TILE PANEL D flops over (TILE + PANEL) D 4 bytes. Panels are taken in stretches: what a tile left over a
// stretch stays in cache and is swept for each row's best score and for the slots, a kept vector's lanes, within its
// slack. Nothing of size rows x codes is ever written.
#pragma once

#include "dense.h"
#include "levels.h"
#include "passes.h"
#include "rescore.h"

namespace fastvq::cpu::FASTVQ_ISA {

constexpr int64_t BLOCK_ROWS = 96;           // rows that share one walk over the codes
constexpr int64_t WIDE = 128;                // values from which bytes keep every score
constexpr int64_t BLOCK_BYTES = 192 * 1024;  // of row tiles, which stay in the second-level cache
constexpr int STRETCH = 32;                  // kept vectors of a row
constexpr int64_t STRETCH_BYTES = 512 * 1024;  // of packed codes that stay in the second-level cache

struct PanelScratch {
  BlockRows rows;
  float* tiles;       // (block / TILE, depth, TILE)
  float* squares;     // (block), and so on, rounded up to LANES
  float* extras;      // (block): what the pass knows of each row besides
  float* slacks;      // (block)
  float* tops;        // (block): each row's best score, or what it is at least
  float* most;        // (block / TILE, panels of a stretch, KEPT, TILE, LANES)
  float* scores;      // (block, LISTED)
  int32_t* slots;     // (block, LISTED): panel, kept vector and lane
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
    extras = arena.take<float>(block + LANES);
    slacks = arena.take<float>(block + LANES);
    tops = arena.take<float>(block + LANES);
    most = arena.take<float>(block * LANES * STRETCH);
    scores = arena.take<float>(block * LISTED);
    slots = arena.take<int32_t>(block * LISTED);
    counts = arena.take<int32_t>(block);
    dense.lay_out(arena, dim, block);
    queue.lay_out(arena, dim);
    return arena.used();
  }
};

// The largest score of every lane, or all of them.
template <class Pass, int KEPT>
static void most_of_panel(int64_t depth, const float* tile, const float* panel, float* most) {
  Floats score[TILE][VECTORS];
  Pass::score_panel(depth, tile, panel, score);
#pragma GCC unroll 16
  for (int r = 0; r < TILE; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < KEPT; ++v) {
      Floats result = score[r][v];
#pragma GCC unroll 4
      for (int other = v + KEPT; other < VECTORS; other += KEPT) result = maximum(score[r][other], result);
      store(most + (v * TILE + r) * LANES, result);
    }
  }
}

// Which of a row's kept vectors reach a limit, a bit each: their hits are too few for a branch to foresee.
FASTVQ_INLINE uint32_t reaching(const float* most, int64_t kept, Floats limit) {
  static_assert(STRETCH <= 32);
  uint32_t found = 0;
  for (int64_t i = 0; i < kept; ++i, most += TILE * LANES)
    found |= uint32_t{bits(at_least(load<Floats>(most), limit)) != 0} << i;
  return found;
}

// What a row's best score is at least where `top` is the largest upper bound: that less the margin of its slot.
template <class Pass, int KEPT>
static float lower_bound(float top, float margin, const float* most, int64_t kept, const float* packed,
                         int64_t panel_size) {
  const uint32_t found = reaching(most, kept, splat(top));
  if (found == 0) return -HUGE_VALF;
  const int i = __builtin_ctz(found);
  const int lane = __builtin_ctz(bits(at_least(load<Floats>(most + i * TILE * LANES), splat(top))));
  return top - margin * Pass::step_at(packed + i / KEPT * panel_size, i % KEPT * LANES + lane, KEPT);
}

// What one stretch of panels left for one tile: raises the rows' best scores and lists the slots within their slack.
// A row whose list overflows gets the count LISTED + 1.
template <class Pass, int KEPT>
static void sweep(int first_row, int64_t first_panel, int64_t panels, const float* most, const float* packed,
                  int64_t panel_size, PanelScratch& s) {
  const int64_t first = first_panel * KEPT, kept = panels * KEPT;
  for (int r0 = 0; r0 < TILE; r0 += LANES) {
    constexpr int ROWS = TILE < LANES ? TILE : LANES;
    Floats best[LANES];
#pragma GCC unroll 16
    for (int r = 0; r < LANES; ++r) best[r] = splat(-HUGE_VALF);
    for (int64_t i = 0; i < kept; ++i)
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r)
        best[r] = maximum(load<Floats>(most + (i * TILE + r0 + r) * LANES), best[r]);
    transpose(best);
    Floats top = best[0];
#pragma GCC unroll 16
    for (int i = 1; i < LANES; ++i) top = maximum(best[i], top);
    const int base = first_row + r0;
    Floats all = load<Floats>(s.tops + base);
    const Floats slack = load<Floats>(s.slacks + base), any = splat(-__FLT_MAX__);  // absent codes score below
    if constexpr (Pass::FORMAT == BYTES) {
      float tops[LANES];
      store(tops, top);
      const Floats least_of_use = maximum(threshold(all, slack), any);
      for (uint32_t up = bits(at_least(top, least_of_use)) & ((1u << ROWS) - 1); up; up &= up - 1) {
        const int r = __builtin_ctz(up);
        const float least = lower_bound<Pass, KEPT>(tops[r], s.extras[base + r], most + (r0 + r) * LANES, kept,
                                                    packed, panel_size);
        if (least > s.tops[base + r]) s.tops[base + r] = least;
      }
      all = load<Floats>(s.tops + base);
    } else {
      all = maximum(top, all);
      store(s.tops + base, all);
    }
    const Floats lowest = maximum(threshold(all, slack), any);
    float limits[LANES];
    store(limits, lowest);
    for (uint32_t hits = bits(at_least(top, lowest)) & ((1u << ROWS) - 1); hits; hits &= hits - 1) {
      const int r = __builtin_ctz(hits);
      const Floats limit = splat(limits[r]);
      float* scores = s.scores + (base + r) * LISTED;
      int32_t* slots = s.slots + (base + r) * LISTED;
      int32_t count = s.counts[base + r];
      const float* row = most + (r0 + r) * LANES;
      for (uint32_t found = reaching(row, kept, limit); found; found &= found - 1) {
        const int i = __builtin_ctz(found);
        const float* from = row + i * TILE * LANES;
        for (uint32_t left = bits(at_least(load<Floats>(from), limit)); left; left &= left - 1) {
          const int lane = __builtin_ctz(left);
          if (count == LISTED) count = drop_below(limits[r], scores, slots, LISTED);
          if (count >= LISTED) {
            count = LISTED + 1;
            continue;
          }
          scores[count] = from[lane];
          slots[count++] = static_cast<int32_t>((first + i) * LANES + lane);
        }
      }
      s.counts[base + r] = count;
    }
  }
}

// Decides one row from its slots; adds to `rescored` what that took.
template <int KEPT>
static void finish_row(const Nearest& call, int64_t group, Level level, int r, int64_t number, const float* row,
                       PanelScratch& s, int64_t& rescored) {
  const float lowest = threshold(s.tops[r], s.slacks[r]);
  int32_t* slots = s.slots + r * LISTED;
  const int slot_count = drop_below(lowest, s.scores + r * LISTED, slots, s.counts[r]);
  int32_t list[LISTED * VECTORS];
  int count = 0;
  const uint8_t* absent = left_out(call, group, level);
  for (int i = 0; i < slot_count; ++i) {
    const int32_t vector = slots[i] / LANES;
    int32_t code = vector / KEPT * PANEL + vector % KEPT * LANES + slots[i] % LANES;
    for (int v = 0; v < VECTORS / KEPT && code < call.codebook.codes; ++v, code += LANES)
      if (!absent[code]) list[count++] = code;
  }
  const int32_t code = decide(call, group, row, s.squares[r], list, count, rescored);
  const bool oracle = call.kind == Kind::lanes;
  write_code(call, group, number, row, code,
             oracle ? best_candidate(row, call.float_codes(group), call.x.dim, call.metric == Metric::l2, &code, 1).cost
                    : 0);
}

// Searches `count` of the block's rows, from `first` on, with packed codes; returns what close calls cost.
template <class Pass, int KEPT>
static int64_t search_tiles(const Nearest& call, int64_t group, Level level, int first, int count, PanelScratch& s) {
  const int64_t depth = ceil_div(call.x.dim, Pass::VALUES), tile_size = (depth + Pass::TILE_HEADER) * TILE;
  const int64_t panel_size = call.panel_size[level];
  const float* packed = panels_of(call, group, level);
  const GroupCodes& codes = call.groups[group];
  const float* const* at = s.rows.at + first;
  const int64_t* numbers = s.rows.numbers + first;
  const int tiles = static_cast<int>(ceil_div(count, TILE));
  for (int t = 0; t < tiles; ++t)
    Pass::pack_tile(call, group, at + t * TILE, count - t * TILE, s.tiles + t * tile_size, s.squares + t * TILE,
                    s.extras + t * TILE);
  for (int r = 0; r < tiles * TILE; ++r) {
    s.tops[r] = -HUGE_VALF;
    s.counts[r] = 0;
  }
  for (int r = 0; r < tiles * TILE; r += LANES)
    store(s.slacks + r, call.exact ? slack_of(codes, codes.slack[Pass::FORMAT], load<Floats>(s.squares + r),
                                              load<Floats>(s.extras + r))
                                   : Floats{});
  static_assert(KEPT == 1 || KEPT == VECTORS);
  for (int64_t panel = 0; panel < call.panels; panel += STRETCH / KEPT) {
    const int64_t stretch = call.panels - panel < STRETCH / KEPT ? call.panels - panel : STRETCH / KEPT;
    // Tiles take turns at a stretch that stays in cache, so that what each leaves is swept from the first level, and
    // share each panel where it does not.
    const int together = 4 * panel_size * stretch <= STRETCH_BYTES ? 1 : tiles;
    for (int first_tile = 0; first_tile < tiles; first_tile += together) {
      for (int64_t p = 0; p < stretch; ++p)
        for (int t = 0; t < together; ++t)
          most_of_panel<Pass, KEPT>(depth, s.tiles + (first_tile + t) * tile_size, packed + (panel + p) * panel_size,
                                    s.most + (t * stretch + p) * KEPT * TILE * LANES);
      for (int t = 0; t < together; ++t)
        sweep<Pass, KEPT>((first_tile + t) * TILE, panel, stretch, s.most + t * stretch * KEPT * TILE * LANES,
                          packed + panel * panel_size, panel_size, s);
    }
  }

  int64_t rescored = 0;
  for (int r = 0; r < count; ++r) {
    if (!(s.squares[r] < LARGEST_SQUARE)) scan_or_drop(call, group, numbers[r], at[r], s.queue);
    else if (s.counts[r] > LISTED || !(s.squares[r] < codes.near_square)) s.dense.waiting[s.dense.count++] = r;
    else finish_row<KEPT>(call, group, level, r, numbers[r], at[r], s, rescored);
  }
  const int64_t effort = rescore_effort(call, rescored, s.dense.count);
  search_dense(call, group, at, numbers, s.squares, s.dense, s.queue);
  return effort;
}

// The search of a level's format.
using SearchTiles = int64_t (*)(const Nearest&, int64_t, Level, int, int, PanelScratch&);

static SearchTiles search_of([[maybe_unused]] Format format, [[maybe_unused]] int64_t dim) {
#if defined(__AVX512VNNI__)
  if (format == BYTES) return dim < WIDE ? search_tiles<Bytes, 1> : search_tiles<Bytes, VECTORS>;
#endif
#if defined(__AVX512BF16__)
  if (format == PAIRS) return search_tiles<Pairs, 1>;
#endif
  return search_tiles<Singles, 1>;
}

static void search_panels(const Nearest& call, int64_t group, int64_t first, int64_t last, int64_t block,
                          char* scratch) {
  PanelScratch s;
  s.lay_out(scratch, call, block);
  const int total = s.rows.collect(call, group, first, last);
  for (int from = 0, count; from < total; from += count) {
    const Level level = level_of(call, group);
    count = is_trial(call, group) && total - from > TRIAL_ROWS ? static_cast<int>(TRIAL_ROWS) : total - from;
    if (level == call.levels) {
      search_all_dense(call, group, s.rows.at + from, s.rows.numbers + from, count, s.squares, s.dense, s.queue);
      continue;
    }
    const int64_t effort = search_of(call.format[level], call.x.dim)(call, group, level, from, count, s);
    report(call, group, level, count, effort);
  }
  scan_queued<float>(call, group, s.queue);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
