// The coarse pass for narrow rows (grouped codebooks): lanes = rows.
//
// WIDTH rows at a time stand side by side, one vector per d, and stay in registers while the codes pass by as
// broadcasts (bias, e_1 .. e_D). One pass over a code costs D + 1 broadcasts for D x VECTORS fused multiply-adds. Groups
// of a (N, G D) activation are read in place. D is padded with zeros to 4, 8 or 16.
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
constexpr int64_t LANE_BLOCK_ROWS = 256;

FASTVQ_INLINE int64_t padded_dim(int64_t dim) { return dim <= 4 ? 4 : dim <= 8 ? 8 : 16; }

// Vectors of rows at once: enough to hide the latency of one sum, few enough for the registers.
template <int PADDED>
constexpr int row_vectors() {
  return PADDED == 16 ? 1 : sizeof(Floats) == 64 ? 2 : PADDED == 8 ? 1 : 2;
}
constexpr int MOST_ROWS = 2 * LANES;

struct LaneScratch {
  int64_t* numbers;
  int64_t* offsets;
  float* row_values;  // (MOST_ROWS, D)
  float* given;       // (PADDED, MOST_ROWS): rows as the oracle reads them, one column each
  float* centred;     // (PADDED, MOST_ROWS)
  float* chosen;      // (PADDED, MOST_ROWS): the chosen codes
  int32_t* listed;    // (MOST_ROWS, LISTED)
  ScanQueue queue;

  int64_t lay_out(char* base, const Nearest& call, int64_t block) {
    Arena arena(base);
    numbers = arena.take<int64_t>(block);
    offsets = arena.take<int64_t>(block);
    row_values = arena.take<float>(MOST_ROWS * call.padded_dim);
    given = arena.take<float>(MOST_ROWS * call.padded_dim);
    centred = arena.take<float>(MOST_ROWS * call.padded_dim);
    chosen = arena.take<float>(MOST_ROWS * call.padded_dim);
    listed = arena.take<int32_t>(MOST_ROWS * LISTED);
    queue.rows = arena.take<double>(SCAN_ROWS * call.x.dim);
    queue.scratch = arena.take<double>(scan_scratch(call.x.dim));
    queue.count = 0;
    return arena.used();
  }
};

static void pack_lane_codes(const Nearest& call, int64_t group, int64_t panel) {
  const int64_t step = call.padded_dim + 1, codes = call.codebook.codes;
  double largest = 0;
  for (int64_t k = panel * CODE_CHUNK; k < (panel + 1) * CODE_CHUNK && k < codes; k += 4) {
    float* to = call.packed + group * call.packed_size + k * step;
    float bias[4];
    const double square = centre_four(call, group, k, bias, [&](int64_t d, const Quad(&q)[4]) {
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) to[j * step + 1 + d + i] = q[i][j];
    });
    for (int64_t d = round_up(call.x.dim, 4); d < call.padded_dim; ++d)
      for (int j = 0; j < 4; ++j) to[j * step + 1 + d] = 0;
    for (int j = 0; j < 4; ++j) to[j * step] = bias[j];
    largest = square > largest ? square : largest;
  }
  call.panel_square[group * call.panels + panel] = static_cast<float>(largest * (1 + 0x1p-20));
}

// Rows (each dim long) become columns of `out`, padded with zeros; missing rows repeat the last.
static void stand_rows(const float* const* rows, int count, int64_t dim, int64_t padded, int64_t width, float* out) {
  for (int64_t r = 0; r < width; r += 4) {
    const float* row[4];
    for (int i = 0; i < 4; ++i) row[i] = rows[r + i < count ? r + i : count - 1];
    for (int64_t d = 0; d < padded; d += 4) {
      Quad q[4];
      for (int i = 0; i < 4; ++i) q[i] = load_quad(row[i], d, dim);
      transpose(q);
      for (int i = 0; i < 4; ++i) store(out + (d + i) * width + r, q[i]);
    }
  }
}

