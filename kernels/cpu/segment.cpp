#include "segment.h"

#include "load.h"
#include "simd.h"

namespace fastvq::cpu::FASTVQ_ISA {
namespace {

constexpr int WIDTH = LANES / 2;
typedef float Narrow __attribute__((vector_size(2 * LANES)));

// Sums one slice of `width` columns, padded to `step` doubles a code. Whole vectors of float32 are read in place.
template <class Source, class Out>
void sum_slice_of(const SegmentSum& call, int64_t group, int64_t slice, char* scratch, IndexRange& seen) {
  const Rows& x = call.x;
  const int64_t first = slice * SLICE, width = x.dim - first < SLICE ? x.dim - first : SLICE;
  const int64_t step = round_up(width, WIDTH);
  auto* sums = reinterpret_cast<double*>(scratch);
  double* counts = sums + call.codes * step;
  for (int64_t i = 0; i < call.codes * (step + 1); ++i) sums[i] = 0;

  const bool direct = sizeof(Source) == 4 && x.dim_stride == 1 && step == width;
  double values[SLICE] = {};
  for (int64_t r1 = 0; r1 < x.rows1; ++r1)
    for (int64_t r2 = 0; r2 < x.rows2; ++r2) {
      const int64_t code =
          call.indices
              .data[group * call.indices.group_stride + r1 * call.indices.stride1 + r2 * call.indices.stride2];
      if (code < 0 || code >= call.codes) {
        seen.include(code);
        continue;
      }
      const Source* row = static_cast<const Source*>(x.data) + group * x.group_stride + r1 * x.stride1 +
                          r2 * x.stride2 + first * x.dim_stride;
      double* to = sums + code * step;
      counts[code] += 1;
      if (direct) {
        for (int64_t d = 0; d < step; d += WIDTH)
          store(to + d, load<Doubles>(to + d) + __builtin_convertvector(load<Narrow>(row + d), Doubles));
      } else {
        for (int64_t d = 0; d < width; ++d) values[d] = widen(row[d * x.dim_stride]);
        for (int64_t d = 0; d < step; d += WIDTH) store(to + d, load<Doubles>(to + d) + load<Doubles>(values + d));
      }
    }

  Out* out = static_cast<Out*>(call.sums) + group * call.codes * x.dim + first;
  for (int64_t k = 0; k < call.codes; ++k)
    for (int64_t d = 0; d < width; ++d) out[k * x.dim + d] = static_cast<Out>(sums[k * step + d]);
  if (slice == 0)
    for (int64_t k = 0; k < call.codes; ++k)
      static_cast<Out*>(call.counts)[group * call.codes + k] = static_cast<Out>(counts[k]);
}

int64_t scratch_bytes(const SegmentSum& call) {
  return round_up(call.codes * (round_up(call.x.dim < SLICE ? call.x.dim : SLICE, WIDTH) + 1) * 8, 64);
}

void sum_slice(const SegmentSum& call, int64_t group, int64_t slice, char* scratch, IndexRange& seen) {
  switch (call.x.dtype) {
    case DType::float32: return sum_slice_of<float, float>(call, group, slice, scratch, seen);
    case DType::float64: return sum_slice_of<double, double>(call, group, slice, scratch, seen);
    case DType::float16: return sum_slice_of<Half, float>(call, group, slice, scratch, seen);
    case DType::bfloat16: return sum_slice_of<BFloat16, float>(call, group, slice, scratch, seen);
  }
}

}  // namespace

extern const SegmentKernels segment_kernels;
const SegmentKernels segment_kernels{scratch_bytes, sum_slice};

}  // namespace fastvq::cpu::FASTVQ_ISA
