// Reads rows of any dtype and stride as float32 (or float64).
#pragma once

#include "common.h"
#include "simd.h"

namespace fastvq::cpu::FASTVQ_ISA {

template <class Target, class Source>
FASTVQ_INLINE Target reinterpret(Source value) {
  static_assert(sizeof(Target) == sizeof(Source));
  Target result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

FASTVQ_INLINE float widen(float value) { return value; }
FASTVQ_INLINE double widen(double value) { return value; }
FASTVQ_INLINE float widen(BFloat16 value) { return reinterpret<float>(uint32_t{value.bits} << 16); }

// Exact, subnormals and NaN included: the exponent is moved by a multiplication with 2^112.
FASTVQ_INLINE float widen(Half value) {
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  uint32_t result = reinterpret<uint32_t>(reinterpret<float>(magnitude) * 0x1p112f);
  if ((value.bits & 0x7c00u) == 0x7c00u) result = magnitude | 0x7f800000u;
  return reinterpret<float>(result | (value.bits & 0x8000u) << 16);
}

template <class T>
FASTVQ_INLINE bool all_finite(const T* row, int64_t dim) {
  bool finite = true;
  for (int64_t d = 0; d < dim; ++d) finite &= row[d] - row[d] == T{0};
  return finite;
}

template <class Source, class Target>
static void copy_rows(const void* data, const int64_t* offsets, int64_t count, int64_t dim, int64_t dim_stride,
                      Target* out, int64_t out_stride) {
  const auto* from = static_cast<const Source*>(data);
  if (dim_stride == 1) {
    if constexpr (sizeof(Source) == sizeof(Target)) {
      for (int64_t r = 0; r < count; ++r)
        std::memcpy(out + r * out_stride, from + offsets[r], dim * sizeof(Target));
      return;
    }
    for (int64_t r = 0; r < count; ++r)
      for (int64_t d = 0; d < dim; ++d) out[r * out_stride + d] = widen(from[offsets[r] + d]);
    return;
  }
  // A strided d usually means that rows lie side by side: sixteen cache lines serve sixteen rows before they are
  // left.
  for (int64_t first = 0; first < dim; first += 16) {
    const int64_t last = first + 16 < dim ? first + 16 : dim;
    for (int64_t r = 0; r < count; ++r)
      for (int64_t d = first; d < last; ++d) out[r * out_stride + d] = widen(from[offsets[r] + d * dim_stride]);
  }
}

// Rows at `offsets` (in elements) as float32; `x` is not float64.
static inline void load_rows(const Rows& x, const int64_t* offsets, int64_t count, float* out, int64_t out_stride) {
  const auto copy = x.dtype == DType::float32   ? copy_rows<float, float>
                    : x.dtype == DType::float16 ? copy_rows<Half, float>
                                                : copy_rows<BFloat16, float>;
  copy(x.data, offsets, count, x.dim, x.dim_stride, out, out_stride);
}

// Calls function(a value of the rows' dtype, a value of the dtype that sums and codes have beside it).
template <class Function>
FASTVQ_INLINE void with_types(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::float32: return function(float{}, float{});
    case DType::float64: return function(double{}, double{});
    case DType::float16: return function(Half{}, float{});
    case DType::bfloat16: return function(BFloat16{}, float{});
  }
}

// Flat row numbers and element offsets of the rows [first, last) of one group that the mask keeps; calls
// dropped(row) for the others. Returns how many are kept.
template <class Dropped>
FASTVQ_INLINE int list_rows(const Rows& x, const Grid<const bool>& mask, int64_t group, int64_t first, int64_t last,
                            int64_t* rows, int64_t* offsets, Dropped&& dropped) {
  int count = 0;
  int64_t r1 = first / x.rows2, r2 = first % x.rows2;
  if (!mask.data && last - first <= x.rows2 - r2) {
    const int64_t start = group * x.group_stride + r1 * x.stride1 + r2 * x.stride2;
    for (; count < last - first; ++count) {
      rows[count] = first + count;
      offsets[count] = start + count * x.stride2;
    }
    return count;
  }
  for (int64_t row = first; row < last; ++row) {
    if (mask.data && !mask.data[group * mask.group_stride + r1 * mask.stride1 + r2 * mask.stride2]) {
      dropped(row);
    } else {
      rows[count] = row;
      offsets[count++] = group * x.group_stride + r1 * x.stride1 + r2 * x.stride2;
    }
    if (++r2 == x.rows2) {
      r2 = 0;
      ++r1;
    }
  }
  return count;
}

}  // namespace fastvq::cpu::FASTVQ_ISA