template <int PADDED, bool RUNNER_UP>
FASTVQ_INLINE void best_of_codes(const float* rows, const float* packed, int64_t codes, Floats (&best)[row_vectors<PADDED>()],
                                 Ints (&where)[row_vectors<PADDED>()], Floats (&second)[row_vectors<PADDED>()]) {
  constexpr int VECS = row_vectors<PADDED>(), WIDTH = VECS * LANES;
  Floats x[PADDED][VECS];
#pragma GCC unroll 16
  for (int d = 0; d < PADDED; ++d)
#pragma GCC unroll 2
    for (int v = 0; v < VECS; ++v) x[d][v] = load<Floats>(rows + d * WIDTH + v * LANES);
  for (int v = 0; v < VECS; ++v) {
    best[v] = second[v] = splat(-HUGE_VALF);
    where[v] = Ints{};
  }
  Ints code{};
  for (int64_t k = 0; k < codes; ++k, packed += PADDED + 1, code += 1) {
    Floats score[VECS];
#pragma GCC unroll 2
    for (int v = 0; v < VECS; ++v) score[v] = splat(packed[0]);
#pragma GCC unroll 16
    for (int d = 0; d < PADDED; ++d) {
      const Floats entry = splat(packed[1 + d]);
#pragma GCC unroll 2
      for (int v = 0; v < VECS; ++v) score[v] = multiply_add(x[d][v], entry, score[v]);
    }
#pragma GCC unroll 2
    for (int v = 0; v < VECS; ++v) {
      if (RUNNER_UP) second[v] = maximum(second[v], minimum(score[v], best[v]));
      where[v] = select(greater(score[v], best[v]), code, where[v]);
      best[v] = maximum(score[v], best[v]);
    }
  }
}

// Lists the codes that score at least their row's threshold; the same arithmetic as best_of_codes.
template <int PADDED>
static void list_lane_candidates(const float* rows, const float* packed, int64_t codes, const float* thresholds,
                                 int32_t* listed, int* counts) {
  constexpr int VECS = row_vectors<PADDED>(), WIDTH = VECS * LANES;
  for (int64_t k = 0; k < codes; ++k, packed += PADDED + 1) {
    for (int v = 0; v < VECS; ++v) {
      Floats score = splat(packed[0]);
#pragma GCC unroll 16
      for (int d = 0; d < PADDED; ++d)
        score = multiply_add(load<Floats>(rows + d * WIDTH + v * LANES), splat(packed[1 + d]), score);
      for (uint32_t left = bits(at_least(score, load<Floats>(thresholds + v * LANES))); left; left &= left - 1) {
        const int r = v * LANES + __builtin_ctz(left);
        if (counts[r] < LISTED) listed[r * LISTED + counts[r]] = static_cast<int32_t>(k);
        ++counts[r];
      }
    }
  }
}

