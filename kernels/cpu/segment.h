// Sums the rows of each code: sums[g, k] = sum of x[g, row] with indices[g, row] = k, and counts[g, k].
//
// Every sum has one owner that adds its rows in order, so that results do not depend on the number of threads, need
// no atomics, and equal the reference's: float64 accumulation, rows ascending, one final rounding. Wide rows are
// listed by code first (a counting sort); one task then owns the codes of a range and reads each row once, whole.
// Narrow or strided rows are cheaper to add where they belong: one task owns SLICE columns of a few groups, whose sums
// stay in its cache, and walks all their rows.
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

// The rows of each group by code. Each chunk of rows counts and places its own, so chunks need not wait for another.
struct CodeOrder {
  int64_t chunks, chunk_rows;
  int64_t* places;   // (G, chunks, K): how many rows of the code the chunk has, then where its next one goes
  int64_t* starts;   // (G, K + 1)
  int64_t* offsets;  // (G, rows): of x, in elements
};

struct SegmentKernels {
  int64_t (*slice_scratch_bytes)(const SegmentSum&);  // of one group
  void (*sum_slice)(const SegmentSum&, int64_t first_group, int64_t groups, int64_t slice, char* scratch,
                    IndexRange& seen);
  void (*sum_codes)(const SegmentSum&, const CodeOrder&, int64_t group, int64_t first_code, int64_t last_code);
};

// Returns the index to complain about, or -1 where all were in range.
int64_t segment_sum(const SegmentSum& call);

}  // namespace fastvq::cpu
