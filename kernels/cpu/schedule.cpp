// Cuts search, lookup and update into tasks for torch's threads and gives each worker its scratch memory.
#include "isa.h"
#include "workers.h"

namespace fastvq::cpu {
namespace {

constexpr int64_t GROUPS_TOGETHER = 8;  // eight int64 indices are one cache line

// Takes the arrays of a prepared search from memory at `base`; returns the bytes they need.
int64_t lay_out(Nearest& call, char* base, int workers) {
  Arena arena(base);
  const int64_t groups = call.x.groups, codes = call.codebook.codes, dim = call.codebook.dim;
  if (call.copies_codes) {
    if (call.is_double()) call.code_rows = arena.take<double>(groups * codes * dim);
    else call.code_rows = arena.take<float>(groups * codes * dim);
  }
  call.excluded = arena.take<uint8_t>(groups * codes);
  if (call.is_double()) return arena.used();
  call.repeated = arena.take<uint8_t>(groups * codes);
  call.hashes = arena.take<uint32_t>(groups * codes);
  call.chunk_sums = arena.take<double>(groups * call.chunks * dim);
  call.chunk_largest = arena.take<float>(groups * call.chunks);
  call.chunk_square = arena.take<double>(groups * call.chunks);
  call.chunk_finite = arena.take<int64_t>(groups * call.chunks);
  call.mean = arena.take<float>(groups * call.padded_dim);
  call.row_shift = arena.take<float>(groups * call.padded_dim);
  call.packed = arena.take<float>(groups * call.packed_size);
  call.panel_square = arena.take<float>(groups * call.panels);
  call.groups = arena.take<GroupCodes>(groups);
  call.hash_slots = arena.take<int32_t>(workers * call.slot_count);
  return arena.used();
}

void prepare(const Nearest& call, const NearestKernels& isa, int workers) {
  const int64_t groups = call.x.groups;
  run_tasks(groups * call.chunks, workers,
            [&](int64_t task, int) { isa.read_codes(call, task / call.chunks, task % call.chunks); });
  if (call.panels == 0) return;
  run_tasks(groups, workers, [&](int64_t group, int worker) { isa.centre_codes(call, group, worker); });
  run_tasks(groups * call.panels, workers,
            [&](int64_t task, int) { isa.pack_codes(call, task / call.panels, task % call.panels); });
  for (int64_t group = 0; group < groups; ++group) isa.bound_codes(call, group);
}

}  // namespace

void nearest(Nearest& call) {
  const int64_t rows = call.x.rows(), groups = call.x.groups;
  if (rows == 0 || groups == 0) return;
  const NearestKernels& isa = *kernels().nearest;
  const double code_values = double(groups) * double(call.codebook.codes) * double(call.codebook.dim);
  const int workers = workers_for(2 * code_values * double(rows));
  const Codebook& given = call.codebook;
  const bool serves = call.metric != Metric::cosine && (given.dim_stride == 1 || given.dim == 1) &&
                      (given.code_stride == given.dim || given.codes == 1);
  call.copies_codes = !serves;
  call.code_rows = const_cast<void*>(given.data);  // written only where they are copied
  call.code_group_stride = serves ? given.group_stride : given.codes * given.dim;
  isa.plan(call);
  call.slot_count = 4;
  while (call.slot_count < 2 * call.codebook.codes) call.slot_count *= 2;
  const Memory memory(lay_out(call, nullptr, workers));
  lay_out(call, memory.start(), workers);
  prepare(call, isa, workers);

  const int64_t block = isa.block_rows(call, workers), blocks = ceil_div(rows, block);
  const int64_t scratch_bytes = isa.scratch_bytes(call, block);
  const Memory scratch(workers * scratch_bytes);
  // Results of neighbouring groups share cache lines, and so do the rows of narrow ones: one worker takes several.
  const int64_t together = blocks * ceil_div(groups, GROUPS_TOGETHER) >= int64_t{4} * workers ? GROUPS_TOGETHER : 1;
  const int64_t parts = ceil_div(groups, together);
  run_tasks(blocks * parts, workers, [&](int64_t task, int worker) {
    const int64_t first = task / parts * block, last = first + block < rows ? first + block : rows;
    for (int64_t group = task % parts * together; group < groups && group < (task % parts + 1) * together; ++group)
      isa.search(call, group, first, last, block, scratch.start() + worker * scratch_bytes);
  });
}

int64_t lookup(const Lookup& call) {
  const int64_t rows = call.rows1 * call.rows2, row_values = call.groups * call.stages * call.dim;
  const int workers = workers_for(double(rows) * double(row_values));
  const int64_t block = 1 + 16384 / (row_values + 1);
  const Ranges seen(workers);
  run_tasks(ceil_div(rows, block), workers, [&](int64_t task, int worker) {
    const int64_t first = task * block, last = first + block < rows ? first + block : rows;
    kernels().lookup->gather(call, first, last, seen[worker]);
  });
  return seen.outside(call.codes);
}

void ema_update(Ema& call) {
  const EmaKernels& isa = *kernels().ema;
  const int workers = workers_for(double(call.groups) * double(call.codes) * double(call.dim));
  const Memory memory(call.groups * 8);
  call.totals = reinterpret_cast<double*>(memory.start());
  run_tasks(call.groups, workers, [&](int64_t group, int) { isa.count_group(call, group); });
  constexpr int64_t PART = 64;
  const int64_t parts = ceil_div(call.codes, PART);
  run_tasks(call.groups * parts, workers, [&](int64_t task, int) {
    const int64_t first = task % parts * PART, last = first + PART < call.codes ? first + PART : call.codes;
    isa.update_codes(call, task / parts, first, last);
  });
}

}  // namespace fastvq::cpu
