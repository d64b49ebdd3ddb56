// Nearest-code search: what is asked, what is prepared once per call, and what an instruction set provides.
//
//   indices[row] = argmin over k of the oracle's cost(row, k) (kernels/reference.py)
//
// in two passes. The coarse pass works in float32 on codes centred by the codebook's mean m and scaled by a power of
// two s. With y = s x - m and e_k = s c_k - m,
//
//   l2:  s^2 |x - c_k|^2 = |y|^2 - 2 S_k,   S_k = y . e_k - |e_k|^2 / 2     (largest S_k = nearest)
//   dot: s x . c_k       = S_k + x . m,     S_k = x . e_k                   (y = x: rows need no centring)
//
// and cosine is dot on rows and codes of unit length. Per row it keeps the best score and the runner-up. Where all
// other scores lie below the best one by more than `slack`, the best code is the oracle's; the remaining rows are
// decided by the oracle itself among the candidates inside the slack.
//
// The slack. u = 2^-24, v = 2^-53, g(n) = n u / (1 - n u), h(n) the same of v; ^ marks computed values; Y = |y^|,
// E = max |e^_k|, C = max |s c_k|, Euclidean norms. Every rounding on the way to S^_k:
//   * y^_d = y_d (1 + r), |r| <= u (the scaling is exact), so |y^ - y| <= u/(1-u) Y; the same for e^.
//     Together |y^.e^ - y.e| <= 2.01 u Y E, and | |e^|^2 - |e|^2 | / 2 <= 1.01 u E^2.
//   * the bias -|e^|^2/2 is summed in float64 and rounded once: 0.51 u E^2 at most for any D < 2^20.
//   * bias + sum of D products, fused or not, in any order: g(D+1) (Y E + E^2/2 (1 + 2u)) (Higham 2002, 3.1).
//   Sum: |S^_k - S_k| <= g(D+5) (Y E + E^2/2) =: eps for l2, and <= g(D+2) Y E < g(D+5) Y E for dot.
//   * the oracle itself: for l2 its cost is d_k^2 (1 + r), |r| <= h(D+3), with d_k <= Y + E, so that its choice may
//     lose h(D+3) (Y+E)^2 in S; for dot it is off by h(D+1) Y C at either code.
//   * underflow, even where it flushes to zero, loses at most 2^-126 in each y^_d, e^_d, product and sum: together
//     less than 2^-126 (sqrt(D) (Y + E) + 2 D + 1) < t (1 + Y + E), t = (D+1) 2^-124. The scale keeps the largest
//     |s c_d| above 2^-40, so that this stays far below eps.
//   * Y itself comes from squares summed in float32: Y^2 <= (sum + D 2^-126) (1 + 2 g(D+1)).
// A code the oracle prefers to the coarse winner therefore scores at least best - slack,
//   l2:  slack = 2 g(D+5) (Y E + E^2/2) + h(D+3) (Y + E)^2 + 2 t (1 + Y + E)
//   dot: slack = 2 g(D+5) Y E + 2 h(D+3) Y C + 2 t (1 + Y + E)
// which is a polynomial in Y: three coefficients a group, inflated by 2^-10 of their value against the rounding of
// this very arithmetic. Rows for which Y is not below 1e18 (overflow was possible), rows with too many candidates and
// all float64 input take the oracle over every code instead. A code that repeats an earlier one bit for bit is left
// out of the coarse pass: it could only tie, and ties go to the lower index.
#pragma once

#include "common.h"

namespace fastvq::cpu {

constexpr int64_t CODE_CHUNK = 64;  // codes that one preparation task reads

struct Codebook {  // (G, K, D), any strides
  const void* data;
  int64_t groups, codes, dim;
  int64_t group_stride, code_stride, dim_stride;
};

struct GroupCodes {  // one group's codebook, ready for the coarse pass
  float scale;       // s, of the codes; rows are scaled by row_scale (1 for dot)
  float row_scale;
  bool searchable;                    // at least one code is finite
  float quadratic, linear, constant;  // slack = quadratic Y^2 + linear Y + constant
  float norm_factor, norm_offset;     // Y^2 <= (sum + norm_offset) norm_factor
};

struct Nearest {
  Rows x;
  Grid<const bool> mask;  // data is null where every row is valid
  Codebook codebook;
  Metric metric;
  bool exact;
  // Results lie result_row_stride apart for rows (numbered R1, R2), result_group_stride for groups.
  int64_t* indices;
  void* distances;  // float, or double for float64 rows
  int64_t result_row_stride, result_group_stride;

  // Filled in by the preparation; leading axes G and K, G and chunks, G and panels.
  int kind;           // which kernels search, as the instruction set numbers them
  bool copies_codes;  // the given codes do not serve: they are strided, or not of unit length
  void* code_rows;    // (G, K, D), the codes as the oracle reads them
  int64_t code_group_stride;
  uint8_t* excluded;      // (G, K): a non-finite entry
  uint8_t* repeated;      // (G, K): excluded, or equal to a code before it
  uint32_t* hashes;       // (G, K)
  double* chunk_sums;     // (G, chunks, D)
  float* chunk_largest;   // (G, chunks): largest |c_d|
  double* chunk_square;   // (G, chunks): largest |c|^2
  int64_t* chunk_finite;  // (G, chunks): codes counted in the sums
  float* mean;            // (G, padded D): m
  float* row_shift;       // (G, padded D): what rows are centred by: m, or zeros for dot
  float* packed;          // (G, packed_size)
  float* panel_square;    // (G, panels): largest |e^|^2
  GroupCodes* groups;
  int64_t chunks, panels, padded_dim, packed_size;
  int32_t* hash_slots;  // (workers, slot_count)
  int64_t slot_count;

  FASTVQ_INLINE int64_t result_at(int64_t group, int64_t row) const {
    return group * result_group_stride + row * result_row_stride;
  }
  FASTVQ_INLINE bool is_double() const { return x.dtype == DType::float64; }
  FASTVQ_INLINE const float* float_codes(int64_t group) const {
    return static_cast<const float*>(code_rows) + group * code_group_stride;
  }
};

struct NearestKernels {
  // Which kernels search, and how the codes of this shape are packed: panels a group, floats a group, floats of a
  // padded row.
  void (*plan)(Nearest&);
  void (*read_codes)(const Nearest&, int64_t group, int64_t chunk);
  void (*centre_codes)(const Nearest&, int64_t group, int worker);
  void (*pack_codes)(const Nearest&, int64_t group, int64_t panel);
  void (*bound_codes)(const Nearest&, int64_t group);
  int64_t (*block_rows)(const Nearest&, int workers);
  int64_t (*scratch_bytes)(const Nearest&, int64_t block_rows);
  void (*search)(const Nearest&, int64_t group, int64_t first_row, int64_t last_row, int64_t block_rows,
                 char* scratch);
};

// Runs the search with the chosen instruction set's kernels on torch's threads; results lie as (R1, R2, G).
void nearest(Nearest& call);

}  // namespace fastvq::cpu
