// Decides a row among a few codes: float32 on the values as given first, the oracle among those that leaves.
//
// l2, in the terms of nearest.h: a cost sums D squares of differences s x_d - s c_d, in any order, fused or not:
//   |cost_k - s^2 d_k^2| <= g(D+3) s^2 d_k^2 + w,   w = D 2^-125 for squares and sums that underflow.
// The oracle's choice has d^2 at most (1 + h(D+3)) / (1 - h(D+3)) times that of the code with the least cost, hence
//   cost <= (1 + 2.5 g(D+3)) least cost + 3 w,
// however far codes and rows lie from the origin or the mean. dot: D products of x_d and s c_d are off by g(D+2) Y C
// and underflow, so the slack is that of the coarse pass with C for E.
#pragma once

#include "codes.h"
#include "rows.h"

namespace fastvq::cpu::FASTVQ_ISA {

// What a cost may exceed the least one by: (factor - 1) of it, and an offset.
struct Excess {
  float factor, offset;

  FASTVQ_INLINE Excess(int64_t dim, bool exact) : factor(1), offset(0) {
    if (!exact) return;
    const float gamma = static_cast<float>(dim + 3) * 0x1p-24f / (1 - static_cast<float>(dim + 3) * 0x1p-24f);
    factor = 1 + 2.6f * gamma;
    offset = static_cast<float>(dim) * 0x1p-123f;
  }
};

constexpr int ORACLE_COSTS = 12;  // codes rescored in float32 take as long as the oracle's cost of one
constexpr int RESCORED = 4;  // codes at most that share the reading of a row

// The costs of the first COUNT of the listed codes.
template <bool L2, bool SCALED, int COUNT>
FASTVQ_INLINE void costs_of(const float* row, const float* code_rows, const int32_t* list, int64_t dim, float scale,
                            float* costs) {
  const float* codes[COUNT];
#pragma GCC unroll 4
  for (int i = 0; i < COUNT; ++i) codes[i] = code_rows + list[i] * dim;
  const Floats s = splat(scale);
  Floats cost[COUNT] = {};
  for (int64_t d = 0; d < dim; d += LANES) {
    Floats x = load_part(row + d, dim - d);
    if (L2 && SCALED) x *= s;
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) {
      Floats c = load_part(codes[i] + d, dim - d);
      if (SCALED) c *= s;
      cost[i] = L2 ? multiply_add(x - c, x - c, cost[i]) : multiply_add(-x, c, cost[i]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < COUNT; ++i) costs[i] = sum(cost[i]);
}

// The costs of all listed codes; returns the least one.
template <bool L2, bool SCALED>
static float costs_of_all(const float* row, const float* code_rows, const int32_t* list, int count, int64_t dim,
                          float scale, float* costs) {
  int done = 0;
  for (; done + RESCORED <= count; done += RESCORED)
    costs_of<L2, SCALED, RESCORED>(row, code_rows, list + done, dim, scale, costs + done);
  for (; done + 2 <= count; done += 2) costs_of<L2, SCALED, 2>(row, code_rows, list + done, dim, scale, costs + done);
  if (done < count) costs_of<L2, SCALED, 1>(row, code_rows, list + done, dim, scale, costs + done);
  float least = HUGE_VALF;
  for (int i = 0; i < count; ++i) least = costs[i] < least ? costs[i] : least;
  return least;
}

// The oracle's choice among `count` listed codes, in any order. `square` is the row's, computed by the coarse pass.
// What "fast" gives is the least cost in float32. Adds to `rescored` the codes that were, at what the oracle takes.
static int32_t decide(const Nearest& call, int64_t group, const float* row, float square, int32_t* list, int count,
                      int64_t& rescored) {
  if (count == 1) return list[0];
  rescored += count;
  const int64_t dim = call.x.dim;
  const bool l2 = call.metric == Metric::l2;
  const GroupCodes& codes = call.groups[group];
  const float* code_rows = call.float_codes(group);
  float costs[LISTED * VECTORS];
  const auto run = codes.scale == 1 ? (l2 ? costs_of_all<true, false> : costs_of_all<false, false>)
                                    : (l2 ? costs_of_all<true, true> : costs_of_all<false, true>);
  const float least = run(row, code_rows, list, count, dim, codes.scale, costs);
  float limit = least;
  if (l2) {
    const Excess excess(dim, call.exact);
    limit = least * excess.factor + excess.offset;
  } else if (call.exact) {
    limit = -threshold(splat(-least), slack_of(codes, codes.given, splat(square), Floats{}))[0];
  }
  int left = 0;
  for (int i = 0; i < count; ++i)
    if (!(costs[i] > limit)) list[left++] = list[i];
  for (int i = 1; i < left; ++i) {  // the lowest index first
    const int32_t code = list[i];
    if (code < list[0]) {
      list[i] = list[0];
      list[0] = code;
    }
  }
  if (left == 1 || !call.exact) return list[0];
  int distinct = 1;
  for (int i = 1; i < left; ++i)
    if (std::memcmp(code_rows + list[i] * dim, code_rows + list[0] * dim, dim * sizeof(float)) != 0)
      list[distinct++] = list[i];
  if (distinct == 1) return list[0];
  rescored += ORACLE_COSTS * distinct;
  return static_cast<int32_t>(best_candidate(row, code_rows, dim, l2, list, distinct).code);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
