// What both coarse kernels do with single rows: settle doubtful ones by the oracle, measure distances, write results.
#pragma once

#include <cmath>

#include "load.h"
#include "nearest.h"
#include "oracle.h"
#include "simd.h"

namespace fastvq::cpu::FASTVQ_ISA {

constexpr int LISTED = 64;             // candidates a row can list before the oracle scans every code
constexpr float LARGEST_SQUARE = 1e36f;  // of Y: beyond, the coarse pass could overflow

// The largest coarse score at which a code is out of the question, rounded down.
FASTVQ_INLINE float threshold(const GroupCodes& codes, float best, float square) {
  const double Y2 = (double(square) + codes.norm_offset) * codes.norm_factor, Y = __builtin_sqrt(Y2);
  const double slack = codes.quadratic * Y2 + codes.linear * Y + codes.constant;
  const double lowest = double(best) - slack;
  return static_cast<float>(lowest - __builtin_fabs(lowest) * 0x1p-23) - 0x1p-149f;
}

// Writes one row's result. `cost` is the oracle's, or any value within float32 rounding of it.
template <class T>
FASTVQ_INLINE void write_row(const Nearest& call, int64_t group, int64_t row, int64_t code, double cost) {
  const int64_t at = row * call.x.groups + group;
  call.indices[at] = code;
  const double distance = call.metric == Metric::l2 ? cost : call.metric == Metric::dot ? -cost : 1 + cost;
  static_cast<T*>(call.distances)[at] = code < 0 ? static_cast<T>(NAN) : static_cast<T>(distance);
}

template <class T>
FASTVQ_INLINE void write_masked(const Nearest& call, int64_t group, int64_t row) {
  const int64_t at = row * call.x.groups + group;
  call.indices[at] = -1;
  static_cast<T*>(call.distances)[at] = 0;
}

// The cost of one code in float64, from differences, in any order: the sums differ from the oracle's by float64
// rounding only.
FASTVQ_INLINE double cost_of(const float* row, const float* code, int64_t dim, bool l2) {
  Doubles sums{};
  typedef float Narrow __attribute__((vector_size(2 * LANES)));
  int64_t d = 0;
  for (; d + LANES / 2 <= dim; d += LANES / 2) {
    const Doubles a = __builtin_convertvector(load<Narrow>(row + d), Doubles);
    const Doubles b = __builtin_convertvector(load<Narrow>(code + d), Doubles);
    sums += l2 ? (a - b) * (a - b) : -(a * b);
  }
  double sum = 0;
  for (int lane = 0; lane < LANES / 2; ++lane) sum += sums[lane];
  for (; d < dim; ++d) sum += l2 ? (double(row[d]) - code[d]) * (double(row[d]) - code[d]) : -(double(row[d]) * code[d]);
  return sum;
}

// Rows of one group that wait until a scan over all codes is worth its preparation.
struct ScanQueue {
  double* rows;     // (SCAN_ROWS, D)
  double* scratch;  // scan_scratch(D)
  int64_t numbers[SCAN_ROWS];
  int count;
};

template <class T>
static void scan_queued(const Nearest& call, int64_t group, ScanQueue& queue) {
  if (queue.count == 0) return;
  Winner winners[SCAN_ROWS];
  const T* codes = static_cast<const T*>(call.code_rows) + group * call.code_group_stride;
  scan_codes(queue.rows, queue.count, call.x.dim, codes, call.codebook.codes,
             call.excluded + group * call.codebook.codes, call.metric == Metric::l2, queue.scratch, winners);
  for (int i = 0; i < queue.count; ++i) write_row<T>(call, group, queue.numbers[i], winners[i].code, winners[i].cost);
  queue.count = 0;
}

template <class T>
static void queue_scan(const Nearest& call, int64_t group, int64_t row_number, const T* row, ScanQueue& queue) {
  double* to = queue.rows + queue.count * call.x.dim;
  for (int64_t d = 0; d < call.x.dim; ++d) to[d] = row[d];
  queue.numbers[queue.count++] = row_number;
  if (queue.count == SCAN_ROWS) scan_queued<T>(call, group, queue);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
