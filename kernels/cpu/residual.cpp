#include "residual.h"

#include <cmath>

#include "load.h"
#include "simd.h"

namespace fastvq::cpu::FASTVQ_ISA {
namespace {

template <class T>
struct Vectors {  // of one register, and of 16 bytes for what is left of a row
  typedef T Whole __attribute__((vector_size(4 * LANES)));
  typedef T Part __attribute__((vector_size(16)));
  static constexpr int64_t WHOLE = sizeof(Whole) / sizeof(T), PART = sizeof(Part) / sizeof(T);
};

// Calls visit(vector type's zero, d) for the parts of a row: whole vectors, 16 bytes, single values.
template <class T, class Visit>
FASTVQ_INLINE void visit_row(int64_t dim, Visit&& visit) {
  typedef Vectors<T> V;
  int64_t d = 0;
  for (; d + V::WHOLE <= dim; d += V::WHOLE) visit(typename V::Whole{}, d);
  for (; d + V::PART <= dim; d += V::PART) visit(typename V::Part{}, d);
  for (; d < dim; ++d) visit(T{0}, d);
}

template <class T>
FASTVQ_INLINE const T* code_at(const CodeStack& stack, int64_t group, int64_t stage, int64_t code) {
  return static_cast<const T*>(stack.data) + group * stack.group_stride + stage * stack.stage_stride +
         code * stack.dim;
}

template <class T>
FASTVQ_INLINE void subtract(const T* row, const T* code, int64_t dim, T* to) {
  visit_row<T>(dim, [&](auto zero, int64_t d) {
    store(to + d, load<decltype(zero)>(row + d) - load<decltype(zero)>(code + d));
  });
}

// Rounds to the nearest, ties to even, as torch does.
FASTVQ_INLINE void narrow(float value, float* to) { *to = value; }
FASTVQ_INLINE void narrow(double value, double* to) { *to = value; }

FASTVQ_INLINE void narrow(float value, BFloat16* to) {
  const uint32_t bits = reinterpret<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  to->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

FASTVQ_INLINE void narrow(float value, Half* to) {
  const uint32_t bits = reinterpret<uint32_t>(value), magnitude = bits & 0x7fffffffu;
  // Normal: the exponent is moved and 13 bits are rounded off. Subnormal: adding 0.5 rounds to multiples of 2^-24.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  const uint32_t small = reinterpret<uint32_t>(reinterpret<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? small : normal;
  if (magnitude >= 0x47800000u) result = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  to->bits = static_cast<uint16_t>(result | (bits >> 16 & 0x8000u));
}

template <class Source>
FASTVQ_INLINE void fill(Source* row, int64_t dim, float value) {
  for (int64_t d = 0; d < dim; ++d) narrow(value, row + d);
}
FASTVQ_INLINE void fill(double* row, int64_t dim, float value) {
  for (int64_t d = 0; d < dim; ++d) row[d] = value;
}

int depth_of(const ResidualNearest& call, int64_t row) {
  const int64_t all = call.codebooks.stages;
  if (!call.stages.data) return static_cast<int>(all);
  const int64_t depth =
      call.stages.data[row / call.x.rows2 * call.stages.stride1 + row % call.x.rows2 * call.stages.stride2];
  return static_cast<int>(depth < 0 ? 0 : depth < all ? depth : all);
}

// Writes that a row takes no stages from `first` on.
template <class T>
void leave_out(const ResidualNearest& call, int64_t group, int64_t row, int64_t first) {
  const int64_t at = (row * call.x.groups + group) * call.codebooks.stages;
  for (int64_t stage = first; stage < call.codebooks.stages; ++stage) {
    call.indices[at + stage] = -1;
    static_cast<T*>(call.errors)[at + stage] = 0;
  }
}

// A stable counting sort by depth, deepest first; rows of depth 0 come last and are cut off.
int sort_by_depth(const ResidualNearest& call, int count, const ResidualBlock& block) {
  const auto deepest = static_cast<int32_t>(call.codebooks.stages);
  int kept = 0, next = 0;
  for (int32_t depth = deepest; depth > 0 && kept < count; --depth)
    for (int r = 0; r < count; ++r)
      if (block.depths[r] == depth) {
        block.order[3 * kept] = block.numbers[r];
        block.order[3 * kept + 1] = block.offsets[r];
        block.order[3 * kept++ + 2] = depth;
      }
  for (; next < kept; ++next) {
    block.numbers[next] = block.order[3 * next];
    block.offsets[next] = block.order[3 * next + 1];
    block.depths[next] = static_cast<int32_t>(block.order[3 * next + 2]);
  }
  return kept;
}

template <class Source, class T>
int begin_as(const ResidualNearest& call, int64_t group, int64_t first, int64_t last, ResidualBlock& block) {
  const Rows& x = call.x;
  const int64_t dim = x.dim;
  const auto drop = [&](int64_t row) {
    leave_out<T>(call, group, row, 0);
    fill(static_cast<Source*>(call.quantized) + (row * call.x.groups + group) * dim, dim, 0);
  };
  int count = list_rows(call.x, call.mask, group, first, last, block.numbers, block.offsets, drop);
  for (int r = 0; r < count; ++r) {
    block.depths[r] = depth_of(call, block.numbers[r]);
    if (block.depths[r] == 0) drop(block.numbers[r]);
    else if (block.depths[r] < call.codebooks.stages) leave_out<T>(call, group, block.numbers[r], block.depths[r]);
  }
  if (call.stages.data) count = sort_by_depth(call, count, block);
  const bool evenly = x.rows1 == 1 || x.rows2 == 1 || x.stride1 == x.rows2 * x.stride2;
  const bool all = !call.mask.data && !call.stages.data;
  if (count > 0 && all && evenly && x.dim_stride == 1 && sizeof(Source) == sizeof(T)) {
    block.rows = static_cast<const Source*>(x.data) + block.offsets[0];
    block.row_stride = x.rows2 == 1 ? x.stride1 : x.stride2;
    return count;
  }
  copy_rows<Source>(x.data, block.offsets, count, dim, x.dim_stride, static_cast<T*>(block.residuals), dim);
  block.rows = block.residuals;
  block.row_stride = dim;
  return count;
}

template <class T>
void advance_as(const ResidualNearest& call, int64_t group, int64_t stage, int64_t first, int64_t last,
                const ResidualBlock& block) {
  const int64_t dim = call.x.dim, stages = call.codebooks.stages;
  const T* errors = static_cast<const T*>(block.errors);
  for (int64_t r = first; r < last; ++r) {
    const int64_t at = (block.numbers[r] * call.x.groups + group) * stages + stage;
    call.indices[at] = block.codes[r];
    static_cast<T*>(call.errors)[at] = errors[r];
    if (stage + 1 >= block.depths[r]) continue;
    const T* row = static_cast<const T*>(block.rows) + r * block.row_stride;
    T* residual = static_cast<T*>(block.residuals) + r * dim;
    // Where there is no code, no later stage shall find one either.
    if (block.codes[r] < 0) fill(residual, dim, NAN);
    else subtract(row, code_at<T>(call.codebooks, group, stage, block.codes[r]), dim, residual);
  }
}

struct Chosen {  // the codes of one row: its first `depth` stages
  const int64_t* codes;
  int depth;
};

// COUNT vectors of one row's sum, from d on, and the same part of what the next row will need: it lies anywhere.
template <class Vector, int COUNT, class T>
FASTVQ_INLINE void add_part(const CodeStack& stack, int64_t group, Chosen row, Chosen next, int64_t d, T* to) {
  constexpr int64_t SIZE = sizeof(Vector) / sizeof(T);
  Vector sums[COUNT] = {};
  for (int stage = 0; stage < row.depth; ++stage) {
    const T* code = code_at<T>(stack, group, stage, row.codes[stage]) + d;
#pragma GCC unroll 8
    for (int v = 0; v < COUNT; ++v) sums[v] += load<Vector>(code + v * SIZE);
  }
  for (int stage = 0; stage < next.depth; ++stage) {
    const T* code = code_at<T>(stack, group, stage, next.codes[stage]) + d;
#pragma GCC unroll 8
    for (int v = 0; v < COUNT; ++v) __builtin_prefetch(code + v * SIZE);
  }
#pragma GCC unroll 8
  for (int v = 0; v < COUNT; ++v) store(to + d + v * SIZE, sums[v]);
}

// to = ((0 + c_1) + c_2) + ... over the stages that one row took.
template <class T>
FASTVQ_INLINE void add_codes(const CodeStack& stack, int64_t group, Chosen row, Chosen next, T* to) {
  typedef Vectors<T> V;
  constexpr int TOGETHER = 8;
  int64_t d = 0;
  for (; d + TOGETHER * V::WHOLE <= stack.dim; d += TOGETHER * V::WHOLE)
    add_part<typename V::Whole, TOGETHER>(stack, group, row, next, d, to);
  for (; d + V::WHOLE <= stack.dim; d += V::WHOLE) add_part<typename V::Whole, 1>(stack, group, row, next, d, to);
  for (; d + V::PART <= stack.dim; d += V::PART) add_part<typename V::Part, 1>(stack, group, row, next, d, to);
  for (; d < stack.dim; ++d) add_part<T, 1>(stack, group, row, next, d, to);
}

template <class Source, class T>
void finish_as(const ResidualNearest& call, int64_t group, int count, const ResidualBlock& block) {
  const int64_t dim = call.x.dim;
  const auto place = [&](int r) { return block.numbers[r] * call.x.groups + group; };
  const auto chosen = [&](int r) {
    if (r == count) return Chosen{nullptr, 0};
    const int64_t* codes = call.indices + place(r) * call.codebooks.stages;
    return Chosen{codes, codes[block.depths[r] - 1] < 0 ? 0 : block.depths[r]};
  };
  Chosen row = chosen(0);
  for (int r = 0; r < count; ++r) {
    const Chosen next = chosen(r + 1);
    Source* to = static_cast<Source*>(call.quantized) + place(r) * dim;
    if (row.depth == 0) {
      fill(to, dim, NAN);
    } else if constexpr (sizeof(Source) == sizeof(T)) {
      add_codes<T>(call.codebooks, group, row, next, to);
    } else {
      T* sum = static_cast<T*>(block.sum);
      add_codes<T>(call.codebooks, group, row, next, sum);
      for (int64_t d = 0; d < dim; ++d) narrow(sum[d], to + d);
    }
    row = next;
  }
}

int begin(const ResidualNearest& call, int64_t group, int64_t first, int64_t last, ResidualBlock& block) {
  int count = 0;
  with_types(call.x.dtype, [&](auto source, auto code) {
    count = begin_as<decltype(source), decltype(code)>(call, group, first, last, block);
  });
  return count;
}

void advance(const ResidualNearest& call, int64_t group, int64_t stage, int64_t first, int64_t last,
             const ResidualBlock& block) {
  const auto run = call.codebooks.is_double ? advance_as<double> : advance_as<float>;
  run(call, group, stage, first, last, block);
}

void finish(const ResidualNearest& call, int64_t group, int count, const ResidualBlock& block) {
  with_types(call.x.dtype, [&](auto source, auto code) {
    finish_as<decltype(source), decltype(code)>(call, group, count, block);
  });
}

}  // namespace

extern const ResidualKernels residual_kernels;
const ResidualKernels residual_kernels{begin, advance, finish};

}  // namespace fastvq::cpu::FASTVQ_ISA
