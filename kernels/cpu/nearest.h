// Nearest-code search: what is asked, what is prepared of a codebook, and what an instruction set provides.
//
//   indices[row] = argmin over k of the oracle's cost(row, k) (kernels/reference.py)
//
// in two passes. The coarse pass works in float32 on codes centred by the codebook's mean m and scaled by a power of
// two s. With y = s x - m and e_k = s c_k - m,
//
//   l2:  s^2 |x - c_k|^2 = |y|^2 - 2 S_k,   S_k = y . e_k - |e_k|^2 / 2     (largest S_k = nearest)
//   dot: s x . c_k       = S_k + x . m,     S_k = x . e_k                   (y = x: rows need no centring)
//
// and cosine is dot on rows and codes of unit length. Where all other scores lie below the best one by more than
// `slack`, the best code is the oracle's; the remaining rows are decided by the oracle itself among the candidates
// inside the slack.
//
// The slack. u = 2^-24, v = 2^-53, g(n) = n u / (1 - n u), h(n) the same of v; ^ marks computed values; Y = |y^|,
// E = max |e^_k|, C = max |s c_k| <= E + |m|, Euclidean norms. Every rounding on the way to S^_k:
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
// all float64 input take the oracle over every code instead.
//
// Outliers. For l2, a few codes far longer than all others would widen every slack. The first two levels leave them out
// and take E over the others: with F their least |e_k|, |y - e_k| >= F - Y, and |y - e_j| <= Y + E for any other code j,
// so that no outlier is nearest, nor does the oracle's rounding make it so, where Y < 0.499 F - 0.501 E. The remaining
// rows are searched in float64 on all codes.
//
// A coarse pass in bytes or in bfloat16 has a wider slack (bytes.h, bfloat16.h), one in float64 a narrower (dense.h).
// Which one a block of rows gets depends on how well the blocks before it went; what it finds does not.
#pragma once

#include "common.h"

namespace fastvq::cpu {

constexpr int64_t CODE_CHUNK = 64;                // codes that are read together
constexpr int64_t COARSE_DIM = int64_t{1} << 20;  // beyond, the slack's constants are no longer proven

struct Codebook {  // (G, K, D), any strides
  const void* data;
  int64_t groups, codes, dim;
  int64_t group_stride, code_stride, dim_stride;
};

// Which kernels search: the oracle over every code, differences from the codes as they lie in memory, rows side by
// side in a vector (narrow rows), codes side by side in a vector.
enum class Kind : int { scan, direct, lanes, panels };

// What a coarse pass computes in.
enum Format : int { SINGLES, PAIRS, BYTES, DOUBLES, FORMATS };

// What a block of rows is searched with: 0 is the fastest pass where close calls are few. Those after it are more
// exact, and leave out codes that repeat an earlier one bit for bit, which can only tie. After those that read packed
// codes, `levels` of them, comes float64.
using Level = int;
constexpr int PACKED_LEVELS = 3;  // at most

// How far below the best score a candidate may lie: quadratic Y^2 + linear Y + constant + rounding R, where R is the
// norm of what rounding a row to bfloat16 took away.
struct Slack {
  float quadratic, linear, constant, rounding;
};

struct GroupCodes {  // one group's codebook, ready for the coarse pass
  float scale;       // s, of the codes; rows are scaled by row_scale (1 for dot)
  float row_scale;
  int32_t example;                 // the first finite code, -1 where there is none
  bool whole;                      // every code is finite, as far as they have been read
  bool sampled;                    // mean and scale are of some of the codes
  Slack slack[FORMATS];            // of each pass
  float norm_factor, norm_offset;  // Y^2 <= (sum + norm_offset) norm_factor
  float code_square;               // E^2
  float given_norm;                // C
  float steps_long, steps_lost;    // at most, of any code in its own steps: its norm, and what rounding to bytes took
  float least_step;                // of rows, for columns: no bias is more than 2^21 products of two steps
  float least_bias;                // below it codes are outliers
  float near_square;               // computed squares of rows below it are near enough to ignore outliers
  Slack given;                     // dot: of float32 scores on the codes as they are given
};

// A codebook as a search reads it. Nothing here depends on the rows.
struct PreparedCodes {
  Codebook codebook;
  Metric metric;
  bool doubles;  // float64 rows and codes
  int64_t topk;  // how many codes a row asks for, codes that repeat others included (topk.h); 0 for the nearest one
  Kind kind;
  bool copies_codes;  // the given codes do not serve: they are strided, or not of unit length
  void* code_rows;    // (G, K, D), the codes as the oracle reads them
  int64_t code_group_stride;

