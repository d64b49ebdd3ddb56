#include "commitment.h"

#include "simd.h"

namespace fastvq::cpu::FASTVQ_ISA {
namespace {

// LENGTH bytes of one row.
template <class T, int LENGTH>
FASTVQ_INLINE void pull_part(const T* grad, const T* x, const T* code, T scale, T* to) {
  typedef T Vector __attribute__((vector_size(LENGTH)));
  const Vector chosen = code ? load<Vector>(code) : Vector{};
  store(to, (chosen - load<Vector>(x)) * scale + load<Vector>(grad));
}

template <class T>
FASTVQ_INLINE void pull_row(const T* grad, const T* x, const T* code, T scale, int64_t dim, T* to) {
  constexpr int64_t whole = 4 * LANES / sizeof(T), half = 32 / sizeof(T), quarter = 16 / sizeof(T);
  int64_t d = 0;
  for (; d + whole <= dim; d += whole)
    pull_part<T, 4 * LANES>(grad + d, x + d, code ? code + d : nullptr, scale, to + d);
  for (; d + half <= dim; d += half) pull_part<T, 32>(grad + d, x + d, code ? code + d : nullptr, scale, to + d);
  for (; d + quarter <= dim; d += quarter) pull_part<T, 16>(grad + d, x + d, code ? code + d : nullptr, scale, to + d);
  for (; d < dim; ++d) to[d] = ((code ? code[d] : T{0}) - x[d]) * scale + grad[d];
}

template <class T>
const T* row_of(const Rows& rows, int64_t group, int64_t r1, int64_t r2) {
  return static_cast<const T*>(rows.data) + group * rows.group_stride + r1 * rows.stride1 + r2 * rows.stride2;
}

template <class T>
void pull_as(const CommitmentGrad& call, int64_t first, int64_t last, IndexRange& seen) {
  const Rows& x = call.x;
  const Codebook& codebook = call.codebook;
  T* to = static_cast<T*>(call.out) + first * x.groups * x.dim;
  for (int64_t row = first; row < last; ++row) {
    const int64_t r1 = row / x.rows2, r2 = row % x.rows2;
    for (int64_t group = 0; group < x.groups; ++group, to += x.dim) {
      const T* grad = row_of<T>(call.grad, group, r1, r2);
      const Grid<const bool>& valid = call.valid;
      if (valid.data && !valid.data[group * valid.group_stride + r1 * valid.stride1 + r2 * valid.stride2]) {
        std::memcpy(to, grad, x.dim * sizeof(T));
        continue;
      }
      const Grid<const int64_t>& indices = call.indices;
      const int64_t* index = indices.data + group * indices.group_stride + r1 * indices.stride1 + r2 * indices.stride2;
      const int64_t k = *index;
      const bool inside = k >= 0 && k < codebook.codes;
      if (!inside) seen.include(k);
      const T* codes = static_cast<const T*>(codebook.data) + group * codebook.group_stride;
      const T* code = codes + k * codebook.code_stride;
      // Codes lie anywhere: the next row's is fetched meanwhile.
      if (r2 + 1 < x.rows2) fetch_row(codes, index[indices.stride2], codebook.code_stride);
      pull_row(grad, row_of<T>(x, group, r1, r2), inside ? code : nullptr, static_cast<T>(call.scale), x.dim, to);
    }
  }
}

void pull(const CommitmentGrad& call, int64_t first, int64_t last, IndexRange& seen) {
  if (call.x.dtype == DType::float64) pull_as<double>(call, first, last, seen);
  else pull_as<float>(call, first, last, seen);
}

}  // namespace

extern const CommitmentKernels commitment_kernels;
const CommitmentKernels commitment_kernels{pull};

}  // namespace fastvq::cpu::FASTVQ_ISA
