// The coarse pass for the k nearest codes of every row, on the panels of panels.h whatever the width of the rows.
//
// The scores of a block of rows stay in cache, (block, K) float32. Per row they give a bound; the codes that reach it
// less the slack of nearest.h are listed, and the oracle's costs order them.
//
// The bound b is a score that at least k codes reach. Where code j scores below b - slack, the oracle prefers each of
// those k codes to it, strictly, by nearest.h: j is none of its first k. So these are all among the listed ones, and
// come out in the oracle's order since it decides, by cost and then by index. Any b that k codes reach will do; the
// closer it is to the k-th best score, the fewer codes are listed. It is the k-th largest of the two best scores of
// each of 32 interleaved sets of codes.
//
// A row that lists too many codes with bfloat16 scores is searched again in float32. One that does so there, one that
// is too large, float64 rows and k > 32 take the oracle over every code.
#pragma once

#include "panels.h"

namespace fastvq::cpu::FASTVQ_ISA {

constexpr int SETS = 32;
constexpr int64_t MOST_CODES = SETS;         // k
constexpr int MOST_LISTED = 128;             // codes of a row
constexpr int64_t SCORE_BYTES = 256 * 1024;  // of a block's scores

struct TopkScratch {
  BlockRows rows;
  float* tiles;       // (block / TILE, depth, TILE)
  float* squares;     // (block), and so on, rounded up to LANES
  float* extras;      // (block)
  float* thresholds;  // (block)
  float* scores;      // (block, stride)
  int64_t stride;     // codes, rounded up to whole panels and sets
  int64_t listed;     // by all rows of the block so far
  // What the rows of a tile list, (TILE * MOST_LISTED).
  int32_t* codes;
  const float** pair_rows;
  const float** pair_codes;
  double* costs;
  ScanQueue queue;

  static int64_t score_stride(const Nearest& call) { return round_up(call.panels * PANEL, SETS); }

  int64_t lay_out(char* base, const Nearest& call, int64_t block) {
    Arena arena(base);
    const int64_t dim = call.codebook.dim;
    block = round_up(block, TILE);
    stride = score_stride(call);
    rows.lay_out(arena, dim, block);
    tiles = arena.take<float>(block * dim + LANES);
    squares = arena.take<float>(block + LANES);
    extras = arena.take<float>(block + LANES);
    thresholds = arena.take<float>(block + LANES);
    scores = arena.take<float>(block * stride);
    codes = arena.take<int32_t>(TILE * MOST_LISTED);
    pair_rows = arena.take<const float*>(TILE * MOST_LISTED);
    pair_codes = arena.take<const float*>(TILE * MOST_LISTED);
    costs = arena.take<double>(TILE * MOST_LISTED);
    queue.lay_out(arena, dim, call.topk);
    return arena.used();
  }
};

// The scores of one panel's codes for one tile; rows lie `stride` apart.
template <class Pass>
static void keep_scores(int64_t depth, const float* tile, const float* panel, float* scores, int64_t stride) {
  Floats score[TILE][VECTORS];
  Pass::score_panel(depth, tile, panel, score);
#pragma GCC unroll 16
  for (int r = 0; r < TILE; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) store(scores + r * stride + v * LANES, score[r][v]);
}

// A score that at least k codes of a row reach: the k-th largest of every set's two best, minus infinity where these
// are fewer.
static float reached_by(const float* scores, int64_t stride, int64_t k) {
  constexpr int VECTORS_OF_SETS = SETS / LANES;
  Floats best[2 * VECTORS_OF_SETS];
  for (Floats& b : best) b = splat(-HUGE_VALF);
  for (int64_t first = 0; first < stride; first += SETS)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS_OF_SETS; ++v) {
      const Floats score = load<Floats>(scores + first + v * LANES);
      Floats &top = best[v], &next = best[VECTORS_OF_SETS + v];
      next = maximum(next, minimum(score, top));
      top = maximum(score, top);
    }
  float bound = HUGE_VALF;
  for (int64_t reached = 0; reached < k && bound > -HUGE_VALF;) {
    Floats next = splat(-HUGE_VALF);
    for (const Floats& b : best) {
      const Ints lower = select(greater(splat(bound), b), reinterpret<Ints>(b), reinterpret<Ints>(next));
      next = maximum(next, reinterpret<Floats>(lower));
    }
    bound = largest(next);
    reached = 0;
    for (const Floats& b : best) reached += __builtin_popcount(bits(at_least(b, splat(bound))));
  }
  return bound;
}

// Lists the codes that score at least `lowest`; goes on counting past MOST_LISTED without writing.
static int list_codes(const float* scores, int64_t stride, float lowest, int32_t* codes) {
  int count = 0;
  for (int64_t first = 0; first < stride; first += LANES)
    for (uint32_t left = bits(at_least(load<Floats>(scores + first), splat(lowest))); left; left &= left - 1) {
      if (count < MOST_LISTED) codes[count] = static_cast<int32_t>(first) + __builtin_ctz(left);
      ++count;
    }
  return count;
}

// The first k of the listed codes, which ascend, in the oracle's order.
static void order_codes(const int32_t* codes, const double* costs, int count, int k, Winner* winners) {
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    if (kept == k && !(costs[i] < winners[k - 1].cost)) continue;
    int at = kept < k ? kept++ : k - 1;
    for (; at > 0 && costs[i] < winners[at - 1].cost; --at) winners[at] = winners[at - 1];
    winners[at] = {costs[i], codes[i]};
  }
  while (kept < k) winners[kept++] = {HUGE_VAL, -1};
}