  // Leading axes G and K, G and chunks, G and panels. width is D padded with zeros to whole vectors.
  int64_t chunks, panels, width;
  int64_t skipped;        // chunks left unread after each that is read: any m will do, and packing finds what is odd
  uint8_t* excluded;      // (G, K): a non-finite entry
  double* chunk_sums;     // (G, chunks, width)
  float* chunk_largest;   // (G, chunks): largest |c_d|
  int64_t* chunk_finite;  // (G, chunks): codes counted in the sums
  float* mean;            // (G, width): m
  float* row_shift;       // (G, width): what rows are centred by: m, or zeros for dot
  float* panel_square;    // (G, panels): largest |e^|^2
  // (G, panels): the largest square of what rounding a code took away, and of a code; both in steps for bytes.
  float* panel_rounding;
  float* panel_steps;
  GroupCodes* groups;

  // Of each level that packs codes.
  int levels;
  Format format[PACKED_LEVELS];
  int64_t depth[PACKED_LEVELS];       // 4-byte entries a code has in its panel, besides the header
  int64_t panel_size[PACKED_LEVELS];  // such entries in a panel
  char* packed[PACKED_LEVELS];        // (G, panels, panel_size)
  int64_t column_size;  // 4-byte entries of a panel's columns (columns.h), 0 where the first level goes without
  char* columns;        // (G, panels, column_size)

  // Of the levels after the first, made when a search first asks for them.
  int32_t* made;        // (G, PACKED_LEVELS): NONE, BUSY, then what there is
  uint8_t* repeated;    // (G, K): excluded, or equal to a code before it
  uint32_t* hashes;     // (G, K)
  int32_t* hash_slots;  // (G, slot_count)
  int64_t slot_count;

  FASTVQ_INLINE const float* float_codes(int64_t group) const {
    return static_cast<const float*>(code_rows) + group * code_group_stride;
  }
  FASTVQ_INLINE float* columns_of(int64_t group, int64_t panel) const {
    return reinterpret_cast<float*>(columns) + (group * panels + panel) * column_size;
  }
  FASTVQ_INLINE float* panel_of(int level, int64_t group, int64_t panel) const {
    return reinterpret_cast<float*>(packed[level]) + (group * panels + panel) * panel_size[level];
  }
};

// How the search of one group goes. Changed by any task, read by all.
struct alignas(64) Progress {
  int32_t level;
  int64_t rows, effort;  // rows searched on this level, and what their close calls cost on top of the coarse pass
};

struct Nearest : PreparedCodes {
  Rows x;
  Grid<const bool> mask;  // data is null where every row is valid
  bool exact;
  // Results lie result_row_stride apart for rows (numbered R1, R2), result_group_stride for groups; number result_first
  // is the first one.
  int64_t* indices;
  void* distances;  // float, or double for float64 rows and for several codes
  int64_t result_row_stride, result_group_stride, result_first;
  Progress* progress;  // (G)
  int64_t total_rows;  // of a group, in all blocks

  FASTVQ_INLINE bool is_double() const { return x.dtype == DType::float64; }
  FASTVQ_INLINE int64_t result_at(int64_t group, int64_t row) const {
    return group * result_group_stride + row * result_row_stride - result_first;
  }
};

// A block of a few groups, one group after the other.
struct GroupBlock {
  int64_t* indices;  // (groups, stride)
  void* distances;   // (groups, stride)
  int64_t stride;
  float* rows;  // (groups, row_stride), null where they are read as they are given
  int64_t row_stride;
};

struct NearestKernels {
  // Decides, for that many rows of each group, which kernels search and how codes are packed.
  void (*plan)(PreparedCodes&, int64_t rows);
  // The preparation, in this order: of a chunk of codes (and those skipped after it), of a group, of a panel, of a
  // group.
  void (*read_codes)(const PreparedCodes&, int64_t group, int64_t chunk);
  void (*centre_codes)(const PreparedCodes&, int64_t group);
  void (*pack_codes)(const PreparedCodes&, int64_t group, int64_t panel);
  void (*bound_codes)(const PreparedCodes&, int64_t group);
  int64_t (*block_rows)(const Nearest&, int workers);
  int64_t (*scratch_bytes)(const Nearest&, int64_t block_rows);
  void (*search)(const Nearest&, int64_t group, int64_t first_row, int64_t last_row, int64_t block_rows,
                 char* scratch);
  void (*take)(const Rows&, int64_t first_group, int64_t groups, int64_t first_row, int64_t last_row, float* to,
               int64_t stride);
  void (*place)(const Nearest&, const GroupBlock&, int64_t first_group, int64_t groups, int64_t first_row,
                int64_t rows);
};

// Runs the search with the chosen instruction set's kernels on torch's threads; results lie as (R1, R2, G).
void nearest(Nearest& call);

}  // namespace fastvq::cpu
