#include "oracle.h"

#include <cmath>

#include "wide.h"

namespace fastvq::cpu::FASTVQ_ISA {
namespace {

constexpr int WIDTH = LANES / 2;  // float64 lanes
constexpr int VECTORS = 2;        // vectors of codes held at once
constexpr int PANEL = WIDTH * VECTORS;
constexpr int ROWS = 4;  // rows held at once
typedef double Four __attribute__((vector_size(32)));

FASTVQ_INLINE bool precedes(double cost, int64_t code, const Winner& other) {
  return cost < other.cost || (cost == other.cost && code < other.code);
}

// One panel of codes against ROWS rows: costs[row][lane], summed with d ascending.
template <bool L2>
FASTVQ_INLINE void panel_costs(const double* const (&rows)[ROWS], int64_t dim, const double* panel,
                               Doubles (&cost)[ROWS][VECTORS]) {
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) cost[r][v] = Doubles{};
  for (int64_t d = 0; d < dim; ++d) {
    const Doubles codes[VECTORS] = {load<Doubles>(panel + d * PANEL), load<Doubles>(panel + d * PANEL + WIDTH)};
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      const Doubles x = splat(rows[r][d]);
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) {
        if (L2) {
          const Doubles difference = x - codes[v];
          cost[r][v] += difference * difference;
        } else {
          cost[r][v] -= x * codes[v];
        }
      }
    }
  }
}

// PANEL codes from `first` on as float64, d-major; NaN, which is never nearest, where there is none.
template <class Code>
void fill_panel(const void* all, int64_t dim, int64_t code_count, const uint8_t* excluded, int64_t first,
                double* panel) {
  for (int lane = 0; lane < PANEL; ++lane) {
    const int64_t code = first + lane;
    const bool absent = code >= code_count || (excluded && excluded[code]);
    const Code* row = static_cast<const Code*>(all) + (absent ? 0 : code) * dim;
    for (int64_t d = 0; d < dim; ++d) panel[d * PANEL + lane] = absent ? double{NAN} : double(row[d]);
  }
}
using FillPanel = decltype(&fill_panel<float>);

// Calls visit(row, first, costs) for every row and every PANEL codes from `first` on, codes ascending.
template <bool L2, class Visit>
FASTVQ_INLINE void visit_costs(const double* rows, int count, int64_t dim, const void* codes, FillPanel fill,
                               int64_t code_count, const uint8_t* excluded, double* panel, Visit&& visit) {
  const double* const last = rows + (count - 1) * dim;
  for (int64_t first = 0; first < code_count; first += PANEL) {
    fill(codes, dim, code_count, excluded, first, panel);
    for (int r0 = 0; r0 < count; r0 += ROWS) {
      const double* tile[ROWS];
      for (int r = 0; r < ROWS; ++r) tile[r] = r0 + r < count ? rows + (r0 + r) * dim : last;
      Doubles cost[ROWS][VECTORS];
      panel_costs<L2>(tile, dim, panel, cost);
      for (int r = 0; r < ROWS && r0 + r < count; ++r) visit(r0 + r, first, cost[r]);
    }
  }
}

template <bool L2>
void scan(const double* rows, int count, int64_t dim, const void* codes, FillPanel fill, int64_t code_count,
          const uint8_t* excluded, double* panel, Winner* winners) {
  Doubles best[SCAN_ROWS][VECTORS];
  Longs where[SCAN_ROWS][VECTORS];
  for (int r = 0; r < count; ++r)
    for (int v = 0; v < VECTORS; ++v) {
      best[r][v] = splat(double{HUGE_VAL});
      where[r][v] = splat(int64_t{-1});
    }
  visit_costs<L2>(rows, count, dim, codes, fill, code_count, excluded, panel,
                  [&](int r, int64_t first, const Doubles(&cost)[VECTORS]) {
                    for (int v = 0; v < VECTORS; ++v) {
                      const Longs nearer = (cost[v] < best[r][v]) & (cost[v] > splat(-double{HUGE_VAL}));
                      best[r][v] = nearer ? cost[v] : best[r][v];
                      where[r][v] = nearer ? splat(first + v * WIDTH) : where[r][v];
                    }
                  });
  for (int r = 0; r < count; ++r) {
    winners[r] = {HUGE_VAL, -1};
    for (int v = 0; v < VECTORS; ++v)
      for (int lane = 0; lane < WIDTH; ++lane)
        if (where[r][v][lane] >= 0 &&
            (winners[r].code < 0 || precedes(best[r][v][lane], where[r][v][lane] + lane, winners[r])))
          winners[r] = {best[r][v][lane], where[r][v][lane] + lane};
  }
}

