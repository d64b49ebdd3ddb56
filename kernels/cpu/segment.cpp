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

constexpr int MOST = LANES == 16 ? 16 : 8;        // vectors of one code: half of the registers there are
constexpr int64_t STRIP = 1024;                   // columns whose sums stay in the first-level cache
constexpr int64_t FEW_COLUMNS = 4 * MOST * WIDE;  // so many rather pass the registers one part after the other

// Rows that lie anywhere, a listed one after the other.
template <class Source>
struct Listed {
  const Source* x;
  const int64_t* offsets;
  int64_t count, listed;  // of this code, and with those of the codes after it

  FASTVQ_INLINE const Source* row(int64_t i) const { return x + offsets[i]; }
  FASTVQ_INLINE const Source* later(int64_t i) const { return x + offsets[i < listed ? i : listed - 1]; }
};

// Fetches into the second-level cache, which has more misses under way than the first: 65,536 rows of 64 take 0.6 of
// the time, from memory and from the third-level cache (Zen 4).
template <class Source>
FASTVQ_INLINE void fetch_far(const Source* from) {
  __builtin_prefetch(from, 0, 2);
}

// Sums COUNT vectors of one code's rows in registers.
template <int COUNT, class Source, class Out>
FASTVQ_INLINE void sum_columns(const Listed<Source>& rows, int64_t first, Out* out) {
  constexpr int64_t AHEAD = 24, LINE = 64 / sizeof(Source);
  Wide sums[COUNT] = {};
  for (int64_t i = 0; i < rows.count; ++i) {
    const Source *row = rows.row(i) + first, *later = rows.later(i + AHEAD) + first;
    for (int64_t d = 0; d < COUNT * WIDE; d += LINE) fetch_far(later + d);
#pragma GCC unroll 16
    for (int v = 0; v < COUNT; ++v) sums[v] = add_wide(sums[v], load_wide(row + v * WIDE));
  }
#pragma GCC unroll 16
  for (int v = 0; v < COUNT; ++v) store_narrow(out + first + v * WIDE, sums[v]);
}

// Adds ROWS rows from `i` on, one after the other, to the sums of a strip of columns, which FIRST are zeros.
template <int ROWS, bool FIRST, class Source>
FASTVQ_INLINE void add_strip(const Listed<Source>& rows, int64_t i, int64_t first, int64_t width, double* sums) {
  constexpr int64_t AHEAD = 8, LINE = 64 / sizeof(Source);
  const Source *row[ROWS], *later[ROWS];
#pragma GCC unroll 2
  for (int r = 0; r < ROWS; ++r) {
    row[r] = rows.row(i + r) + first;
    later[r] = rows.later(i + r + AHEAD) + first;
  }
  const auto add = [&](int64_t d) {
    Wide sum{};
    if constexpr (!FIRST) sum = load<Wide>(sums + d);
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; ++r) sum = add_wide(sum, load_wide(row[r] + d));
    store(sums + d, sum);
  };
  int64_t d = 0;
  for (; d + LINE <= width; d += LINE) {
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; ++r) fetch_far(later[r] + d);
#pragma GCC unroll 8
    for (int64_t e = 0; e < LINE; e += WIDE) add(d + e);
  }
  for (; d < width; d += WIDE) add(d);
}

// Sums a strip of columns, two rows at a time: memory is read a row at a time, and each sum half as often as that.
template <class Source, class Out>
void sum_strip(const Listed<Source>& rows, int64_t first, int64_t width, Out* out) {
  alignas(64) double sums[STRIP];
  int64_t i = 2;
  if (rows.count >= 2) add_strip<2, true>(rows, 0, first, width, sums);
  else if (rows.count == 1) add_strip<1, true>(rows, 0, first, width, sums);
  else std::memset(sums, 0, width * sizeof(double));
  for (; i + 2 <= rows.count; i += 2) add_strip<2, false>(rows, i, first, width, sums);
  if (i < rows.count) add_strip<1, false>(rows, i, first, width, sums);
  for (int64_t d = 0; d < width; d += WIDE) store_narrow(out + first + d, load<Wide>(sums + d));
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
    const Listed<Source> rows{x, offsets + starts[k], count, starts[codes] - starts[k]};
    int64_t d = 0;
    for (int64_t width; dim - d > FEW_COLUMNS; d += width) {
      width = dim - d < STRIP ? (dim - d) / WIDE * WIDE : STRIP;
      sum_strip(rows, d, width, out);
    }
    for (; d + MOST * WIDE <= dim; d += MOST * WIDE) sum_columns<MOST>(rows, d, out);
    for (; d + 4 * WIDE <= dim; d += 4 * WIDE) sum_columns<4>(rows, d, out);
    for (; d + WIDE <= dim; d += WIDE) sum_columns<1>(rows, d, out);
    for (; d < dim; ++d) {
      double sum = 0;
      for (int64_t i = 0; i < count; ++i) sum += widen(rows.row(i)[d]);
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
