// The coarse pass for narrow rows (grouped codebooks): lanes = rows.
//
// A set of rows stands side by side, one vector per d, and stays in registers while the codes of a panel pass by as
// broadcasts (bias, e_1 .. e_D): D + 1 loads a code for D x vectors fused multiply-adds. A block goes through three
// phases (stand its rows up, search, settle), so that the latencies of the first and last overlap between sets. Groups
// of a (N, G D) activation are read in place. D is padded with zeros to 4, 8 or 16. Where the processor multiplies
// bytes and codes are many, the first level searches in them (columns.h).
#pragma once

#include "dense.h"
#include "levels.h"
#include "rows.h"
#include "stand.h"

namespace fastvq::cpu::FASTVQ_ISA {

#if defined(__AVX512F__)
constexpr int64_t WIDEST = 16;
#else
constexpr int64_t WIDEST = 8;  // 16 rows would not fit the registers
#endif
constexpr int64_t LANE_BLOCK_ROWS = 512;
constexpr int PANEL_COSTS = 24;  // vector operations that a row and panel take besides the products

FASTVQ_INLINE int64_t padded_dim(int64_t dim) { return dim <= 4 ? 4 : dim <= 8 ? 8 : 16; }

constexpr int BUNCH = LANES == 16 ? 4 : 2;  // codes scored at once: as many as the registers hold
static_assert(PANEL % BUNCH == 0);

// What a row keeps of its scores. A code at a time that is the best, where it was, and the runner-up if close calls
// matter: 3 or 5 operations a code beside its D multiply-adds. A bunch at a time it is the best bunch, where it begins,
// and the best of the others: BUNCH + 3 operations a bunch. The codes around the best bunch are then scored once more,
// which tells the best code and the runner-up, and pays where there are many codes and D is small.
enum class Keep { best, runner_up, bunches };
constexpr int64_t BUNCHED_CODES = 192;
constexpr int AROUND = 4;  // codes that are scored once more: a bunch and those that fill up a Quad
static_assert(AROUND % BUNCH == 0 && PANEL % AROUND == 0);

struct LaneScratch {
  BlockRows rows;
  float* given;       // (sets, PADDED, set): rows as the oracle reads them, one column each
  float* centred;     // (sets, PADDED, set)
  float* squares;     // (block)
  float* best;        // (block)
  float* second;      // (block)
  float* thresholds;  // (block)
  int32_t* where;     // (block)
  float* chosen;      // (PADDED, set): the chosen codes; (AROUND, set): scores
  int32_t* listed;    // (set, LISTED)
  float* lying;       // (block, PADDED): centred rows, for the pass in bytes
#if defined(__AVX512VNNI__)
  ColumnScratch columns;
#endif
  DenseScratch dense;
  ScanQueue queue;

