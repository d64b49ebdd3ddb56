// What both coarse kernels do with single rows: settle doubtful ones by the oracle, measure distances, write results.
#pragma once

#include <cmath>

#include "load.h"
#include "nearest.h"
#include "oracle.h"
#include "score.h"

namespace fastvq::cpu::FASTVQ_ISA {

constexpr int LISTED = 64;               // candidates, or sets of them, that a row can list
constexpr float LARGEST_SQUARE = 1e36f;  // of Y: beyond, the coarse pass could overflow

// The largest score at which a code is out of the question, rounded down; one row a lane. `square` and `lost` are the
// computed squares of the row and of what rounding took from it.
FASTVQ_INLINE Floats slack_of(const GroupCodes& codes, const Slack& slack, Floats square, Floats lost) {
  const Floats factor = splat(codes.norm_factor), offset = splat(codes.norm_offset);
  square = (square + offset) * factor;
  Floats result = splat(slack.quadratic) * square + splat(slack.linear) * square_root(square) + splat(slack.constant);
  if (slack.rounding > 0) result += splat(slack.rounding) * square_root((lost + offset) * factor);
  return result;
}

FASTVQ_INLINE Floats threshold(Floats best, Floats slack) {
  const Floats lowest = best - slack;
  return lowest - magnitude(lowest) * splat(0x1p-22f) - splat(0x1p-126f);
}
FASTVQ_INLINE float threshold(float best, float slack) {
  const float lowest = best - slack;
  return lowest - __builtin_fabsf(lowest) * 0x1p-22f - 0x1p-126f;
}

FASTVQ_INLINE double distance_of(const Nearest& call, double cost) {
  return call.metric == Metric::l2 ? cost : call.metric == Metric::dot ? -cost : 1 + cost;
}

// Writes the codes of a row that asked for several.
static void write_several(const Nearest& call, int64_t group, int64_t row, const Winner* winners) {
  const int64_t at = call.result_at(group, row);
  for (int64_t i = 0; i < call.topk; ++i) {
    const bool found = winners[i].code >= 0;
    call.indices[at + i] = winners[i].code;
    static_cast<double*>(call.distances)[at + i] = found ? distance_of(call, winners[i].cost) : double{NAN};
  }
}

static void write_none_of_several(const Nearest& call, int64_t group, int64_t row, double distance) {
  const int64_t at = call.result_at(group, row);
  for (int64_t i = 0; i < call.topk; ++i) {
    call.indices[at + i] = -1;
    static_cast<double*>(call.distances)[at + i] = distance;
  }
}

// Writes one row's result. `cost` is the oracle's, or any value within float32 rounding of it.
template <class T>
FASTVQ_INLINE void write_row(const Nearest& call, int64_t group, int64_t row, int64_t code, double cost) {
  if (call.topk > 0) return write_none_of_several(call, group, row, NAN);
  const int64_t at = call.result_at(group, row);
  call.indices[at] = code;
  static_cast<T*>(call.distances)[at] = code < 0 ? static_cast<T>(NAN) : static_cast<T>(distance_of(call, cost));
}

template <class T>
FASTVQ_INLINE void write_masked(const Nearest& call, int64_t group, int64_t row) {
  if (call.topk > 0) return write_none_of_several(call, group, row, 0);
  const int64_t at = call.result_at(group, row);
  call.indices[at] = -1;
  static_cast<T*>(call.distances)[at] = 0;
}

// The cost of one code in float64, from differences, in any order: the sums differ from the oracle's by float64
// rounding only.
FASTVQ_INLINE Doubles load_doubles(const float* from) {
  return __builtin_convertvector(load<HalfFloats>(from), Doubles);
}
FASTVQ_INLINE Doubles load_doubles(const double* from) { return load<Doubles>(from); }

template <class T>
static double cost_of(const T* row, const float* code, int64_t dim, bool l2) {
  Doubles sums{};
  int64_t d = 0;
  for (; d + LANES / 2 <= dim; d += LANES / 2) {
    const Doubles a = load_doubles(row + d), b = load_doubles(code + d);
    sums += l2 ? (a - b) * (a - b) : -(a * b);
  }
  double sum = 0;
  for (int lane = 0; lane < LANES / 2; ++lane) sum += sums[lane];
  for (; d < dim; ++d)
    sum += l2 ? (double(row[d]) - code[d]) * (double(row[d]) - code[d]) : -(double(row[d]) * code[d]);
  return sum;
}

// Writes one row's code and its distance, which must not depend on how the code was found: narrow rows get the
// oracle's, the others' differ from it by float64 rounding.
template <class T>
static void write_code(const Nearest& call, int64_t group, int64_t number, const T* row, int64_t code,
                       double oracle_cost) {
  if (code >= 0 && call.kind != Kind::lanes)
    oracle_cost = cost_of(row, call.float_codes(group) + code * call.x.dim, call.x.dim, call.metric == Metric::l2);
  write_row<float>(call, group, number, code, oracle_cost);
}

// Rows of one group that wait until a scan over all codes is worth its preparation.
struct ScanQueue {
  double* rows;     // (SCAN_ROWS, D)
  double* scratch;  // scan_scratch(D)
  Winner* winners;  // (SCAN_ROWS, how many a row asks for)
  int64_t numbers[SCAN_ROWS];
  int count;

