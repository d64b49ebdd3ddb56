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

template <bool L2>
static void costs_of_two(const float* row, const float* a, const float* b, int64_t dim, float scale, float* costs) {
  const Floats s = splat(scale);
  Floats first{}, second{};
  for (int64_t d = 0; d < dim; d += LANES) {
    const Floats x = load_part(row + d, dim - d), p = load_part(a + d, dim - d), q = load_part(b + d, dim - d);
    if (L2) {
      const Floats u = x * s - p * s, v = x * s - q * s;
      first = multiply_add(u, u, first);
      second = multiply_add(v, v, second);
    } else {
      first = multiply_add(-x, p * s, first);
      second = multiply_add(-x, q * s, second);
    }
  }
  costs[0] = sum(first);
  costs[1] = sum(second);
}

// The oracle's choice among `count` listed codes, in any order. `square` is the row's, computed by the coarse pass.
// What "fast" gives is the least cost in float32.
static int32_t decide(const Nearest& call, int64_t group, const float* row, float square, int32_t* list, int count) {
  if (count == 1) return list[0];
  const int64_t dim = call.x.dim;
  const bool l2 = call.metric == Metric::l2;
  const GroupCodes& codes = call.groups[group];
  const float* code_rows = call.float_codes(group);
  float costs[LISTED * VECTORS + 1], least = HUGE_VALF;
  for (int i = 0; i < count; i += 2) {
    const float *a = code_rows + list[i] * dim, *b = code_rows + list[i + 1 < count ? i + 1 : i] * dim;
    if (l2) costs_of_two<true>(row, a, b, dim, codes.scale, costs + i);
    else costs_of_two<false>(row, a, b, dim, codes.scale, costs + i);
    least = costs[i] < least ? costs[i] : least;
    least = costs[i + 1] < least ? costs[i + 1] : least;
  }
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
  return distinct == 1 ? list[0] : static_cast<int32_t>(best_candidate(row, code_rows, dim, l2, list, distinct).code);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
