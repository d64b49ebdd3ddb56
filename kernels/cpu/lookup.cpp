#include "lookup.h"

#include "simd.h"

namespace fastvq::cpu::FASTVQ_ISA {
namespace {

// to = from + code, over contiguous memory; `from` is `to` itself or null for zeros.
template <class T>
FASTVQ_INLINE void add_code(T* to, bool from_zero, const T* code, int64_t dim, int64_t dim_stride) {
  typedef T Part __attribute__((vector_size(16)));
  typedef T Whole __attribute__((vector_size(4 * LANES)));
  constexpr int64_t part = sizeof(Part) / sizeof(T), whole = sizeof(Whole) / sizeof(T);
  int64_t d = 0;
  if (dim_stride == 1) {
    for (; d + whole <= dim; d += whole)
      store(to + d, (from_zero ? Whole{} : load<Whole>(to + d)) + load<Whole>(code + d));
    for (; d + part <= dim; d += part)
      store(to + d, (from_zero ? Part{} : load<Part>(to + d)) + load<Part>(code + d));
  }
  for (; d < dim; ++d) to[d] = (from_zero ? T{0} : to[d]) + code[d * dim_stride];
}

template <class T>
void gather_as(const Lookup& call, int64_t first, int64_t last, IndexRange& seen) {
  for (int64_t row = first; row < last; ++row) {
    const int64_t r1 = row / call.rows2, r2 = row % call.rows2;
    for (int64_t group = 0; group < call.groups; ++group) {
      T* to = static_cast<T*>(call.out) + (row * call.groups + group) * call.dim;
      const int64_t* index = call.indices.data + group * call.indices.group_stride + r1 * call.indices.stride1 +
                             r2 * call.indices.stride2;
      const T* codes = static_cast<const T*>(call.codebooks) + group * call.group_stride;
      bool empty = true;
      for (int64_t stage = 0; stage < call.stages; ++stage) {
        const int64_t code = index[stage * call.indices.last_stride];
        if (code < 0 || code >= call.codes) {
          seen.include(code);
          continue;
        }
        add_code(to, empty, codes + stage * call.stage_stride + code * call.code_stride, call.dim, call.dim_stride);
        empty = false;
      }
      if (empty) std::memset(to, 0, call.dim * sizeof(T));
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
