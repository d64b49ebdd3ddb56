// Cuts search, lookup and update into tasks for torch's threads and gives each worker its scratch memory.
#include "isa.h"
#include "prepared.h"
#include "workers.h"

namespace fastvq::cpu {
namespace {

constexpr int64_t GROUPS_TOGETHER = 8;  // eight int64 indices are one cache line
// From 25,000 values on a second thread pays: a look-up of 32 Ki takes 10 us by one and 8.7 by two (Zen 4).
constexpr double MOVE_FLOPS = 8;     // of SERIAL_FLOPS, for a value moved
constexpr int64_t FIND_VALUES = 16;  // a code found counts as so many values

}  // namespace

void nearest(Nearest& call) {
  const int64_t rows = call.x.rows(), groups = call.x.groups;
  if (rows == 0 || groups == 0) return;
  const double code_values = double(groups) * double(call.codebook.codes) * double(call.codebook.dim);
  const int workers = workers_for(2 * code_values * double(rows));
  call.result_group_stride = call.topk > 0 ? call.topk : 1;
  call.result_row_stride = groups * call.result_group_stride;
  call.result_first = 0;
  const PreparedSearch prepared(call, workers);

  const int64_t block = prepared.block_rows(workers), blocks = ceil_div(rows, block);
  // Results of neighbouring groups share cache lines, and so do the rows of narrow ones: one worker takes several.
  const int64_t together = blocks * ceil_div(groups, GROUPS_TOGETHER) >= int64_t{4} * workers ? GROUPS_TOGETHER : 1;
  const int64_t parts = ceil_div(groups, together), scratch_bytes = prepared.scratch_bytes(block, together);
  const Memory scratch(workers * scratch_bytes);
  run_tasks(blocks * parts, workers, [&](int64_t task, int worker) {
    const int64_t first = task / parts * block, last = first + block < rows ? first + block : rows;
    const int64_t group = task % parts * together, count = group + together < groups ? together : groups - group;
    prepared.search(group, count, first, last, block, scratch.start() + worker * scratch_bytes);
  });
}

int64_t lookup(const Lookup& call) {
  const int64_t rows = call.rows1 * call.rows2, row_values = call.groups * call.stages * call.dim;
  const double codes = double(rows) * double(call.groups * call.stages);
  const int workers = workers_for(MOVE_FLOPS * codes * double(call.dim + FIND_VALUES));
  const int64_t block = 1 + 16384 / (row_values + 1);
  const Ranges seen(workers);
  run_tasks(ceil_div(rows, block), workers, [&](int64_t task, int worker) {
    const int64_t first = task * block, last = first + block < rows ? first + block : rows;
    kernels().lookup->gather(call, first, last, seen[worker]);
  });
  return seen.outside(call.codes);
}

int64_t commitment_grad(const CommitmentGrad& call) {
  const int64_t rows = call.x.rows(), row_values = call.x.groups * call.x.dim;
  const int workers = workers_for(MOVE_FLOPS * double(rows) * double(row_values));
  const int64_t block = 1 + 16384 / (row_values + 1);
  const Ranges seen(workers);
  run_tasks(ceil_div(rows, block), workers, [&](int64_t task, int worker) {
    const int64_t first = task * block, last = first + block < rows ? first + block : rows;
    kernels().commitment->pull(call, first, last, seen[worker]);
  });
  return seen.outside(call.codebook.codes);
}

void ema_update(Ema& call) {
  const EmaKernels& isa = *kernels().ema;
  const int workers = workers_for(double(call.groups) * double(call.codes) * double(call.dim));
  const Memory memory(call.groups * 8);
  call.totals = reinterpret_cast<double*>(memory.start());
  run_tasks(call.groups, workers, [&](int64_t group, int) { isa.count_group(call, group); });
  const int64_t parts = ceil_div(call.codes, EMA_PART);
  run_tasks(call.groups * parts, workers, [&](int64_t task, int) {
    const int64_t first = task % parts * EMA_PART, end = first + EMA_PART;
    isa.update_codes(call, task / parts, first, end < call.codes ? end : call.codes);
  });
}

}  // namespace fastvq::cpu
