#include "residual_sum.h"

#include "wide.h"

namespace fastvq::cpu::FASTVQ_ISA {
namespace {

constexpr int64_t CHUNK_ROWS = 1024;  // whose residuals one walk over the stages keeps

template <class T>
struct SliceScratch {
  const int64_t** indices;  // (CHUNK_ROWS): of each row's first stage
  int64_t* offsets;         // (CHUNK_ROWS): of x, in elements
  int64_t* numbers;         // (CHUNK_ROWS)
  T* residuals;             // (CHUNK_ROWS, step)
  T* codes;                 // (Q, K, step)
  double* sums;             // (Q, K, step)
  double* counts;           // (Q, K)
  int64_t step;             // the slice's width in whole vectors

  int64_t lay_out(char* base, const ResidualSum& call) {
    Arena arena(base);
    const int64_t codes_in_all = call.codebooks.stages * call.codebooks.codes;
    step = round_up(call.width, WIDE);
    indices = arena.take<const int64_t*>(CHUNK_ROWS);
    offsets = arena.take<int64_t>(CHUNK_ROWS);
    numbers = arena.take<int64_t>(CHUNK_ROWS);
    residuals = arena.take<T>(CHUNK_ROWS * step);
    codes = arena.take<T>(codes_in_all * step);
    sums = arena.take<double>(codes_in_all * step);
    counts = arena.take<double>(codes_in_all);
    return arena.used();
  }
};

// Adds a chunk's residuals to the sums of one stage and leaves the next stage's.
template <class T>
void add_stage(const ResidualSum& call, int64_t stage, int count, SliceScratch<T>& s, IndexRange& seen) {
  const int64_t codes = call.codebooks.codes, step = s.step, stride = call.indices.last_stride;
  T* all_codes = s.codes + stage * codes * step;
  double* all_sums = s.sums + stage * codes * step;
  double* counts = s.counts + stage * codes;
  for (int r = 0; r < count; ++r) {
    const int64_t code = s.indices[r][stage * stride];
    if (code < 0 || code >= codes) {
      seen.include(code);
      continue;
    }
    counts[code] += 1;
    T* residual = s.residuals + r * step;
    const T* chosen = all_codes + code * step;
    double* sum = all_sums + code * step;
    for (int64_t d = 0; d < step; d += WIDE) {
      store(sum + d, add_wide(load<Wide>(sum + d), load_wide(residual + d)));
      store(residual + d, load<Narrow<T>>(residual + d) - load<Narrow<T>>(chosen + d));
    }
  }
}

template <class Source, class T>
void sum_slice_as(const ResidualSum& call, int64_t group, int64_t slice, char* scratch, IndexRange& seen) {
  SliceScratch<T> s;
  s.lay_out(scratch, call);
  const CodeStack& stack = call.codebooks;
  const Rows& x = call.x;
  const int64_t first = slice * call.width, width = x.dim - first < call.width ? x.dim - first : call.width;
  const int64_t codes_in_all = stack.stages * stack.codes;
  std::memset(s.sums, 0, codes_in_all * s.step * sizeof(double));
  std::memset(s.counts, 0, codes_in_all * sizeof(double));
  if (s.step > width) {
    std::memset(s.residuals, 0, CHUNK_ROWS * s.step * sizeof(T));
    std::memset(s.codes, 0, codes_in_all * s.step * sizeof(T));
  }
  for (int64_t stage = 0; stage < stack.stages; ++stage)
    for (int64_t k = 0; k < stack.codes; ++k) {
      const T* from = static_cast<const T*>(stack.data) + group * stack.group_stride + stage * stack.stage_stride +
                      k * stack.code_stride + first * stack.dim_stride;
      T* to = s.codes + (stage * stack.codes + k) * s.step;
      const int64_t offset = 0;
      copy_rows<T>(from, &offset, 1, width, stack.dim_stride, to, s.step);
    }

  const Source* from = static_cast<const Source*>(x.data) + first * x.dim_stride;
  for (int64_t row = 0; row < x.rows(); row += CHUNK_ROWS) {
    const int64_t last = row + CHUNK_ROWS < x.rows() ? row + CHUNK_ROWS : x.rows();
    const int count = list_rows(x, {}, group, row, last, s.numbers, s.offsets, [](int64_t) {});
    for (int r = 0; r < count; ++r)
      s.indices[r] = call.indices.data + group * call.indices.group_stride +
                     s.numbers[r] / x.rows2 * call.indices.stride1 + s.numbers[r] % x.rows2 * call.indices.stride2;
    copy_rows<Source>(from, s.offsets, count, width, x.dim_stride, s.residuals, s.step);
    for (int64_t stage = 0; stage < stack.stages; ++stage) add_stage(call, stage, count, s, seen);
  }

  T* sums = static_cast<T*>(call.sums) + group * codes_in_all * x.dim + first;
  for (int64_t k = 0; k < codes_in_all; ++k) {
    const double* sum = s.sums + k * s.step;
    T* to = sums + k * x.dim;
    int64_t d = 0;
    for (; d + WIDE <= width; d += WIDE) store_narrow(to + d, load<Wide>(sum + d));
    for (; d < width; ++d) to[d] = static_cast<T>(sum[d]);
  }
  if (slice == 0)
    for (int64_t k = 0; k < codes_in_all; ++k)
      static_cast<T*>(call.counts)[group * codes_in_all + k] = static_cast<T>(s.counts[k]);
}

int64_t slice_scratch_bytes(const ResidualSum& call) {
  return call.codebooks.is_double ? SliceScratch<double>().lay_out(nullptr, call)
                                  : SliceScratch<float>().lay_out(nullptr, call);
}

void sum_slice(const ResidualSum& call, int64_t group, int64_t slice, char* scratch, IndexRange& seen) {
  with_types(call.x.dtype, [&](auto source, auto code) {
    sum_slice_as<decltype(source), decltype(code)>(call, group, slice, scratch, seen);
  });
}

}  // namespace

extern const ResidualSumKernels residual_sum_kernels;
const ResidualSumKernels residual_sum_kernels{slice_scratch_bytes, sum_slice};

}  // namespace fastvq::cpu::FASTVQ_ISA
