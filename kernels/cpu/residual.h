// Residual stacks: every stage takes the nearest code of what the stages before it left (kernels/reference.py).
//
//   r_1 = x;  c_q = the oracle's code for r_q;  r_{q+1} = r_q - c_q;  quantized = ((0 + c_1) + c_2) + ...
//
// with r, c and quantized in float32, or float64 for float64 rows. A block of rows goes through all stages while its
// residuals stay in a cache; nothing is written but results.
#pragma once

#include "nearest.h"

namespace fastvq::cpu {

struct CodeStack {  // codebooks (G, Q, K, D), any strides; a shared codebook has a stage stride of 0
  const void* data;
  bool is_double;
  int64_t groups, stages, codes, dim;
  int64_t group_stride, stage_stride, code_stride, dim_stride;
};

// The first `size` codes of a stage.
FASTVQ_INLINE Codebook codebook_of(const CodeStack& stack, int64_t stage, int64_t size) {
  const int64_t offset = stage * stack.stage_stride * (stack.is_double ? 8 : 4);
  return {static_cast<const char*>(stack.data) + offset, stack.groups, size, stack.dim, stack.group_stride,
          stack.code_stride, stack.dim_stride};
}

struct ResidualNearest {
  Rows x;
  Grid<const bool> mask;       // data is null where every row is valid
  Grid<const int64_t> stages;  // (R1, R2), how many stages a row takes; data is null where all take all
  CodeStack codebooks;
  const int64_t* sizes;  // (Q), the codes of each stage that count, or null for all
  bool exact;
  int64_t* indices;  // (R1, R2, G, Q)
  void* errors;      // (R1, R2, G, Q)
  void* quantized;   // (R1, R2, G, D), of the rows' dtype
};

// Rows of one task that take at least one stage, those that take most first: a prefix of them is left at every stage.
struct ResidualBlock {
  int64_t* numbers;
  int64_t* offsets;  // of x, in elements
  int32_t* depths;   // how many stages each takes
  int64_t* order;    // (block, 3), to sort in
  void* residuals;   // (block, D), of the codebooks' dtype
  const void* rows;  // what the stage in hand searches, row_stride elements apart: rows as given, or residuals
  int64_t row_stride;
  int64_t* codes;    // (block), what the stage in hand found
  void* errors;      // (block)
  void* sum;         // (D)
};

// For codes that lie whole, one after the other: strides of D and 1 in the last two axes.
struct ResidualKernels {
  // Lists the rows [first, last) of a group, and loads them where the given memory does not serve; writes the results
  // of those that take no stage.
  int (*begin)(const ResidualNearest&, int64_t group, int64_t first, int64_t last, ResidualBlock&);
  // Writes what a stage found for the rows [first, last) of the block, and stores the next stage's residuals.
  void (*advance)(const ResidualNearest&, int64_t group, int64_t stage, int64_t first, int64_t last,
                  const ResidualBlock&);
  // Adds up the codes of the block's rows.
  void (*finish)(const ResidualNearest&, int64_t group, int count, const ResidualBlock&);
};

void residual_nearest(ResidualNearest& call);

}  // namespace fastvq::cpu
