// Sums the rows of each code: sums[g, k] = sum of x[g, row] with indices[g, row] = k, and counts[g, k].
//
// One task owns SLICE columns of one group and walks all rows in order, so that the sums do not depend on the number
// of threads, need no atomics and no sorting, and equal the reference's: float64 accumulation, n ascending, one final
// rounding. Bytes moved: x once (a slice is a whole cache line of float32), the indices once per slice.
#pragma once

#include "common.h"

namespace fastvq::cpu {

constexpr int64_t SLICE = 16;

struct IndexRange {  // the smallest and largest index met, for the check that they lie in [-1, codes)
  int64_t low = 0, high = -1;

  FASTVQ_INLINE void include(int64_t index) {
    if (index < low) low = index;
    if (index > high) high = index;
  }
  // The index to complain about, or -1.
  FASTVQ_INLINE int64_t outside(int64_t codes) const { return low < -1 ? low : high >= codes ? high : -1; }
};

struct SegmentSum {
  Rows x;
  Grid<const int64_t> indices;
  int64_t codes;
  void* sums;    // (G, K, D): float, or double for float64 rows
  void* counts;  // (G, K)
};

struct SegmentKernels {
  int64_t (*scratch_bytes)(const SegmentSum&);
  void (*sum_slice)(const SegmentSum&, int64_t group, int64_t slice, char* scratch, IndexRange& seen);
};

// Returns the index to complain about, or -1 where all were in range.
int64_t segment_sum(const SegmentSum& call);

}  // namespace fastvq::cpu
