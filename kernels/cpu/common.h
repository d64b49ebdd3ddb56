// Types that every CPU kernel shares: what a tensor looks like without torch, and scratch memory.
//
// Files compiled once per instruction set include only this kind of header: no torch, no standard library template,
// and every inline function outside the instruction set's own namespace forced inline. Otherwise the linker would
// keep one copy of such a function, perhaps the one with AVX-512 in it, for every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#define FASTVQ_INLINE inline __attribute__((always_inline))

namespace fastvq::cpu {

enum class DType : int { float32, float64, float16, bfloat16 };
enum class Metric : int { l2, cosine, dot };

// Rows (G, R1, R2, D) of any strides, counted in elements.
struct Rows {
  const void* data;
  DType dtype;
  int64_t groups, rows1, rows2, dim;
  int64_t group_stride, stride1, stride2, dim_stride;

  FASTVQ_INLINE int64_t rows() const { return rows1 * rows2; }
};

// Values of one small type over (G, R1, R2) and perhaps a last axis, any strides.
template <class T>
struct Grid {
  T* data;
  int64_t group_stride, stride1, stride2, last_stride;
};

FASTVQ_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FASTVQ_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Fetches the row of an index that nobody has checked yet: no address may harm.
template <class T>
FASTVQ_INLINE void fetch_row(const T* rows, int64_t index, int64_t stride) {
  const auto offset = static_cast<uintptr_t>(index) * static_cast<uintptr_t>(stride) * sizeof(T);
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(rows) + offset));
}

// Hands out 64-byte aligned parts of one allocation. Over a null base it only measures.
class Arena {
 public:
  FASTVQ_INLINE explicit Arena(char* base) : base_(reinterpret_cast<uintptr_t>(base)) {}

  template <class T>
  FASTVQ_INLINE T* take(int64_t count) {
    const uintptr_t part = base_ + static_cast<uintptr_t>(used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return reinterpret_cast<T*>(part);
  }

  FASTVQ_INLINE int64_t used() const { return used_; }

 private:
  uintptr_t base_;
  int64_t used_ = 0;
};

}  // namespace fastvq::cpu
