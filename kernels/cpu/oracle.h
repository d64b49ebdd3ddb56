// The oracle of kernels/reference.py, to the letter: float64, d ascending, one rounding per operation, never fused.
//
// Vectors run across codes or rows, never across d, so every sum has the reference's order. The file behind this
// header is compiled with -ffp-contract=off.
#pragma once

#include "common.h"

namespace fastvq::cpu::FASTVQ_ISA {

struct Winner {
  double cost;   // l2: squared distance; dot and cosine: minus the score
  int64_t code;  // -1 where no code has a finite cost
};

constexpr int SCAN_ROWS = 16;  // rows that one scan takes at most

// The best of `count` listed codes for one row; of equal costs the lowest index.
Winner best_candidate(const float* row, const float* codes, int64_t dim, bool l2, const int32_t* list, int count);

// The costs of `set` pairs of a row and a code that stand side by side as columns, (dim, set) each; `set` is a multiple
// of the vector's length.
void column_costs(const float* rows, const float* codes, int64_t dim, int set, bool l2, double* costs);

// The best of all codes that are not excluded (null: none is), for up to SCAN_ROWS rows of float64 values, (count,
// dim) contiguous. `scratch` holds scan_scratch(dim) doubles. Instantiated for float and double codes.
template <class Code>
void scan_codes(const double* rows, int count, int64_t dim, const Code* codes, int64_t code_count,
                const uint8_t* excluded, bool l2, double* scratch, Winner* winners);
int64_t scan_scratch(int64_t dim);

// The same for the `topk` best, in order: winners (count, topk); where fewer have a finite cost, code -1 follows.
template <class Code>
void scan_topk(const double* rows, int count, int64_t dim, const Code* codes, int64_t code_count,
               const uint8_t* excluded, bool l2, double* scratch, int64_t topk, Winner* winners);

// The costs of `count` pairs of a row and a code.
void pair_costs(const float* const* rows, const float* const* codes, int count, int64_t dim, bool l2, double* costs);

// reference.unit_rows of contiguous rows: out = row / |row|, a zero row stays zero. In place is allowed.
template <class T>
void unit_rows(const T* rows, int64_t row_stride, int64_t count, int64_t dim, T* out, int64_t out_stride);

}  // namespace fastvq::cpu::FASTVQ_ISA
