// Lists rows by code and has their sums taken.
#include "isa.h"
#include "workers.h"

namespace fastvq::cpu {
namespace {

constexpr int64_t CHUNK_ROWS = 4096;
constexpr int64_t CODES_TOGETHER = 8;  // of one summing task
constexpr int64_t TASKS_EACH = 4;      // at least, of a worker, so that all end at about the same time
constexpr int64_t SLICE_BYTES = 160 * 1024;  // of the sums of one task, which stay in the second-level cache

// Calls visit(code, offset of the row in x) for the rows of one chunk, in order.
template <class Visit>
void visit_chunk(const SegmentSum& call, const CodeOrder& order, int64_t group, int64_t chunk, Visit&& visit) {
  const Rows& x = call.x;
  const Grid<const int64_t>& indices = call.indices;
  const int64_t begin = chunk * order.chunk_rows, rest = x.rows() - begin;
  int64_t r1 = begin / x.rows2, r2 = begin % x.rows2;
  for (int64_t left = rest < order.chunk_rows ? rest : order.chunk_rows; left > 0; ++r1, r2 = 0) {
    const int64_t run = x.rows2 - r2 < left ? x.rows2 - r2 : left;
    const int64_t* index = indices.data + group * indices.group_stride + r1 * indices.stride1 + r2 * indices.stride2;
    int64_t offset = group * x.group_stride + r1 * x.stride1 + r2 * x.stride2;
    for (int64_t i = 0; i < run; ++i, index += indices.stride2, offset += x.stride2) visit(*index, offset);
    left -= run;
  }
}

void count_chunk(const SegmentSum& call, const CodeOrder& order, int64_t group, int64_t chunk, IndexRange& seen) {
  int64_t* counts = order.places + (group * order.chunks + chunk) * call.codes;
  for (int64_t k = 0; k < call.codes; ++k) counts[k] = 0;
  visit_chunk(call, order, group, chunk, [&](int64_t code, int64_t) {
    if (code >= 0 && code < call.codes) ++counts[code];
    else seen.include(code);
  });
}

void place_codes(const SegmentSum& call, const CodeOrder& order, int64_t group) {
  int64_t* starts = order.starts + group * (call.codes + 1);
  int64_t next = 0;
  for (int64_t k = 0; k < call.codes; ++k) {
    starts[k] = next;
    for (int64_t chunk = 0; chunk < order.chunks; ++chunk) {
      int64_t& place = order.places[(group * order.chunks + chunk) * call.codes + k];
      const int64_t count = place;
      place = next;
      next += count;
    }
  }
  starts[call.codes] = next;
}

void list_chunk(const SegmentSum& call, const CodeOrder& order, int64_t group, int64_t chunk) {
  int64_t* places = order.places + (group * order.chunks + chunk) * call.codes;
  int64_t* offsets = order.offsets + group * call.x.rows();
  visit_chunk(call, order, group, chunk, [&](int64_t code, int64_t offset) {
    if (code >= 0) offsets[places[code]++] = offset;
  });
}

int64_t sum_by_code(const SegmentSum& call, int workers) {
  const int64_t groups = call.x.groups, rows = call.x.rows();
  CodeOrder order{};
  order.chunk_rows = call.codes > CHUNK_ROWS ? call.codes : CHUNK_ROWS;
  order.chunks = ceil_div(rows, order.chunk_rows);
  const auto lay_out = [&](char* base) {
    Arena arena(base);
    order.places = arena.take<int64_t>(groups * order.chunks * call.codes);
    order.starts = arena.take<int64_t>(groups * (call.codes + 1));
    order.offsets = arena.take<int64_t>(groups * rows);
    return arena.used();
  };
  const Memory memory(lay_out(nullptr));
  lay_out(memory.start());

  const Ranges seen(workers);
  run_tasks(groups * order.chunks, workers, [&](int64_t task, int worker) {
    count_chunk(call, order, task / order.chunks, task % order.chunks, seen[worker]);
  });
  const int64_t outside = seen.outside(call.codes);
  if (outside != -1) return outside;
  run_tasks(groups, workers, [&](int64_t group, int) { place_codes(call, order, group); });
  run_tasks(groups * order.chunks, workers,
            [&](int64_t task, int) { list_chunk(call, order, task / order.chunks, task % order.chunks); });
  const int64_t parts = ceil_div(call.codes, CODES_TOGETHER);
  run_tasks(groups * parts, workers, [&](int64_t task, int) {
    const int64_t first = task % parts * CODES_TOGETHER, last = first + CODES_TOGETHER;
    kernels().segment->sum_codes(call, order, task / parts, first, last < call.codes ? last : call.codes);
  });
  return -1;
}

int64_t sum_by_slice(const SegmentSum& call, int workers) {
  const SegmentKernels& isa = *kernels().segment;
  const int64_t groups = call.x.groups;
  const int64_t slices = call.x.dim > 0 ? ceil_div(call.x.dim, SLICE) : 1;  // there is always something to count
  const int64_t group_bytes = isa.slice_scratch_bytes(call);
  const int64_t share = ceil_div(groups * slices, TASKS_EACH * workers);
  const int64_t most = SLICE_BYTES / group_bytes;
  const int64_t together = share < 1 || most < 1 ? 1 : share < most ? share : most;
  const int64_t bunches = ceil_div(groups, together);
  const Memory scratch(workers * together * group_bytes);
  const Ranges seen(workers);
  run_tasks(bunches * slices, workers, [&](int64_t task, int worker) {
    const int64_t first = task / slices * together, rest = groups - first;
    isa.sum_slice(call, first, rest < together ? rest : together, task % slices,
                  scratch.start() + worker * together * group_bytes, seen[worker]);
  });
  return seen.outside(call.codes);
}

}  // namespace

int64_t segment_sum(const SegmentSum& call) {
  const int workers = workers_for(double(call.x.groups) * double(call.x.rows()) * double(call.x.dim));
  return call.x.dim > SLICE && call.x.dim_stride == 1 ? sum_by_code(call, workers) : sum_by_slice(call, workers);
}

}  // namespace fastvq::cpu