// Puts an entry in the place of a heap's first, which all others precede.
FASTVQ_INLINE void replace_first(Winner* heap, int64_t size, const Winner entry) {
  int64_t at = 0;
  for (int64_t child; (child = 2 * at + 1) < size; at = child) {
    if (child + 1 < size && precedes(heap[child].cost, heap[child].code, heap[child + 1])) ++child;
    if (!precedes(entry.cost, entry.code, heap[child])) break;
    heap[at] = heap[child];
  }
  heap[at] = entry;
}

template <bool L2>
void scan_several(const double* rows, int count, int64_t dim, const void* codes, FillPanel fill, int64_t code_count,
                  const uint8_t* excluded, double* panel, int64_t topk, Winner* winners) {
  for (int64_t i = 0; i < count * topk; ++i) winners[i] = {HUGE_VAL, -1};
  visit_costs<L2>(rows, count, dim, codes, fill, code_count, excluded, panel,
                  [&](int r, int64_t first, const Doubles(&cost)[VECTORS]) {
                    Winner* heap = winners + r * topk;
                    for (int i = 0; i < PANEL; ++i) {
                      const double value = cost[i / WIDTH][i % WIDTH];
                      if (value < heap->cost && value > -HUGE_VAL) replace_first(heap, topk, {value, first + i});
                    }
                  });
  for (Winner* heap = winners; heap < winners + count * topk; heap += topk)
    for (int64_t size = topk - 1; size > 0; --size) {
      const Winner entry = heap[size];
      heap[size] = heap[0];
      replace_first(heap, size, entry);
    }
}

// What the cost grows by: lanes = d.
template <bool L2, class Value>
FASTVQ_INLINE void set_term(const Value& x, const Value& code, Value& term) {
  if (L2) term = (x - code) * (x - code);
  else term = -(x * code);
}

// Terms are made with lanes = d and added with lanes = pairs.
template <bool L2>
void costs_of_pairs(const float* const* rows, const float* const* codes, int count, int64_t dim, double* costs) {
  constexpr int FOURS = 2;  // independent sums hide the latency of one
  for (int first = 0; first < count; first += 4 * FOURS) {
    const float *row[4 * FOURS], *code[4 * FOURS];
    for (int i = 0; i < 4 * FOURS; ++i) {
      row[i] = rows[first + i < count ? first + i : count - 1];
      code[i] = codes[first + i < count ? first + i : count - 1];
    }
    Four cost[FOURS] = {};
    int64_t d = 0;
    for (; d + 4 <= dim; d += 4)
#pragma GCC unroll 2
      for (int f = 0; f < FOURS; ++f) {
        Four term[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
          set_term<L2>(__builtin_convertvector(load<Quad>(row[4 * f + i] + d), Four),
                       __builtin_convertvector(load<Quad>(code[4 * f + i] + d), Four), term[i]);
        transpose_four(term);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) cost[f] += term[i];
      }
    for (int i = 0; i < 4 * FOURS && first + i < count; ++i) {
      double sum = cost[i / 4][i % 4], term;
      for (int64_t rest = d; rest < dim; ++rest) {
        set_term<L2>(double{row[i][rest]}, double{code[i][rest]}, term);
        sum += term;
      }
      costs[first + i] = sum;
    }
  }
}

template <bool L2>
Winner choose(const float* row, const float* codes, int64_t dim, const int32_t* list, int count) {
  constexpr int AT_ONCE = 4;  // independent sums hide the latency of one
  Winner winner{HUGE_VAL, -1};
  for (int first = 0; first < count; first += AT_ONCE) {
    const float* code[AT_ONCE];
    double cost[AT_ONCE] = {};
    for (int i = 0; i < AT_ONCE; ++i) code[i] = codes + list[first + i < count ? first + i : count - 1] * dim;
    for (int64_t d = 0; d < dim; ++d) {
      const double x = row[d];
      for (int i = 0; i < AT_ONCE; ++i) {
        if (L2) {
          const double difference = x - double(code[i][d]);
          cost[i] += difference * difference;
        } else {
          cost[i] -= x * double(code[i][d]);
        }
      }
    }
    for (int i = 0; i < AT_ONCE && first + i < count; ++i)
      if (winner.code < 0 || precedes(cost[i], list[first + i], winner)) winner = {cost[i], list[first + i]};
  }
  return winner;
}

}  // namespace

