// A few rows against a codebook as it lies in memory: for so few that preparing the codes would take longer than the
// search. Squared Euclidean distances only, from differences, so that nothing has to be centred.
//
// Its bound is that of rescore.h, on unscaled values. Non-finite codes cost NaN or infinity and are never listed.
#pragma once

#include "rescore.h"

namespace fastvq::cpu::FASTVQ_ISA {

constexpr int64_t DIRECT_ROWS = 48;  // of one group; beyond, packed codes are worth their preparation
constexpr int AT_ONCE = 4;           // rows that share the loads of a code

struct DirectScratch {
  BlockRows rows;
  float* costs;     // (K, AT_ONCE)
  int32_t* listed;  // (AT_ONCE, LISTED)
  ScanQueue queue;

  int64_t lay_out(char* base, const Nearest& call, int64_t block) {
    Arena arena(base);
    rows.lay_out(arena, call.codebook.dim, block);
    costs = arena.take<float>(call.codebook.codes * AT_ONCE);
    listed = arena.take<int32_t>(AT_ONCE * LISTED);
    queue.lay_out(arena, call.codebook.dim);
    return arena.used();
  }
};

// The cost of one code for each of AT_ONCE rows.
FASTVQ_INLINE Quad costs_of(const float* const (&rows)[AT_ONCE], const float* code, int64_t dim) {
  Floats sum[AT_ONCE] = {};
  int64_t d = 0;
  for (; d + LANES <= dim; d += LANES) {
    const Floats c = load<Floats>(code + d);
#pragma GCC unroll 4
    for (int r = 0; r < AT_ONCE; ++r) {
      const Floats difference = load<Floats>(rows[r] + d) - c;
      sum[r] = multiply_add(difference, difference, sum[r]);
    }
  }
  Quad parts[AT_ONCE];
#pragma GCC unroll 4
  for (int r = 0; r < AT_ONCE; ++r) {
    float lanes[LANES];
    store(lanes, sum[r]);
    parts[r] = load<Quad>(lanes);
    for (int lane = 4; lane < LANES; lane += 4) parts[r] += load<Quad>(lanes + lane);
    for (int64_t rest = d; rest < dim; rest += 4) {
      const Quad difference = load_quad(rows[r], rest, dim) - load_quad(code, rest, dim);
      parts[r] += difference * difference;
    }
  }
  transpose_four(parts);
  return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

static void search_direct(const Nearest& call, int64_t group, int64_t first, int64_t last, int64_t block,
                          char* scratch) {
  DirectScratch s;
  s.lay_out(scratch, call, block);
  const int64_t dim = call.x.dim, codes = call.codebook.codes;
  const float* code_rows = call.float_codes(group);
  const Excess excess(dim, call.exact);
  const int count = s.rows.collect(call, group, first, last);
  for (int r0 = 0; r0 < count; r0 += AT_ONCE) {
    const float* rows[AT_ONCE];
    for (int r = 0; r < AT_ONCE; ++r) rows[r] = s.rows.at[r0 + r < count ? r0 + r : count - 1];
    Quad least = Quad{} + HUGE_VALF;
    for (int64_t k = 0; k < codes; ++k) {
      const Quad cost = costs_of(rows, code_rows + k * dim, dim);
      store(s.costs + k * AT_ONCE, cost);
      least = cost < least ? cost : least;
    }
    const Quad limit = least * excess.factor + excess.offset;
    int counts[AT_ONCE] = {};
    for (int64_t k = 0; k < codes; ++k) {
      const auto near = load<Quad>(s.costs + k * AT_ONCE) <= limit;
      if (!(near[0] | near[1] | near[2] | near[3])) continue;
      for (int r = 0; r < AT_ONCE; ++r) {
        if (!near[r]) continue;
        if (counts[r] < LISTED) s.listed[r * LISTED + counts[r]] = static_cast<int32_t>(k);
        ++counts[r];
      }
    }
    for (int r = 0; r < AT_ONCE && r0 + r < count; ++r) {
      const int64_t number = s.rows.numbers[r0 + r];
      const int32_t* list = s.listed + r * LISTED;
      if (!(limit[r] < HUGE_VALF)) {
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
  scan_queued<float>(call, group, s.queue);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
