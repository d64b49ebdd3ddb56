// Lays out and prepares a codebook, and hands blocks of rows to the instruction set's kernels.
#include "prepared.h"

#include "isa.h"

namespace fastvq::cpu {
namespace {

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

Nearest ask(const Codebook& codebook, Metric metric, bool exact, bool doubles, int64_t rows) {
  Nearest asked{};
  asked.x = {nullptr, doubles ? DType::float64 : DType::float32, codebook.groups, 1, rows, codebook.dim, 0, 0, 0, 1};
  asked.codebook = codebook;
  asked.metric = metric;
  asked.exact = exact;
  return asked;
}

}  // namespace

PreparedSearch::PreparedSearch(const Nearest& asked, int workers) : asked_(asked), isa_(kernels().nearest) {
  const Codebook& given = asked_.codebook;
  const bool serves = asked_.metric != Metric::cosine && (given.dim_stride == 1 || given.dim == 1) &&
                      (given.code_stride == given.dim || given.codes == 1);
  asked_.copies_codes = !serves;
  asked_.code_rows = const_cast<void*>(given.data);  // written only where they are copied
  asked_.code_group_stride = serves ? given.group_stride : given.codes * given.dim;
  isa_->plan(asked_);
  asked_.slot_count = 4;
  while (asked_.slot_count < 2 * given.codes) asked_.slot_count *= 2;
  memory_ = std::make_unique<Memory>(lay_out(asked_, nullptr, workers));
  lay_out(asked_, memory_->start(), workers);
  prepare(asked_, *isa_, workers);
}

PreparedSearch::PreparedSearch(const Codebook& codebook, Metric metric, bool exact, bool doubles, int64_t rows,
                               int workers)
    : PreparedSearch(ask(codebook, metric, exact, doubles, rows), workers) {}

int64_t PreparedSearch::block_rows(int workers) const { return isa_->block_rows(asked_, workers); }
int64_t PreparedSearch::scratch_bytes(int64_t block) const { return isa_->scratch_bytes(asked_, block); }

void PreparedSearch::search(int64_t group, int64_t first, int64_t last, int64_t block, char* scratch) const {
  isa_->search(asked_, group, first, last, block, scratch);
}

void PreparedSearch::search(const void* rows, int64_t row_stride, int64_t count, int64_t group, int64_t block,
                            char* scratch, int64_t* indices, void* distances) const {
  if (count == 0) return;
  Nearest call = asked_;
  call.x = {rows, asked_.x.dtype, asked_.x.groups, 1, count, asked_.x.dim, 0, 0, row_stride, 1};
  call.mask = {};
  call.indices = indices;
  call.distances = distances;
  call.result_row_stride = 1;
  call.result_group_stride = 0;
  isa_->search(call, group, 0, count, block, scratch);
}

}  // namespace fastvq::cpu
