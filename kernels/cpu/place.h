// Between groups that lie side by side in a row, as a block of rows and its results are given, and one after the other,
// as they are searched.
//
// Narrow rows are part of a cache line, hundreds of bytes apart, and results 4 and 8 bytes: neither a prefetcher nor
// the cache's sets are made for such strides. Read as they are searched, 64 groups of 8 values took 19 to 23 cycles a
// row to stand up (9 from the copy), and results, written as they are found, a tenth of the time.
// Here rows are copied, some groups of one row after those of the last, and results are transposed, four rows of four
// groups at a time.
#pragma once

#include "nearest.h"
#include "simd.h"

namespace fastvq::cpu::FASTVQ_ISA {

template <class T>
struct FourOf {
  typedef T type __attribute__((vector_size(4 * sizeof(T))));
};

constexpr int64_t AHEAD_ROWS = 8;  // fetched as if groups lay side by side; where they do not, that is in vain

// Copies rows [first, last) of neighbouring groups to (groups, stride); row by row, each `dim` long.
template <int DIM>
static void take_whole_rows(const Rows& x, int64_t first_group, int64_t groups, int64_t first, int64_t last, float* to,
                            int64_t stride) {
  const int64_t dim = DIM > 0 ? DIM : x.dim;
  int64_t r1 = first / x.rows2, r2 = first % x.rows2;
  const float* const x0 = static_cast<const float*>(x.data) + first_group * x.group_stride;
  for (int64_t row = first; row < last; ++row, to += dim) {
    const float* from = x0 + r1 * x.stride1 + r2 * x.stride2;
    for (int64_t line = 0; line < groups * dim; line += 16) __builtin_prefetch(from + AHEAD_ROWS * x.stride2 + line);
    for (int64_t g = 0; g < groups; ++g, from += x.group_stride) {
      if constexpr (DIM > 0)
        std::memcpy(to + g * stride, from, DIM * sizeof(float));
      else
        for (int64_t d = 0; d < dim; ++d) to[g * stride + d] = from[d];
    }
    if (++r2 == x.rows2) {
      r2 = 0;
      ++r1;
    }
  }
}

static void take_rows(const Rows& x, int64_t first_group, int64_t groups, int64_t first, int64_t last, float* to,
                      int64_t stride) {
  const auto take = x.dim == 4    ? take_whole_rows<4>
                    : x.dim == 8  ? take_whole_rows<8>
                    : x.dim == 16 ? take_whole_rows<16>
                                  : take_whole_rows<0>;
  take(x, first_group, groups, first, last, to, stride);
}

// to[row * row_stride + group] = from[group * stride + row].
template <class T>
static void place_values(const T* from, int64_t stride, int64_t groups, int64_t rows, T* to, int64_t row_stride) {
  using Four = typename FourOf<T>::type;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4, to += 4 * row_stride) {
    int64_t g = 0;
    for (; g + 4 <= groups; g += 4) {
      Four q[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) q[i] = load<Four>(from + (g + i) * stride + r);
      transpose_four(q);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) store(to + i * row_stride + g, q[i]);
    }
    for (; g < groups; ++g)
      for (int i = 0; i < 4; ++i) to[i * row_stride + g] = from[g * stride + r + i];
  }
  for (; r < rows; ++r, to += row_stride)
    for (int64_t g = 0; g < groups; ++g) to[g] = from[g * stride + r];
}

// Places the results of some rows, from `first` on, of neighbouring groups.
static void place_results(const Nearest& call, const GroupBlock& found, int64_t first_group, int64_t groups,
                          int64_t first, int64_t rows) {
  const int64_t at = call.result_at(first_group, first), apart = call.result_row_stride;
  place_values(found.indices, found.stride, groups, rows, call.indices + at, apart);
  if (call.is_double())
    place_values(static_cast<const double*>(found.distances), found.stride, groups, rows,
                 static_cast<double*>(call.distances) + at, apart);
  else
    place_values(static_cast<const float*>(found.distances), found.stride, groups, rows,
                 static_cast<float*>(call.distances) + at, apart);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