  int64_t lay_out(char* base, const Nearest& call, int64_t block) {
    Arena arena(base);
    const int64_t dim = call.codebook.dim, padded = padded_dim(dim);
    block = round_up(block, LARGEST_SET);
    rows.lay_out(arena, dim, block);
    given = arena.take<float>(block * padded);
    centred = arena.take<float>(block * padded);
    squares = arena.take<float>(block);
    best = arena.take<float>(block);
    second = arena.take<float>(block);
    thresholds = arena.take<float>(block);
    where = arena.take<int32_t>(block);
    chosen = arena.take<float>(LARGEST_SET * padded);
    listed = arena.take<int32_t>(LARGEST_SET * LISTED);
    lying = arena.take<float>(call.column_size > 0 ? block * padded : 0);
#if defined(__AVX512VNNI__)
    if (call.column_size > 0) columns.lay_out(arena, call, padded, block);
#endif
    dense.lay_out(arena, dim, block);
    queue.lay_out(arena, dim);
    return arena.used();
  }
};

// Several codes at a time, whose sums are independent; absent ones score minus infinity.
template <int PADDED, Keep KEEP>
static void best_of_codes(const float* rows, const float* packed, int64_t panels, float* best, int32_t* where,
                          float* second) {
  constexpr int VECS = SET_VECTORS<PADDED>, SET = VECS * LANES;
  Floats x[PADDED][VECS], top[VECS], next[VECS];
  Ints at[VECS];
#pragma GCC unroll 16
  for (int d = 0; d < PADDED; ++d)
#pragma GCC unroll 2
    for (int v = 0; v < VECS; ++v) x[d][v] = load<Floats>(rows + d * SET + v * LANES);
#pragma GCC unroll 2
  for (int v = 0; v < VECS; ++v) {
    top[v] = next[v] = splat(-HUGE_VALF);
    at[v] = Ints{};
  }
  int32_t k = 0;
  for (int64_t panel = 0; panel < panels; ++panel, packed += PADDED * PANEL)
    for (int32_t first = 0; first < PANEL; first += BUNCH, packed += BUNCH, k += BUNCH) {
      Floats score[BUNCH][VECS];
#pragma GCC unroll 4
      for (int c = 0; c < BUNCH; ++c)
#pragma GCC unroll 2
        for (int v = 0; v < VECS; ++v) score[c][v] = splat(packed[c]);
#pragma GCC unroll 16
      for (int d = 0; d < PADDED; ++d)
#pragma GCC unroll 4
        for (int c = 0; c < BUNCH; ++c) {
          const Floats entry = splat(packed[(d + 1) * PANEL + c]);
#pragma GCC unroll 2
          for (int v = 0; v < VECS; ++v) score[c][v] = multiply_add(x[d][v], entry, score[c][v]);
        }
      if constexpr (KEEP == Keep::bunches)
#pragma GCC unroll 2
        for (int v = 0; v < VECS; ++v)
#pragma GCC unroll 4
          for (int c = 1; c < BUNCH; ++c) score[0][v] = maximum(score[0][v], score[c][v]);
      constexpr int KEPT = KEEP == Keep::bunches ? 1 : BUNCH;
#pragma GCC unroll 4
      for (int c = 0; c < KEPT; ++c)
#pragma GCC unroll 2
        for (int v = 0; v < VECS; ++v) {
          if (KEEP != Keep::best) next[v] = maximum(next[v], minimum(score[c][v], top[v]));
          at[v] = select(greater(score[c][v], top[v]), splat(k + c), at[v]);
          top[v] = maximum(score[c][v], top[v]);
        }
    }
#pragma GCC unroll 2
  for (int v = 0; v < VECS; ++v) {
    store(best + v * LANES, top[v]);
    store(where + v * LANES, at[v]);
    store(second + v * LANES, next[v]);
  }
}

// Lists the codes that score at least their row's threshold; the same arithmetic as best_of_codes.
template <int PADDED>
static void list_lane_candidates(const float* rows, const float* packed, int64_t panels, const float* thresholds,
                                 int32_t* listed, int* counts) {
  constexpr int SET = SET_VECTORS<PADDED> * LANES;
  int32_t k = 0;
  for (int64_t panel = 0; panel < panels; ++panel, packed += PADDED * PANEL)
    for (const float* const end = packed + PANEL; packed < end; ++packed, ++k)
      for (int first = 0; first < SET; first += LANES) {
        Floats score = splat(packed[0]);
#pragma GCC unroll 16
        for (int d = 0; d < PADDED; ++d)
          score = multiply_add(load<Floats>(rows + d * SET + first), splat(packed[(d + 1) * PANEL]), score);
        for (uint32_t left = bits(at_least(score, load<Floats>(thresholds + first))); left; left &= left - 1) {
          const int r = first + __builtin_ctz(left);
          if (counts[r] < LISTED) listed[r * LISTED + counts[r]] = k;
          ++counts[r];
        }
      }
}

template <int PADDED>
FASTVQ_INLINE bool bunched(const Nearest& call) {
  return PADDED <= 8 && call.codebook.codes >= BUNCHED_CODES;
}

// From the best bunch to the best code: `where` becomes the code, and `second` the best score of all others. Scores are
// those of best_of_codes but for rounding, which the slack allows for. `scores` holds AROUND sets.
template <int PADDED>
static void choose_codes(const float* rows, const float* packed, float* scores, int32_t* where, float* second) {
  constexpr int SET = SET_VECTORS<PADDED> * LANES;
  for (int r = 0; r < SET; r += 4) {
    Quad score[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int32_t k = where[r + i];
      const float* from = packed + k / PANEL * ((PADDED + 1) * PANEL) + k % PANEL / AROUND * AROUND;
      score[i] = load<Quad>(from);
#pragma GCC unroll 16
      for (int d = 0; d < PADDED; ++d) score[i] += load<Quad>(from + (d + 1) * PANEL) * rows[d * SET + r + i];
    }
    transpose_four(score);
#pragma GCC unroll 4
    for (int c = 0; c < AROUND; ++c) store(scores + c * SET + r, score[c]);
  }
  for (int r = 0; r < SET; r += LANES) {
    const Ints first = load<Ints>(where + r) & splat(int32_t{-AROUND});
    Floats top = load<Floats>(scores + r), next = load<Floats>(second + r);
    Ints at = first;
#pragma GCC unroll 4
    for (int c = 1; c < AROUND; ++c) {
      const Floats score = load<Floats>(scores + c * SET + r);
      next = maximum(next, minimum(score, top));
      at = select(greater(score, top), first + splat(int32_t{c}), at);
      top = maximum(score, top);
    }
    store(where + r, at);
    store(second + r, next);
  }
}

// Writes the codes and costs of a set of rows.
template <int SET>
FASTVQ_INLINE void write_set(const Nearest& call, int64_t group, const int64_t* numbers, int count,
                             const int32_t* codes, const double* costs) {
  constexpr int WIDTH = LANES / 2;
  typedef int32_t HalfInts __attribute__((vector_size(4 * WIDTH)));
  if (call.result_row_stride != 1 || count != SET || numbers[SET - 1] - numbers[0] != SET - 1) {
    for (int r = 0; r < count; ++r) write_row<float>(call, group, numbers[r], codes[r], costs[r]);
    return;
  }
  const int64_t at = call.result_at(group, numbers[0]);
  const double sign = call.metric == Metric::dot ? -1 : 1, offset = call.metric == Metric::cosine ? 1 : -0.0;
  for (int r = 0; r < SET; r += WIDTH) {
    const Doubles distances = load<Doubles>(costs + r) * splat(sign) + splat(offset);
    store(call.indices + at + r, __builtin_convertvector(load<HalfInts>(codes + r), Longs));
    store(static_cast<float*>(call.distances) + at + r, __builtin_convertvector(distances, HalfFloats));
  }
}

// Writes the results of one set; rows with close calls are decided by the oracle. Returns what these cost.
template <int PADDED>
static int64_t settle_set(const Nearest& call, int64_t group, const float* packed, int first, int count,
                          LaneScratch& s) {
  constexpr int SET = SET_VECTORS<PADDED> * LANES;
  const int64_t dim = call.x.dim;
  const bool l2 = call.metric == Metric::l2;
  const float* code_rows = call.float_codes(group);
  const float* const* rows = s.rows.at + first;
  const int64_t* numbers = s.rows.numbers + first;
  float* thresholds = s.thresholds + first;

  const float* chosen[SET];
  double costs[SET];
  const auto last = static_cast<int32_t>(call.codebook.codes - 1);  // what has overflowed may be anywhere
  for (int r = 0; r < SET; ++r) {
    int32_t& code = s.where[first + r];
    code = code < last ? code : last;
    chosen[r] = code_rows + code * dim;
  }
  stand_up<PADDED, SET>(chosen, SET, dim, s.chosen);
  column_costs(s.given + first * PADDED, s.chosen, dim, SET, l2, costs);

  uint64_t safe = 0, near = 0, doubtful = 0;
  for (int r = 0; r < SET; r += LANES) {
    const Floats square = load<Floats>(s.squares + first + r);
    safe |= uint64_t{bits(greater(splat(LARGEST_SQUARE), square))} << r;
    near |= uint64_t{bits(greater(splat(call.groups[group].near_square), square))} << r;
    if (call.exact)
      doubtful |= uint64_t{bits(at_least(load<Floats>(s.second + first + r), load<Floats>(thresholds + r)))} << r;
  }
  const uint64_t present = ~uint64_t{0} >> (64 - count);
  doubtful = (doubtful | ~near) & safe & present;
  write_set<SET>(call, group, numbers, count, s.where + first, costs);
  if ((safe & ~doubtful & present) == present) return 0;
  for (int r = 0; r < count; ++r)
    if (!(safe >> r & 1)) scan_or_drop(call, group, numbers[r], rows[r], s.queue);
  if (!doubtful) return 0;

  int counts[SET] = {};
  for (int r = 0; r < SET; ++r)
    if (!(doubtful >> r & 1)) thresholds[r] = HUGE_VALF;
  list_lane_candidates<PADDED>(s.centred + first * PADDED, packed, call.panels, thresholds, s.listed, counts);
  int64_t rescored = 0, dense = 0;
  for (; doubtful; doubtful &= doubtful - 1) {
    const int r = __builtin_ctzll(doubtful);
    if (counts[r] > LISTED || !(near >> r & 1)) {
      s.dense.waiting[s.dense.count++] = first + r;
      ++dense;
      continue;
    }
    const Winner winner = best_candidate(rows[r], code_rows, dim, l2, s.listed + r * LISTED, counts[r]);
    write_row<float>(call, group, numbers[r], winner.code, winner.cost);
    rescored += counts[r];
  }
  return pass_effort(call) * SET * 3 / 4 + rescore_effort(call, rescored, dense);
}

// Searches `count` of the block's rows, from `from` on; returns what close calls cost.
template <int PADDED>
static int64_t search_sets(const Nearest& call, int64_t group, Level level, int from, int count, LaneScratch& s) {
  constexpr int SET = SET_VECTORS<PADDED> * LANES;
  const GroupCodes& codes = call.groups[group];
  const float* shift = call.row_shift + group * call.width;
  const float* packed = panels_of(call, group, level);
  const float* code_rows = call.float_codes(group);
  const int64_t code_values = call.codebook.codes * call.x.dim;
  const int end = from + count;
#if defined(__AVX512VNNI__)
  const bool bytes = PADDED > 4 && level == 0 && call.column_size > 0;
#else
  constexpr bool bytes = false;
#endif
  // Bytes take several sets together, all of which are there: the last row stands for those missing.
  for (int first = from; first < (bytes ? from + round_up(count, LARGEST_SET) : end); first += SET) {
    const int own = first < end ? first : end - 1, rows = end - own < SET ? end - own : SET;
    float* given = s.given + first * PADDED;
    stand_up<PADDED, SET>(s.rows.at + own, rows, call.x.dim, given);
    centre_set<PADDED, SET>(codes, shift, given, s.centred + first * PADDED, s.squares + first);
    if (bytes && own == first)
      lay_down<PADDED>(codes, shift, s.rows.at + first, rows, call.x.dim, s.lying + first * PADDED);
  }
  const auto best_of = bunched<PADDED>(call) ? best_of_codes<PADDED, Keep::bunches>
                       : call.exact          ? best_of_codes<PADDED, Keep::runner_up>
                                             : best_of_codes<PADDED, Keep::best>;
  int64_t effort = 0;
  const auto prefetch = [&](int first, int rows) {
    // The same rows of the next group, which this worker takes next, lie a whole activation row apart: no hardware
    // prefetcher follows.
    for (int r = first; r < first + rows && r < end; ++r) __builtin_prefetch(s.rows.at[r] + call.x.group_stride);
    for (int64_t line = first; line < first + rows && line * 16 < code_values; ++line)
      __builtin_prefetch(code_rows + line * 16);
  };
#if defined(__AVX512VNNI__)
  if (bytes) {
    const int64_t visits = best_by_columns<PADDED>(codes, s.centred, s.lying, s.squares, from, end, packed,
                                                   call.columns_of(group, 0), call.panels, prefetch, s.columns, s.best,
                                                   s.where, s.second);
    effort = (visits - count) * (PADDED * VECTORS + PANEL_COSTS);
  }
#endif
  for (int first = from; first < end && !bytes; first += SET) {
    prefetch(first, SET);
    const float* centred = s.centred + first * PADDED;
    best_of(centred, packed, call.panels, s.best + first, s.where + first, s.second + first);
    if (bunched<PADDED>(call)) choose_codes<PADDED>(centred, packed, s.chosen, s.where + first, s.second + first);
  }
  for (int first = from; first < end; first += LANES)
    store(s.thresholds + first,
          threshold(load<Floats>(s.best + first),
                    slack_of(codes, codes.slack[SINGLES], load<Floats>(s.squares + first), Floats{})));
  for (int first = from; first < end; first += SET)
    effort += settle_set<PADDED>(call, group, packed, first, end - first < SET ? end - first : SET, s);
  search_dense(call, group, s.rows.at, s.rows.numbers, s.squares, s.dense, s.queue);
  return effort;
}

static void search_lanes(const Nearest& call, int64_t group, int64_t first, int64_t last, int64_t block,
                         char* scratch) {
  LaneScratch s;
  s.lay_out(scratch, call, block);
  const int total = s.rows.collect(call, group, first, last);
  const int64_t padded = padded_dim(call.x.dim);
  const auto search = padded == 4 ? search_sets<4> : padded == 8 ? search_sets<8> : search_sets<WIDEST>;
  for (int from = 0, count; from < total; from += count) {
    const Level level = level_of(call, group);
    count = is_trial(call, group) && total - from > LARGEST_SET ? LARGEST_SET : total - from;
    if (level == call.levels)
      search_all_dense(call, group, s.rows.at + from, s.rows.numbers + from, count, s.squares, s.dense, s.queue);
    else report(call, group, level, count, search(call, group, level, from, count, s));
  }
  scan_queued<float>(call, group, s.queue);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
