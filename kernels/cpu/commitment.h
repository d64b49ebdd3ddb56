// The gradient that passes a quantizer straight through, with that of the commitment loss:
//
//   out[row] = grad[row] + scale (codebook[indices[row]] - x[row]),   out[row] = grad[row] where the row does not count
//
// in the dtype of x, every operation rounded; -1 chooses zeros. Bytes moved: x, grad and out once.
#pragma once

#include "common.h"
#include "nearest.h"
#include "segment.h"

namespace fastvq::cpu {

struct CommitmentGrad {
  Rows x, grad;  // (G, R1, R2, D) of one dtype, float32 or float64, contiguous in D
  Grid<const int64_t> indices;
  Grid<const bool> valid;  // data is null where every row counts
  Codebook codebook;       // contiguous in D, of the same dtype
  double scale;
  void* out;  // (R1, R2, G, D)
};

struct CommitmentKernels {
  void (*pull)(const CommitmentGrad&, int64_t first_row, int64_t last_row, IndexRange& seen);
};

// Returns the index to complain about, or -1 where all were in range.
int64_t commitment_grad(const CommitmentGrad& call);

}  // namespace fastvq::cpu
