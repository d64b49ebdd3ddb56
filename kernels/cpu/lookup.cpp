#include "lookup.h"

#include "simd.h"

namespace fastvq::cpu::FASTVQ_ISA {
namespace {

constexpr int TOGETHER = LANES == 16 ? 16 : 8;  // vectors of a sum, in registers
constexpr int MOST = 64;                        // codes added in one go
constexpr int LISTED = 8 * MOST;                // codes of several rows, whose addresses are found beforehand

template <class T, int LENGTH, int COUNT>
FASTVQ_INLINE void add_columns(T* to, bool from_zero, const T* const* codes, int count, int64_t d) {
  typedef T Vector __attribute__((vector_size(LENGTH)));
  constexpr int64_t width = LENGTH / sizeof(T);
  // Unrolled, or the sums would lie in memory.
  Vector sums[COUNT];
#pragma GCC unroll 16
  for (int v = 0; v < COUNT; ++v) sums[v] = from_zero ? Vector{} : load<Vector>(to + d + v * width);
  for (int i = 0; i < count; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < COUNT; ++v) sums[v] += load<Vector>(codes[i] + d + v * width);
  }
#pragma GCC unroll 16
  for (int v = 0; v < COUNT; ++v) store(to + d + v * width, sums[v]);
}

// to = from + code + code + ..., from left to right, over contiguous memory; `from` is `to` itself or zeros.
template <class T>
FASTVQ_INLINE void add_codes(T* to, bool from_zero, const T* const* codes, int count, int64_t dim,
                             int64_t dim_stride) {
  constexpr int64_t whole = 4 * LANES / sizeof(T), half = 32 / sizeof(T), quarter = 16 / sizeof(T);
  int64_t d = 0;
  if (dim_stride == 1) {
    for (; d + TOGETHER * whole <= dim; d += TOGETHER * whole)
      add_columns<T, 4 * LANES, TOGETHER>(to, from_zero, codes, count, d);
    for (; d + 4 * whole <= dim; d += 4 * whole) add_columns<T, 4 * LANES, 4>(to, from_zero, codes, count, d);
    for (; d + whole <= dim; d += whole) add_columns<T, 4 * LANES, 1>(to, from_zero, codes, count, d);
    for (; d + half <= dim; d += half) add_columns<T, 32, 1>(to, from_zero, codes, count, d);
    for (; d + quarter <= dim; d += quarter) add_columns<T, 16, 1>(to, from_zero, codes, count, d);
  }
  for (; d < dim; ++d) {
    T sum = from_zero ? T{0} : to[d];
    for (int i = 0; i < count; ++i) sum += codes[i][d * dim_stride];
    to[d] = sum;
  }
}

// One stage of codes as short as COUNT vectors: each goes where it belongs through registers. Adding it to zero takes
// the sign of a negative one, as every sum from zero does. Groups' indices may lie far apart, a few rows' side by side.
template <class T, int LENGTH, int COUNT>
void gather_short(const Lookup& call, int64_t first, int64_t last, IndexRange& seen) {
  typedef T Vector __attribute__((vector_size(LENGTH)));
  constexpr int64_t ROWS = 8, width = LENGTH / sizeof(T);
  const int64_t row_values = call.groups * call.dim;
  for (int64_t row = first; row < last; row += ROWS) {
    const int64_t count = last - row < ROWS ? last - row : ROWS;
    const int64_t* indices[ROWS];
    int64_t r1 = row / call.rows2, r2 = row % call.rows2;
    for (int64_t i = 0; i < count; ++i) {
      indices[i] = call.indices.data + r1 * call.indices.stride1 + r2 * call.indices.stride2;
      if (++r2 == call.rows2) ++r1, r2 = 0;
    }
    T* to = static_cast<T*>(call.out) + row * row_values;
    const T* codes = static_cast<const T*>(call.codebooks);
    for (int64_t group = 0; group < call.groups; ++group, to += call.dim, codes += call.group_stride)
      for (int64_t i = 0; i < count; ++i) {
        const int64_t code = indices[i][group * call.indices.group_stride];
        const bool inside = code >= 0 && code < call.codes;
        if (!inside) seen.include(code);
        const T* from = codes + (inside ? code * call.code_stride : 0);
        // Codes lie anywhere: the next group's is fetched meanwhile.
        if (group + 1 < call.groups)
          fetch_row(codes + call.group_stride, indices[i][(group + 1) * call.indices.group_stride], call.code_stride);
#pragma GCC unroll 4
        for (int v = 0; v < COUNT; ++v)
          store(to + i * row_values + v * width, inside ? Vector{} + load<Vector>(from + v * width) : Vector{});
      }
  }
}

// Lists the codes of a row from one stage on, and returns how many they are.
template <class T>
FASTVQ_INLINE int list_codes(const Lookup& call, const int64_t* index, const T* codes, int64_t stages, const T** chosen,
                             IndexRange& seen) {
  int count = 0;
  for (int64_t stage = 0; stage < stages; ++stage, index += call.indices.last_stride, codes += call.stage_stride) {
    const int64_t code = *index;
    if (code < 0 || code >= call.codes) {
      seen.include(code);
      continue;
    }
    chosen[count++] = codes + code * call.code_stride;
  }
  return count;
}

template <class T>
void gather_as(const Lookup& call, int64_t first, int64_t last, IndexRange& seen) {
  const int64_t length = call.dim * int64_t{sizeof(T)};
  if (call.stages == 1 && call.dim_stride == 1) {
    if (length == 16) return gather_short<T, 16, 1>(call, first, last, seen);
    if (length == 32) return gather_short<T, 32, 1>(call, first, last, seen);
    if (length == 64) return gather_short<T, 64, 1>(call, first, last, seen);
    if (length == 128) return gather_short<T, 64, 2>(call, first, last, seen);
    if (length == 256) return gather_short<T, 64, 4>(call, first, last, seen);
  }
  const int64_t stages = call.stages < MOST ? call.stages : MOST, row_values = call.groups * call.dim;
  const int64_t together = LISTED / (stages > 8 ? stages : 8);
  const T* listed[LISTED];
  int counts[LISTED / 8];
  for (int64_t row = first; row < last; row += together) {
    const int64_t rows = last - row < together ? last - row : together;
    for (int64_t group = 0; group < call.groups; ++group)
      for (int64_t stage = 0; stage == 0 || stage < call.stages; stage += MOST) {
        const T* codes = static_cast<const T*>(call.codebooks) + group * call.group_stride + stage * call.stage_stride;
        const int64_t left = call.stages - stage < MOST ? call.stages - stage : MOST;
        int64_t r1 = row / call.rows2, r2 = row % call.rows2;
        const T** chosen = listed;
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t* index = call.indices.data + group * call.indices.group_stride + r1 * call.indices.stride1 +
                                 r2 * call.indices.stride2 + stage * call.indices.last_stride;
          counts[i] = list_codes(call, index, codes, left, chosen, seen);
          chosen += counts[i];
          if (++r2 == call.rows2) ++r1, r2 = 0;
        }
        T* to = static_cast<T*>(call.out) + row * row_values + group * call.dim;
        chosen = listed;
        for (int64_t i = 0; i < rows; chosen += counts[i], ++i, to += row_values)
          if (stage == 0 || counts[i] > 0)
            add_codes(to, stage == 0, chosen, counts[i], call.dim, call.dim_stride);
      }
  }
}

void gather(const Lookup& call, int64_t first, int64_t last, IndexRange& seen) {
  if (call.is_double) gather_as<double>(call, first, last, seen);
  else gather_as<float>(call, first, last, seen);
}

}  // namespace

extern const LookupKernels lookup_kernels;
const LookupKernels lookup_kernels{gather};

}  // namespace fastvq::cpu::FASTVQ_ISA