// One set of up to WIDTH rows of a group, from rows in memory to written results.
template <int PADDED>
static void search_set(const Nearest& call, int64_t group, const float* const* rows, const int64_t* numbers, int count,
                       LaneScratch& s) {
  constexpr int VECS = row_vectors<PADDED>(), WIDTH = VECS * LANES;
  const GroupCodes& codes = call.groups[group];
  const int64_t dim = call.x.dim;
  const bool l2 = call.metric == Metric::l2;
  const float* shift = call.row_shift + group * call.padded_dim;
  const float* packed = call.packed + group * call.packed_size;
  const float* code_rows = call.float_codes(group);

  stand_rows(rows, count, dim, PADDED, WIDTH, s.given);
  Floats square[VECS] = {};
  for (int d = 0; d < PADDED; ++d)
    for (int v = 0; v < VECS; ++v) {
      const Floats y = load<Floats>(s.given + d * WIDTH + v * LANES) * splat(codes.row_scale) - splat(shift[d]);
      square[v] += y * y;
      store(s.centred + d * WIDTH + v * LANES, y);
    }
  Floats best[VECS], second[VECS];
  Ints where[VECS];
  if (call.exact) best_of_codes<PADDED, true>(s.centred, packed, call.codebook.codes, best, where, second);
  else best_of_codes<PADDED, false>(s.centred, packed, call.codebook.codes, best, where, second);

  uint64_t doubtful = 0, overflowed = 0;
  float thresholds[WIDTH];
  for (int v = 0; v < VECS; ++v) {
    overflowed |= uint64_t{bits(at_least(splat(LARGEST_SQUARE), square[v]))} << v * LANES;
    if (call.exact) {
      Floats lowest;
      for (int lane = 0; lane < LANES; ++lane) lowest[lane] = threshold(codes, best[v][lane], square[v][lane]);
      store(thresholds + v * LANES, lowest);
      doubtful |= uint64_t{bits(at_least(second[v], lowest))} << v * LANES;
    }
  }
  const uint64_t present = ~uint64_t{0} >> (64 - count);
  overflowed = ~overflowed & present;
  doubtful &= present & ~overflowed;

  const float* chosen[WIDTH];
  for (int v = 0; v < VECS; ++v)
    for (int lane = 0; lane < LANES; ++lane) chosen[v * LANES + lane] = code_rows + where[v][lane] * dim;
  stand_rows(chosen, WIDTH, dim, PADDED, WIDTH, s.chosen);
  double cost[WIDTH] = {};
  for (int64_t d = 0; d < dim; ++d)
    for (int r = 0; r < WIDTH; ++r) {
      const double x = s.given[d * WIDTH + r], c = s.chosen[d * WIDTH + r];
      cost[r] += l2 ? (x - c) * (x - c) : -(x * c);
    }
  const uint64_t settled = present & ~overflowed & ~doubtful;
  for (int r = 0; r < count; ++r)
    if (settled >> r & 1) write_row<float>(call, group, numbers[r], where[r / LANES][r % LANES], cost[r]);

  for (; overflowed; overflowed &= overflowed - 1) {
    const int r = __builtin_ctzll(overflowed);
    if (all_finite(rows[r], dim)) queue_scan(call, group, numbers[r], rows[r], s.queue);
    else write_row<float>(call, group, numbers[r], -1, 0);
  }
  if (!doubtful) return;
  int counts[WIDTH] = {};
  for (int r = 0; r < WIDTH; ++r)
    if (!(doubtful >> r & 1)) thresholds[r] = HUGE_VALF;
  list_lane_candidates<PADDED>(s.centred, packed, call.codebook.codes, thresholds, s.listed, counts);
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

static void search_lanes(const Nearest& call, int64_t group, int64_t first, int64_t last, int64_t block, char* scratch) {
  LaneScratch s;
  s.lay_out(scratch, call, block);
  const int64_t dim = call.x.dim;
  const int listed = list_rows(call.x, call.mask, group, first, last, s.numbers, s.offsets,
                               [&](int64_t row) { write_masked<float>(call, group, row); });
  if (!call.groups[group].searchable) {
    for (int r = 0; r < listed; ++r) write_row<float>(call, group, s.numbers[r], -1, 0);
    return;
  }
  const bool direct = call.x.dtype == DType::float32 && call.x.dim_stride == 1 && call.metric != Metric::cosine;
  const auto search = call.padded_dim == 4 ? search_set<4> : call.padded_dim == 8 ? search_set<8> : search_set<16>;
  const int width = LANES * (call.padded_dim == 4   ? row_vectors<4>()
                             : call.padded_dim == 8 ? row_vectors<8>()
                                                    : row_vectors<16>());
  const float* rows[MOST_ROWS];
  int64_t numbers[MOST_ROWS];
  for (int done = 0; done < listed; done += width) {
    int count = listed - done < width ? listed - done : width;
    for (int r = 0; r < count; ++r) numbers[r] = s.numbers[done + r];
    if (direct) {
      for (int r = 0; r < count; ++r) rows[r] = static_cast<const float*>(call.x.data) + s.offsets[done + r];
    } else {
      load_rows(call.x, s.offsets + done, count, s.row_values, dim);
      if (call.metric == Metric::cosine) {
        int kept = 0;
        for (int r = 0; r < count; ++r) {
          const float* row = s.row_values + r * dim;
          if (!all_finite(row, dim)) {
            write_row<float>(call, group, numbers[r], -1, 0);
            continue;
          }
          if (r != kept) std::memcpy(s.row_values + kept * dim, row, dim * sizeof(float));
          numbers[kept++] = numbers[r];
        }
        count = kept;
        unit_rows(s.row_values, dim, count, dim, s.row_values, dim);
      }
      for (int r = 0; r < count; ++r) rows[r] = s.row_values + r * dim;
    }
    if (count > 0) search(call, group, rows, numbers, count, s);
  }
  scan_queued<float>(call, group, s.queue);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
