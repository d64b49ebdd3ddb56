// The coarse pass for narrow rows (grouped codebooks): lanes = rows.
//
// A set of rows stands side by side, one vector per d, and stays in registers while the codes pass by as broadcasts
// (bias, e_1 .. e_D): D + 1 loads a code for D x vectors fused multiply-adds. A block goes through three phases
// (stand its rows up, search, settle), so that the latencies of the first and last overlap between sets. Groups of a
// (N, G D) activation are read in place. D is padded with zeros to 4, 8 or 16.
#pragma once

#include "codes.h"
#include "rows.h"
#include "score.h"

namespace fastvq::cpu::FASTVQ_ISA {

#if defined(__AVX512F__)
constexpr int64_t WIDEST = 16;
#else
constexpr int64_t WIDEST = 8;  // 16 rows would not fit the registers
#endif
constexpr int64_t LANE_BLOCK_ROWS = 512;

FASTVQ_INLINE int64_t padded_dim(int64_t dim) { return dim <= 4 ? 4 : dim <= 8 ? 8 : 16; }

// Vectors of rows in a set: enough independent sums to hide their latency, few enough for the registers.
template <int PADDED>
constexpr int SET_VECTORS = PADDED == 16  ? 1
                            : LANES == 16 ? 2
                            : PADDED == 8 ? 1
                                          : 2;
constexpr int LARGEST_SET = 2 * LANES;

struct LaneScratch {
  BlockRows rows;
  float* given;       // (sets, PADDED, set): rows as the oracle reads them, one column each
  float* centred;     // (sets, PADDED, set)
  float* squares;     // (block)
  float* best;        // (block)
  float* second;      // (block)
  float* thresholds;  // (block)
  int32_t* where;     // (block)
  float* chosen;      // (PADDED, set): the chosen codes
  int32_t* listed;    // (set, LISTED)
  ScanQueue queue;

  int64_t lay_out(char* base, const Nearest& call, int64_t block) {
    Arena arena(base);
    const int64_t padded = call.padded_dim;
    block = round_up(block, LARGEST_SET);
    rows.lay_out(arena, call.x.dim, block);
    given = arena.take<float>(block * padded);
    centred = arena.take<float>(block * padded);
    squares = arena.take<float>(block);
    best = arena.take<float>(block);
    second = arena.take<float>(block);
    thresholds = arena.take<float>(block);
    where = arena.take<int32_t>(block);
    chosen = arena.take<float>(LARGEST_SET * padded);
    listed = arena.take<int32_t>(LARGEST_SET * LISTED);
    queue.rows = arena.take<double>(SCAN_ROWS * call.x.dim);
    queue.scratch = arena.take<double>(scan_scratch(call.x.dim));
    queue.count = 0;
    return arena.used();
  }
};

// Packs one chunk of codes, each as bias, e_1 .. e_D, zeros.
static void pack_lane_codes(const Nearest& call, int64_t group, int64_t chunk) {
  const int64_t step = call.padded_dim + 1, codes = call.codebook.codes;
  double largest = 0;
  for (int64_t k = chunk * CODE_CHUNK; k < (chunk + 1) * CODE_CHUNK && k < codes; k += 4) {
    float* to = call.packed + group * call.packed_size + k * step;
    float bias[4];
    const double square = centre_four(call, group, k, bias, [&](int64_t d, const Quad(&q)[4]) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store(to + i * step + 1 + d, q[i]);
    });
    for (int i = 0; i < 4; ++i) {
      to[i * step] = bias[i];
      for (int64_t d = round_up(call.x.dim, 4); d < call.padded_dim; ++d) to[i * step + 1 + d] = 0;
    }
    largest = square > largest ? square : largest;
  }
  call.panel_square[group * call.panels + chunk] = static_cast<float>(largest * (1 + 0x1p-20));
}

// SET rows (each dim long) become columns of `out`, padded with zeros; missing rows repeat the last.
template <int PADDED, int SET, bool WHOLE>
FASTVQ_INLINE void stand_up(const float* const* rows, int count, int64_t dim, float* out) {
  for (int r = 0; r < SET; r += 4) {
    const float* row[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) row[i] = rows[r + i < count ? r + i : count - 1];
#pragma GCC unroll 4
    for (int d = 0; d < PADDED; d += 4) {
      Quad q[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) q[i] = WHOLE ? load<Quad>(row[i] + d) : load_quad(row[i], d, dim);
      transpose(q);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store(out + (d + i) * SET + r, q[i]);
    }
  }
}

