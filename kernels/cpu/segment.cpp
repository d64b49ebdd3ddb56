#include "segment.h"

#include "wide.h"

namespace fastvq::cpu::FASTVQ_ISA {
namespace {

// Sums one slice of `width` columns of some groups, padded to `step` doubles a code. Whole vectors of float32 are read
// in place. Groups lie side by side in a row, but rows far apart, so those to come are fetched ahead.
template <class Source, class Out>
void sum_slice_of(const SegmentSum& call, int64_t first_group, int64_t groups, int64_t slice, char* scratch,
                  IndexRange& seen) {
  constexpr int64_t AHEAD = 8;
  const Rows& x = call.x;
  const Grid<const int64_t>& indices = call.indices;
  const int64_t first = slice * SLICE, width = x.dim - first < SLICE ? x.dim - first : SLICE;
  const int64_t step = round_up(width, WIDE), table = call.codes * (step + 1);
  auto* sums = reinterpret_cast<double*>(scratch);
  for (int64_t i = 0; i < groups * table; ++i) sums[i] = 0;

  const bool direct = sizeof(Source) == 4 && x.dim_stride == 1 && step == width;
  const bool one_line = indices.group_stride == 1;
  double values[SLICE] = {};
  for (int64_t r1 = 0; r1 < x.rows1; ++r1) {
    const int64_t* index = indices.data + first_group * indices.group_stride + r1 * indices.stride1;
    const Source* row =
        static_cast<const Source*>(x.data) + first_group * x.group_stride + r1 * x.stride1 + first * x.dim_stride;
    for (int64_t r2 = 0; r2 < x.rows2; ++r2, index += indices.stride2, row += x.stride2) {
      double* own = sums;
      if (r2 + AHEAD < x.rows2)
        for (int64_t g = 0; g < groups; ++g) {
          __builtin_prefetch(row + AHEAD * x.stride2 + g * x.group_stride);
          if (g == 0 || !one_line) __builtin_prefetch(index + AHEAD * indices.stride2 + g * indices.group_stride);
        }
      for (int64_t g = 0; g < groups; ++g, own += table) {
        const int64_t code = index[g * indices.group_stride];
        if (code < 0 || code >= call.codes) {
          seen.include(code);
          continue;
        }
        const Source* from = row + g * x.group_stride;
        double* to = own + code * step;
        own[call.codes * step + code] += 1;
        if (direct) {
          for (int64_t d = 0; d < step; d += WIDE) store(to + d, add_wide(load<Wide>(to + d), load_wide(from + d)));
        } else {
          for (int64_t d = 0; d < width; ++d) values[d] = widen(from[d * x.dim_stride]);
          for (int64_t d = 0; d < step; d += WIDE) store(to + d, load<Wide>(to + d) + load<Wide>(values + d));
        }
      }
    }
  }

  for (int64_t g = first_group; g < first_group + groups; ++g, sums += table) {
    Out* out = static_cast<Out*>(call.sums) + g * call.codes * x.dim + first;
    for (int64_t k = 0; k < call.codes; ++k) {
      int64_t d = 0;
      for (; d + WIDE <= width; d += WIDE) store_narrow(out + k * x.dim + d, load<Wide>(sums + k * step + d));
      for (; d < width; ++d) out[k * x.dim + d] = static_cast<Out>(sums[k * step + d]);
    }
    if (slice == 0)
      for (int64_t k = 0; k < call.codes; ++k)
        static_cast<Out*>(call.counts)[g * call.codes + k] = static_cast<Out>(sums[call.codes * step + k]);
  }
}

constexpr int MOST = LANES == 16 ? 16 : 8;  // vectors of one code: half of the registers there are

// Sums COUNT vectors of one code's rows in registers. The rows lie anywhere: those to come are fetched ahead, also the
// next codes', as far as offsets are `listed`.
template <int COUNT, class Source, class Out>
FASTVQ_INLINE void sum_columns(const Source* x, const int64_t* offsets, int64_t count, int64_t listed, Out* out) {
  constexpr int64_t AHEAD = 6, LINE = 64 / sizeof(Source);
  Wide sums[COUNT] = {};
  for (int64_t i = 0; i < count; ++i) {
    const Source* row = x + offsets[i];
    const Source* later = x + offsets[i + AHEAD < listed ? i + AHEAD : listed - 1];
    for (int64_t d = 0; d < COUNT * WIDE; d += LINE) __builtin_prefetch(later + d);
#pragma GCC unroll 16
    for (int v = 0; v < COUNT; ++v) sums[v] = add_wide(sums[v], load_wide(row + v * WIDE));
  }
#pragma GCC unroll 16
  for (int v = 0; v < COUNT; ++v) store_narrow(out + v * WIDE, sums[v]);
}

template <class Source, class Out>
void sum_codes_of(const SegmentSum& call, const CodeOrder& order, int64_t group, int64_t first, int64_t last) {
  const int64_t dim = call.x.dim, codes = call.codes;
  const int64_t* starts = order.starts + group * (codes + 1);
  const int64_t* offsets = order.offsets + group * call.x.rows();
  const auto* x = static_cast<const Source*>(call.x.data);
  for (int64_t k = first; k < last; ++k) {
    const int64_t count = starts[k + 1] - starts[k];
    Out* out = static_cast<Out*>(call.sums) + (group * codes + k) * dim;
    const int64_t* own = offsets + starts[k];
    const int64_t listed = starts[codes] - starts[k];
    int64_t d = 0;
    for (; d + MOST * WIDE <= dim; d += MOST * WIDE) sum_columns<MOST>(x + d, own, count, listed, out + d);
    for (; d + 4 * WIDE <= dim; d += 4 * WIDE) sum_columns<4>(x + d, own, count, listed, out + d);
    for (; d + WIDE <= dim; d += WIDE) sum_columns<1>(x + d, own, count, listed, out + d);
    for (; d < dim; ++d) {
      double sum = 0;
      for (int64_t i = 0; i < count; ++i) sum += widen(x[own[i] + d]);
      out[d] = static_cast<Out>(sum);
    }
    static_cast<Out*>(call.counts)[group * codes + k] = static_cast<Out>(count);
  }
}

int64_t slice_scratch_bytes(const SegmentSum& call) {
  return round_up(call.codes * (round_up(call.x.dim < SLICE ? call.x.dim : SLICE, WIDE) + 1) * 8, 64);
}

void sum_slice(const SegmentSum& call, int64_t first_group, int64_t groups, int64_t slice, char* scratch,
               IndexRange& seen) {
  with_types(call.x.dtype, [&](auto source, auto out) {
    sum_slice_of<decltype(source), decltype(out)>(call, first_group, groups, slice, scratch, seen);
  });
}

void sum_codes(const SegmentSum& call, const CodeOrder& order, int64_t group, int64_t first, int64_t last) {
  with_types(call.x.dtype, [&](auto source, auto out) {
    sum_codes_of<decltype(source), decltype(out)>(call, order, group, first, last);
  });
}

}  // namespace

extern const SegmentKernels segment_kernels;
const SegmentKernels segment_kernels{slice_scratch_bytes, sum_slice, sum_codes};

}  // namespace fastvq::cpu::FASTVQ_ISA