Winner best_candidate(const float* row, const float* codes, int64_t dim, bool l2, const int32_t* list, int count) {
  return l2 ? choose<true>(row, codes, dim, list, count) : choose<false>(row, codes, dim, list, count);
}

void column_costs(const float* rows, const float* codes, int64_t dim, int set, bool l2, double* costs) {
  for (int r = 0; r < set; r += WIDE) {
    Wide cost{};
    for (int64_t d = 0; d < dim; ++d) {
      const Wide x = load_wide(rows + d * set + r), c = load_wide(codes + d * set + r), gap = subtract_wide(x, c);
      cost = l2 ? add_wide(cost, gap * gap) : subtract_wide(cost, x * c);
    }
    store(costs + r, cost);
  }
}

int64_t scan_scratch(int64_t dim) { return dim * PANEL; }

template <class Code>
void scan_codes(const double* rows, int count, int64_t dim, const Code* codes, int64_t code_count,
                const uint8_t* excluded, bool l2, double* scratch, Winner* winners) {
  const auto run = l2 ? scan<true> : scan<false>;
  run(rows, count, dim, codes, fill_panel<Code>, code_count, excluded, scratch, winners);
}

template <class Code>
void scan_topk(const double* rows, int count, int64_t dim, const Code* codes, int64_t code_count,
               const uint8_t* excluded, bool l2, double* scratch, int64_t topk, Winner* winners) {
  const auto run = l2 ? scan_several<true> : scan_several<false>;
  run(rows, count, dim, codes, fill_panel<Code>, code_count, excluded, scratch, topk, winners);
}

void pair_costs(const float* const* rows, const float* const* codes, int count, int64_t dim, bool l2, double* costs) {
  const auto run = l2 ? costs_of_pairs<true> : costs_of_pairs<false>;
  run(rows, codes, count, dim, costs);
}

template <class T>
void unit_rows(const T* rows, int64_t row_stride, int64_t count, int64_t dim, T* out, int64_t out_stride) {
  constexpr int AT_ONCE = 8;
  for (int64_t first = 0; first < count; first += AT_ONCE) {
    const int n = static_cast<int>(count - first < AT_ONCE ? count - first : AT_ONCE);
    const T* row[AT_ONCE];
    double square[AT_ONCE] = {};
    for (int r = 0; r < AT_ONCE; ++r) row[r] = rows + (first + (r < n ? r : 0)) * row_stride;
    for (int64_t d = 0; d < dim; ++d)
      for (int r = 0; r < AT_ONCE; ++r) {
        const double value = row[r][d];
        square[r] += value * value;
      }
    for (int r = 0; r < n; ++r) {
      const double norm = __builtin_sqrt(square[r]);
      T* to = out + (first + r) * out_stride;
      for (int64_t d = 0; d < dim; ++d) to[d] = norm == 0 ? T{0} : static_cast<T>(double(row[r][d]) / norm);
    }
  }
}

template void scan_codes<float>(const double*, int, int64_t, const float*, int64_t, const uint8_t*, bool, double*,
                                Winner*);
template void scan_codes<double>(const double*, int, int64_t, const double*, int64_t, const uint8_t*, bool, double*,
                                 Winner*);
template void scan_topk<float>(const double*, int, int64_t, const float*, int64_t, const uint8_t*, bool, double*,
                               int64_t, Winner*);
template void scan_topk<double>(const double*, int, int64_t, const double*, int64_t, const uint8_t*, bool, double*,
                                int64_t, Winner*);
template void unit_rows<float>(const float*, int64_t, int64_t, int64_t, float*, int64_t);
template void unit_rows<double>(const double*, int64_t, int64_t, int64_t, double*, int64_t);

}  // namespace fastvq::cpu::FASTVQ_ISA