template <int PADDED, int SET>
static void stand_up(const float* const* rows, int count, int64_t dim, float* out) {
  if (dim == PADDED) stand_up<PADDED, SET, true>(rows, count, dim, out);
  else stand_up<PADDED, SET, false>(rows, count, dim, out);
}

template <int PADDED, int SET>
static void centre_set(const GroupCodes& codes, const float* shift, const float* given, float* centred,
                       float* squares) {
  for (int r = 0; r < SET; r += LANES) {
    Floats square{};
    for (int d = 0; d < PADDED; ++d) {
      const Floats y = load<Floats>(given + d * SET + r) * splat(codes.row_scale) - splat(shift[d]);
      square += y * y;
      store(centred + d * SET + r, y);
    }
    store(squares + r, square);
  }
}

// Several codes at a time, whose sums are independent. Codes are packed in fours; absent ones score minus infinity.
template <int PADDED, bool RUNNER_UP>
static void best_of_codes(const float* rows, const float* packed, int64_t codes, float* best, int32_t* where,
                          float* second) {
  constexpr int VECS = SET_VECTORS<PADDED>, SET = VECS * LANES, STEP = PADDED + 1;
  constexpr int CODES = LANES == 16 ? 4 : 2;  // as many as the registers hold
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
  for (int32_t k = 0; k < codes; k += CODES, packed += CODES * STEP) {
    Floats score[CODES][VECS];
#pragma GCC unroll 4
    for (int c = 0; c < CODES; ++c)
#pragma GCC unroll 2
      for (int v = 0; v < VECS; ++v) score[c][v] = splat(packed[c * STEP]);
#pragma GCC unroll 16
    for (int d = 0; d < PADDED; ++d)
#pragma GCC unroll 4
      for (int c = 0; c < CODES; ++c) {
        const Floats entry = splat(packed[c * STEP + 1 + d]);
#pragma GCC unroll 2
        for (int v = 0; v < VECS; ++v) score[c][v] = multiply_add(x[d][v], entry, score[c][v]);
      }
#pragma GCC unroll 4
    for (int c = 0; c < CODES; ++c)
#pragma GCC unroll 2
      for (int v = 0; v < VECS; ++v) {
        if (RUNNER_UP) next[v] = maximum(next[v], minimum(score[c][v], top[v]));
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
static void list_lane_candidates(const float* rows, const float* packed, int64_t codes, const float* thresholds,
                                 int32_t* listed, int* counts) {
  constexpr int SET = SET_VECTORS<PADDED> * LANES;
  for (int64_t k = 0; k < codes; ++k, packed += PADDED + 1)
    for (int first = 0; first < SET; first += LANES) {
      Floats score = splat(packed[0]);
#pragma GCC unroll 16
      for (int d = 0; d < PADDED; ++d)
        score = multiply_add(load<Floats>(rows + d * SET + first), splat(packed[1 + d]), score);
      for (uint32_t left = bits(at_least(score, load<Floats>(thresholds + first))); left; left &= left - 1) {
        const int r = first + __builtin_ctz(left);
        if (counts[r] < LISTED) listed[r * LISTED + counts[r]] = static_cast<int32_t>(k);
        ++counts[r];
      }
    }
}

template <int SET>
FASTVQ_INLINE void add_squares(const float* rows, const float* codes, int64_t dim, double* sums) {
  for (int64_t d = 0; d < dim; ++d)
    for (int r = 0; r < SET; ++r) {
      const double difference = double(rows[d * SET + r]) - double(codes[d * SET + r]);
      sums[r] += difference * difference;
    }
}

template <int SET>
FASTVQ_INLINE void add_products(const float* rows, const float* codes, int64_t dim, double* sums) {
  for (int64_t d = 0; d < dim; ++d)
    for (int r = 0; r < SET; ++r) sums[r] += double(rows[d * SET + r]) * double(codes[d * SET + r]);
}

// Writes the results of one set; rows with close calls are decided by the oracle.
template <int PADDED>
static void settle_set(const Nearest& call, int64_t group, int first, int count, LaneScratch& s) {
  constexpr int SET = SET_VECTORS<PADDED> * LANES;
  const int64_t dim = call.x.dim;
  const bool l2 = call.metric == Metric::l2;
  const float* code_rows = call.float_codes(group);
  const float* const* rows = s.rows.at + first;
  const int64_t* numbers = s.rows.numbers + first;
  const int32_t* where = s.where + first;
  float* thresholds = s.thresholds + first;

  const float* chosen[SET];
  for (int r = 0; r < SET; ++r) chosen[r] = code_rows + where[r] * dim;
  stand_up<PADDED, SET>(chosen, SET, dim, s.chosen);
  const float* given = s.given + first * PADDED;
  double sums[SET] = {};
  if (l2) add_squares<SET>(given, s.chosen, dim, sums);
  else add_products<SET>(given, s.chosen, dim, sums);
  if (call.metric == Metric::cosine)
    for (int r = 0; r < SET; ++r) sums[r] = 1 - sums[r];

  uint64_t safe = 0, doubtful = 0;
  for (int r = 0; r < SET; r += LANES) {
    safe |= uint64_t{bits(greater(splat(LARGEST_SQUARE), load<Floats>(s.squares + first + r)))} << r;
    if (call.exact)
      doubtful |= uint64_t{bits(at_least(load<Floats>(s.second + first + r), load<Floats>(thresholds + r)))} << r;
  }
  const uint64_t present = ~uint64_t{0} >> (64 - count);
  doubtful &= safe & present;
  const uint64_t settled = safe & ~doubtful;
  auto* distances = static_cast<float*>(call.distances);
  for (int r = 0; r < count; ++r) {
    const int64_t at = call.result_at(group, numbers[r]);
    call.indices[at] = where[r];
    distances[at] = static_cast<float>(sums[r]);
  }
  if ((settled & present) == present) return;
  for (int r = 0; r < count; ++r)
    if (!(safe >> r & 1)) scan_or_drop(call, group, numbers[r], rows[r], s.queue);
  if (!doubtful) return;

  int counts[SET] = {};
  for (int r = 0; r < SET; ++r)
    if (!(doubtful >> r & 1)) thresholds[r] = HUGE_VALF;
  list_lane_candidates<PADDED>(s.centred + first * PADDED, call.packed + group * call.packed_size,
                               call.codebook.codes, thresholds, s.listed, counts);
  for (; doubtful; doubtful &= doubtful - 1) {
    const int r = __builtin_ctzll(doubtful);
    if (counts[r] > LISTED) {
      queue_scan(call, group, numbers[r], rows[r], s.queue);
      continue;
    }
    const Winner winner = best_candidate(rows[r], code_rows, dim, l2, s.listed + r * LISTED, counts[r]);
    write_row<float>(call, group, numbers[r], winner.code, winner.cost);
  }
}

template <int PADDED>
static void search_sets(const Nearest& call, int64_t group, int count, LaneScratch& s) {
  constexpr int SET = SET_VECTORS<PADDED> * LANES;
  const GroupCodes& codes = call.groups[group];
  const float* shift = call.row_shift + group * call.padded_dim;
  const float* packed = call.packed + group * call.packed_size;
  const float* code_rows = call.float_codes(group);
  const int64_t code_values = call.codebook.codes * call.x.dim;
  for (int first = 0; first < count; first += SET) {
    float* given = s.given + first * PADDED;
    stand_up<PADDED, SET>(s.rows.at + first, count - first < SET ? count - first : SET, call.x.dim, given);
    centre_set<PADDED, SET>(codes, shift, given, s.centred + first * PADDED, s.squares + first);
  }
  const auto best_of = call.exact ? best_of_codes<PADDED, true> : best_of_codes<PADDED, false>;
  for (int first = 0; first < count; first += SET) {
    // The same rows of the next group, which this worker takes next, lie a whole activation row apart: no hardware
    // prefetcher follows.
    for (int r = first; r < first + SET && r < count; ++r) __builtin_prefetch(s.rows.at[r] + call.x.group_stride);
    for (int64_t line = first; line < first + SET && line * 16 < code_values; ++line)
      __builtin_prefetch(code_rows + line * 16);
    best_of(s.centred + first * PADDED, packed, call.codebook.codes, s.best + first, s.where + first,
            s.second + first);
  }
  for (int first = 0; first < count; first += LANES)
    store(s.thresholds + first, threshold(codes, load<Floats>(s.best + first), load<Floats>(s.squares + first)));
  for (int first = 0; first < count; first += SET)
    settle_set<PADDED>(call, group, first, count - first < SET ? count - first : SET, s);
}

static void search_lanes(const Nearest& call, int64_t group, int64_t first, int64_t last, int64_t block,
                         char* scratch) {
  LaneScratch s;
  s.lay_out(scratch, call, block);
  const int count = s.rows.collect(call, group, first, last);
  if (call.padded_dim == 4) search_sets<4>(call, group, count, s);
  else if (call.padded_dim == 8) search_sets<8>(call, group, count, s);
  else if constexpr (WIDEST == 16) search_sets<16>(call, group, count, s);
  scan_queued<float>(call, group, s.queue);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
