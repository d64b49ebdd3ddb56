// Sums what each code of a residual stack stood for: sums[g, q, k] = sum of r_q[g, row] with indices[g, row, q] = k.
//
// The residuals r_q are those of the search (residual.h), computed again from rows, indices and codebooks. One task
// owns the columns of a slice and walks all rows in order, a chunk at a time through all stages, so that every sum
// has the reference's order (float64, rows ascending, one final rounding) whatever the number of threads, and no
// array of rows x stages x D is written. Rows, codes and sums are read or written once.
#pragma once

#include "residual.h"
#include "segment.h"

namespace fastvq::cpu {

struct ResidualSum {
  Rows x;
  Grid<const int64_t> indices;  // (G, R1, R2, Q)
  CodeStack codebooks;
  int64_t width;  // columns of a slice
  void* sums;     // (G, Q, K, D): float, or double for float64 rows
  void* counts;   // (G, Q, K)
};

struct ResidualSumKernels {
  int64_t (*slice_scratch_bytes)(const ResidualSum&);
  void (*sum_slice)(const ResidualSum&, int64_t group, int64_t slice, char* scratch, IndexRange& seen);
};

// Returns the index to complain about, or -1 where all were in range.
int64_t residual_segment_sum(ResidualSum& call);

}  // namespace fastvq::cpu
