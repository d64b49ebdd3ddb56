#include "lookup.h"

#include "simd.h"

namespace fastvq::cpu::FASTVQ_ISA {
namespace {

constexpr int TOGETHER = LANES == 16 ? 16 : 8;  // vectors of a sum, in registers
constexpr int MOST = 64;                        // codes added in one go

template <class T, int LENGTH, int COUNT>
FASTVQ_INLINE void add_columns(T* to, bool from_zero, const T* const* codes, int count, int64_t d) {
  typedef T Vector __attribute__((vector_size(LENGTH)));
  constexpr int64_t width = LENGTH / sizeof(T);
  Vector sums[COUNT] = {};
  if (!from_zero)
    for (int v = 0; v < COUNT; ++v) sums[v] = load<Vector>(to + d + v * width);
  for (int i = 0; i < count; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < COUNT; ++v) sums[v] += load<Vector>(codes[i] + d + v * width);
  }
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

// One stage of codes as short as LENGTH bytes: each goes where it belongs through one register. Adding it to zero takes
// the sign of a negative one, as every sum from zero does. Groups' indices may lie far apart, a few rows' side by side.
template <class T, int LENGTH>
void gather_short(const Lookup& call, int64_t first, int64_t last, IndexRange& seen) {
  typedef T Vector __attribute__((vector_size(LENGTH)));
  constexpr int64_t ROWS = 8;
  const int64_t row_values = call.groups * call.dim;
  for (int64_t row = first; row < last; row += ROWS) {
    const int64_t count = last - row < ROWS ? last - row : ROWS;
    const int64_t* indices[ROWS];
    for (int64_t i = 0; i < count; ++i)
      indices[i] = call.indices.data + (row + i) / call.rows2 * call.indices.stride1 +
                   (row + i) % call.rows2 * call.indices.stride2;
    T* to = static_cast<T*>(call.out) + row * row_values;
    const T* codes = static_cast<const T*>(call.codebooks);
    for (int64_t group = 0; group < call.groups; ++group, to += call.dim, codes += call.group_stride)
      for (int64_t i = 0; i < count; ++i) {
        const int64_t code = indices[i][group * call.indices.group_stride];
        const bool inside = code >= 0 && code < call.codes;
        if (!inside) seen.include(code);
        store(to + i * row_values, inside ? Vector{} + load<Vector>(codes + code * call.code_stride) : Vector{});
      }
  }
}

template <class T>
void gather_as(const Lookup& call, int64_t first, int64_t last, IndexRange& seen) {
  const int64_t length = call.stages == 1 && call.dim_stride == 1 ? call.dim * int64_t{sizeof(T)} : 0;
  if (length == 16) return gather_short<T, 16>(call, first, last, seen);
  if (length == 32) return gather_short<T, 32>(call, first, last, seen);
  if (length == 64) return gather_short<T, 64>(call, first, last, seen);
  const T* chosen[MOST];
  for (int64_t row = first; row < last; ++row) {
    const int64_t r1 = row / call.rows2, r2 = row % call.rows2;
    for (int64_t group = 0; group < call.groups; ++group) {
      T* to = static_cast<T*>(call.out) + (row * call.groups + group) * call.dim;
      const int64_t* index = call.indices.data + group * call.indices.group_stride + r1 * call.indices.stride1 +
                             r2 * call.indices.stride2;
      const T* codes = static_cast<const T*>(call.codebooks) + group * call.group_stride;
      bool empty = true;
      int count = 0;
      for (int64_t stage = 0; stage < call.stages; ++stage) {
        const int64_t code = index[stage * call.indices.last_stride];
        if (code < 0 || code >= call.codes) {
          seen.include(code);
          continue;
        }
        chosen[count++] = codes + stage * call.stage_stride + code * call.code_stride;
        if (count < MOST) continue;
        add_codes(to, empty, chosen, count, call.dim, call.dim_stride);
        empty = false;
        count = 0;
      }
      if (count > 0 || empty) add_codes(to, empty, chosen, count, call.dim, call.dim_stride);
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