// Lists, orders and writes the codes of the rows [first, last) of one tile. Rows that list too many move to `waiting`.
static void finish_tile(const Nearest& call, int64_t group, int first, int last, const float** at, int64_t* numbers,
                        int& waiting, TopkScratch& s) {
  const int64_t dim = call.x.dim;
  const float* code_rows = call.float_codes(group);
  int64_t number_of[TILE];
  int pairs = 0, counts[TILE], rows = 0;
  for (int r = first; r < last; ++r) {
    const float* row = at[r];
    if (!(s.squares[r] < LARGEST_SQUARE)) {
      scan_or_drop(call, group, numbers[r], row, s.queue);
      continue;
    }
    const int count = list_codes(s.scores + r * s.stride, s.stride, s.thresholds[r], s.codes + pairs);
    if (count > MOST_LISTED) {
      at[waiting] = row;
      numbers[waiting++] = numbers[r];
      continue;
    }
    for (int i = pairs; i < pairs + count; ++i) {
      s.pair_rows[i] = row;
      s.pair_codes[i] = code_rows + s.codes[i] * dim;
    }
    number_of[rows] = numbers[r];
    counts[rows++] = count;
    pairs += count;
  }
  pair_costs(s.pair_rows, s.pair_codes, pairs, dim, call.metric == Metric::l2, s.costs);
  s.listed += pairs;
  for (int i = 0, start = 0; i < rows; start += counts[i++]) {
    Winner winners[MOST_CODES];
    order_codes(s.codes + start, s.costs + start, counts[i], static_cast<int>(call.topk), winners);
    write_several(call, group, number_of[i], winners);
  }
}

// Searches `count` rows of the block; returns how many listed too many codes, which are then the first ones.
template <class Pass>
static int search_rows(const Nearest& call, int64_t group, Level level, const float** at, int64_t* numbers, int count,
                       TopkScratch& s) {
  const int64_t depth = call.depth[level], panel_size = call.panel_size[level];
  const float* packed = panels_of(call, group, level);
  const GroupCodes& codes = call.groups[group];
  for (int r = 0; r < count; r += TILE)
    Pass::pack_tile(call, group, at + r, count - r, s.tiles + r * depth, s.squares + r, s.extras + r);
  for (int64_t panel = 0; panel < call.panels; ++panel)
    for (int r = 0; r < count; r += TILE)
      keep_scores<Pass>(depth, s.tiles + r * depth, packed + panel * panel_size,
                        s.scores + r * s.stride + panel * PANEL, s.stride);
  for (int r = 0; r < count; ++r) {
    float* scores = s.scores + r * s.stride;
    for (int64_t k = call.panels * PANEL; k < s.stride; k += LANES) store(scores + k, splat(-HUGE_VALF));
    s.thresholds[r] = reached_by(scores, s.stride, call.topk);
  }
  for (int r = 0; r < count; r += LANES) {
    Floats lowest = load<Floats>(s.thresholds + r);
    if (call.exact)
      lowest = threshold(lowest, slack_of(codes, codes.slack[Pass::FORMAT], load<Floats>(s.squares + r),
                                          load<Floats>(s.extras + r)));
    store(s.thresholds + r, maximum(lowest, splat(-__FLT_MAX__)));  // absent codes score minus infinity
  }
  int waiting = 0;
  for (int r = 0; r < count; r += TILE)
    finish_tile(call, group, r, r + TILE < count ? r + TILE : count, at, numbers, waiting, s);
  return waiting;
}

// What listing more than k codes cost, in the terms of levels.h.
FASTVQ_INLINE int64_t listing_effort(const Nearest& call, int64_t listed, int64_t rows, int64_t waiting) {
  return (listed - (rows - waiting) * call.topk) * call.x.dim + waiting * pass_effort(call);
}

static void search_topk(const Nearest& call, int64_t group, int64_t first, int64_t last, int64_t block,
                        char* scratch) {
  TopkScratch s;
  s.lay_out(scratch, call, block);
  const int total = s.rows.collect(call, group, first, last);
  for (int from = 0, count; from < total; from += count) {
    const bool pairs = call.format[0] == PAIRS;
    [[maybe_unused]] const Level level = level_of(call, group);
    count = is_trial(call, group) && total - from > TRIAL_ROWS ? static_cast<int>(TRIAL_ROWS) : total - from;
    const float** at = s.rows.at + from;
    int64_t* numbers = s.rows.numbers + from;
    int waiting = count;
#if defined(__AVX512BF16__)
    if (level == 0 && pairs) {
      s.listed = 0;
      waiting = search_rows<Pairs>(call, group, 0, at, numbers, count, s);
      report(call, group, level, count, listing_effort(call, s.listed, count, waiting));
      if (waiting > 0 && made(call, group, 1) == NONE) make_level(call, group, 1);
    }
#endif
    // While another task makes the codes of the second level, the waiting rows take the oracle.
    if (waiting > 0 && !(pairs && made(call, group, 1) <= BUSY))
      waiting = search_rows<Singles>(call, group, pairs, at, numbers, waiting, s);
    for (int r = 0; r < waiting; ++r) queue_scan(call, group, numbers[r], at[r], s.queue);
  }
  scan_queued<float>(call, group, s.queue);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
