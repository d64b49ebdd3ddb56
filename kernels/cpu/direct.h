// A few rows against a codebook as it lies in memory: for so few that preparing the codes would take longer than the
// search. Squared Euclidean distances only, from differences, so that nothing has to be centred.
//
// Its bound is that of rescore.h, on unscaled values. Non-finite codes cost NaN or infinity and are never listed.
#pragma once

#include "rescore.h"

namespace fastvq::cpu::FASTVQ_ISA {

constexpr int AT_ONCE = 4;  // rows that share the loads of a code

// Rows of one group beyond which packed codes are worth their preparation: fewer where rows are short, since adding up
// the lanes of a sum is then a larger part of the work.
FASTVQ_INLINE int64_t direct_rows(int64_t dim) { return dim <= 16 ? AT_ONCE : dim < 128 ? 16 + dim / 4 : 48; }

struct DirectScratch {
  BlockRows rows;
  float* costs;     // (K, rounded up to whole vectors; AT_ONCE)
  int32_t* listed;  // (AT_ONCE, LISTED)
  ScanQueue queue;

  int64_t lay_out(char* base, const Nearest& call, int64_t block) {
    Arena arena(base);
    rows.lay_out(arena, call.codebook.dim, block);
    costs = arena.take<float>((call.codebook.codes + LANES) * AT_ONCE);
    listed = arena.take<int32_t>(AT_ONCE * LISTED);
    queue.lay_out(arena, call.codebook.dim);
    return arena.used();
  }
};

// The costs of LANES pairs, ROWS rows for each of LANES / ROWS codes.
template <int ROWS>
FASTVQ_INLINE Floats costs_of(const float* const (&rows)[ROWS], const float* const (&codes)[LANES / ROWS],
                              int64_t dim) {
  Floats sums[LANES] = {};
  const auto add = [&](int64_t d, auto read) {
    Floats x[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) x[r] = read(rows[r] + d);
#pragma GCC unroll 16
    for (int c = 0; c < LANES / ROWS; ++c) {
      const Floats code = read(codes[c] + d);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        const Floats difference = x[r] - code;
        sums[c * ROWS + r] = multiply_add(difference, difference, sums[c * ROWS + r]);
      }
    }
  };
  int64_t d = 0;
  for (; d + LANES <= dim; d += LANES) add(d, [](const float* from) { return load<Floats>(from); });
  if (d < dim) add(d, [&](const float* from) { return load_part(from, dim - d); });
  return sum_each(sums);
}

// Decides up to ROWS rows: those from `first` of the block on.
template <int ROWS>
static void search_rows_direct(const Nearest& call, int64_t group, int first, int count, DirectScratch& s) {
  constexpr int CODES = LANES / ROWS;
  const int64_t dim = call.x.dim, code_count = call.codebook.codes;
  const float* code_rows = call.float_codes(group);
  const Excess excess(dim, call.exact);
  const float* rows[ROWS];
  for (int r = 0; r < ROWS; ++r) rows[r] = s.rows.at[first + (r < count ? r : count - 1)];
  Floats best = splat(HUGE_VALF);
  for (int64_t k = 0; k < code_count; k += CODES) {
    const float* codes[CODES];
    for (int c = 0; c < CODES; ++c) codes[c] = code_rows + (k + c < code_count ? k + c : code_count - 1) * dim;
    const Floats cost = costs_of<ROWS>(rows, codes, dim);
    store(s.costs + k * ROWS, cost);
    best = minimum(cost, best);
  }
  float least[LANES], limits[LANES];
  store(least, best);
  for (int i = ROWS; i < LANES; ++i) least[i % ROWS] = least[i] < least[i % ROWS] ? least[i] : least[i % ROWS];
  for (int i = 0; i < LANES; ++i) limits[i] = least[i % ROWS] * excess.factor + excess.offset;
  const Floats limit = load<Floats>(limits);
  int counts[ROWS] = {};
  for (int64_t k = 0; k < code_count; k += CODES)
    for (uint32_t near = bits(at_least(limit, load<Floats>(s.costs + k * ROWS))); near; near &= near - 1) {
      const int lane = __builtin_ctz(near), r = lane % ROWS;
      const int64_t code = k + lane / ROWS;
      if (code >= code_count) break;
      if (counts[r] < LISTED) s.listed[r * LISTED + counts[r]] = static_cast<int32_t>(code);
      ++counts[r];
    }
  for (int r = 0; r < count; ++r) {
    const int64_t number = s.rows.numbers[first + r];
    const int32_t* list = s.listed + r * LISTED;
    if (!(limits[r] < HUGE_VALF)) {
      scan_or_drop(call, group, number, rows[r], s.queue);
    } else if (counts[r] > LISTED && call.exact) {
      queue_scan(call, group, number, rows[r], s.queue);
    } else {
      const bool close = counts[r] > 1 && call.exact;
      const int64_t code = close ? best_candidate(rows[r], code_rows, dim, true, list, counts[r]).code : list[0];
      write_code(call, group, number, rows[r], code, 0);
    }
  }
}

static void search_direct(const Nearest& call, int64_t group, int64_t first, int64_t last, int64_t block,
                          char* scratch) {
  DirectScratch s;
  s.lay_out(scratch, call, block);
  const int count = s.rows.collect(call, group, first, last);
  for (int r = 0; r < count; r += AT_ONCE) {
    const int left = count - r < AT_ONCE ? count - r : AT_ONCE;
    const auto search = left == 1   ? search_rows_direct<1>
                        : left == 2 ? search_rows_direct<2>
                                    : search_rows_direct<AT_ONCE>;
    search(call, group, r, left, s);
  }
  scan_queued<float>(call, group, s.queue);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