  FASTVQ_INLINE void lay_out(Arena& arena, int64_t dim, int64_t topk = 1) {
    rows = arena.take<double>(SCAN_ROWS * dim);
    scratch = arena.take<double>(scan_scratch(dim));
    winners = arena.take<Winner>(SCAN_ROWS * topk);
    count = 0;
  }
};

template <class T>
static void scan_queued(const Nearest& call, int64_t group, ScanQueue& queue) {
  if (queue.count == 0) return;
  Winner* const winners = queue.winners;
  const int64_t dim = call.x.dim, code_count = call.codebook.codes;
  const bool l2 = call.metric == Metric::l2;
  const T* codes = static_cast<const T*>(call.code_rows) + group * call.code_group_stride;
  // Without preparation nothing is marked as excluded; costs of non-finite codes are not finite then.
  const uint8_t* excluded = call.excluded ? call.excluded + group * call.codebook.codes : nullptr;
  if (call.topk > 0)
    scan_topk(queue.rows, queue.count, dim, codes, code_count, excluded, l2, queue.scratch, call.topk, winners);
  else
    scan_codes(queue.rows, queue.count, dim, codes, code_count, excluded, l2, queue.scratch, winners);
  for (int i = 0; i < queue.count; ++i) {
    if (call.topk > 0) write_several(call, group, queue.numbers[i], winners + i * call.topk);
    else if constexpr (sizeof(T) == 8) write_row<T>(call, group, queue.numbers[i], winners[i].code, winners[i].cost);
    else
      write_code(call, group, queue.numbers[i], queue.rows + i * dim, winners[i].code, winners[i].cost);
  }
  queue.count = 0;
}

template <class T>
static void queue_scan(const Nearest& call, int64_t group, int64_t row_number, const T* row, ScanQueue& queue) {
  double* to = queue.rows + queue.count * call.x.dim;
  for (int64_t d = 0; d < call.x.dim; ++d) to[d] = row[d];
  queue.numbers[queue.count++] = row_number;
  if (queue.count == SCAN_ROWS) scan_queued<T>(call, group, queue);
}

// A row too large for the coarse pass, or not finite.
FASTVQ_INLINE void scan_or_drop(const Nearest& call, int64_t group, int64_t number, const float* row,
                                ScanQueue& queue) {
  if (all_finite(row, call.x.dim)) queue_scan(call, group, number, row, queue);
  else write_row<float>(call, group, number, -1, 0);
}

// How many rows make a block: at most as many as share codes in cache, a multiple of `step`, and few enough to leave
// every thread some blocks.
FASTVQ_INLINE int64_t rows_together(const Nearest& call, int64_t step, int64_t most, int workers) {
  const int64_t share = ceil_div(call.total_rows * call.codebook.groups, int64_t{2} * workers);
  if (share < most) most = share;
  return most < step ? step : most / step * step;
}

// The rows of one block that have to be searched.
struct BlockRows {
  int64_t* numbers;
  int64_t* offsets;
  const float** at;  // each as the oracle reads it
  float* values;     // (block, D), where the given memory does not serve

  FASTVQ_INLINE void lay_out(Arena& arena, int64_t dim, int64_t block) {
    numbers = arena.take<int64_t>(block);
    offsets = arena.take<int64_t>(block);
    at = arena.take<const float*>(block);
    values = arena.take<float>(block * dim);
  }

  // Lists the rows [first, last) of a group and writes the results of those that need no search: masked ones, and for
  // cosine, which looks before it normalises, non-finite ones. The other metrics find these by their squares.
  FASTVQ_INLINE int collect(const Nearest& call, int64_t group, int64_t first, int64_t last) {
    const int64_t dim = call.x.dim;
    const bool cosine = call.metric == Metric::cosine;
    const int listed = list_rows(call.x, call.mask, group, first, last, numbers, offsets,
                                 [&](int64_t row) { write_masked<float>(call, group, row); });
    if (call.panels > 0 && call.groups[group].example < 0) {
      for (int r = 0; r < listed; ++r) write_row<float>(call, group, numbers[r], -1, 0);
      return 0;
    }
    if (call.x.dtype == DType::float32 && call.x.dim_stride == 1 && !cosine) {
      for (int r = 0; r < listed; ++r) at[r] = static_cast<const float*>(call.x.data) + offsets[r];
      return listed;
    }
    load_rows(call.x, offsets, listed, values, dim);
    for (int r = 0; r < listed; ++r) at[r] = values + r * dim;
    if (!cosine) return listed;
    int count = 0;
    for (int r = 0; r < listed; ++r) {
      if (!all_finite(at[r], dim)) {
        write_row<float>(call, group, numbers[r], -1, 0);
        continue;
      }
      if (r != count) std::memcpy(values + count * dim, at[r], dim * sizeof(float));
      numbers[count++] = numbers[r];
    }
    unit_rows(values, dim, count, dim, values, dim);
    return count;
  }
};

}  // namespace fastvq::cpu::FASTVQ_ISA
