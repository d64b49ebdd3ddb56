// Sums the chosen codes over the stages: out[row, g] = sum over q of codebooks[g, q, indices[g, row, q]], left to
// right from zero in the codebooks' dtype; -1 adds nothing. Bytes moved: the output once, the codes from cache.
#pragma once

#include "common.h"
#include "segment.h"

namespace fastvq::cpu {

struct Lookup {
  Grid<const int64_t> indices;  // (G, R1, R2, Q)
  int64_t groups, rows1, rows2, stages;
  const void* codebooks;  // (G, Q, K, D), any strides
  bool is_double;
  int64_t codes, dim;
  int64_t group_stride, stage_stride, code_stride, dim_stride;
  void* out;  // (R1, R2, G, D)
};

struct LookupKernels {
  void (*gather)(const Lookup&, int64_t first_row, int64_t last_row, IndexRange& seen);
};

// Returns the index to complain about, or -1 where all were in range.
int64_t lookup(const Lookup& call);

}  // namespace fastvq::cpu
