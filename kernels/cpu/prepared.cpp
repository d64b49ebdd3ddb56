// Lays out and prepares a codebook, and hands blocks of rows to the instruction set's kernels.
#include "prepared.h"

#include "isa.h"

namespace fastvq::cpu {
namespace {

// Takes the arrays of prepared codes from memory at `base`; returns the bytes they need.
int64_t lay_out(PreparedCodes& codes, char* base) {
  Arena arena(base);
  const int64_t groups = codes.codebook.groups, all = groups * codes.codebook.codes;
  if (codes.copies_codes) {
    if (codes.doubles) codes.code_rows = arena.take<double>(all * codes.codebook.dim);
    else codes.code_rows = arena.take<float>(all * codes.codebook.dim);
  }
  if (codes.chunks > 0) codes.excluded = arena.take<uint8_t>(all);
  if (codes.panels == 0) return arena.used();
  codes.chunk_sums = arena.take<double>(groups * codes.chunks * codes.width);
  codes.chunk_largest = arena.take<float>(groups * codes.chunks);
  codes.chunk_finite = arena.take<int64_t>(groups * codes.chunks);
  codes.mean = arena.take<float>(groups * codes.width);
  codes.row_shift = arena.take<float>(groups * codes.width);
  codes.panel_square = arena.take<float>(groups * codes.panels);
  codes.panel_rounding = arena.take<float>(groups * codes.panels);
  codes.panel_steps = arena.take<float>(groups * codes.panels);
  codes.groups = arena.take<GroupCodes>(groups);
  codes.made = arena.take<int32_t>(groups * PACKED_LEVELS);
  const auto take_packed = [&](int level) {
    return reinterpret_cast<char*>(arena.take<float>(groups * codes.panels * codes.panel_size[level]));
  };
  codes.columns = reinterpret_cast<char*>(arena.take<float>(groups * codes.panels * codes.column_size));
  codes.packed[0] = take_packed(0);
  // What is rarely needed comes last, so that memory never touched costs nothing.
  codes.repeated = arena.take<uint8_t>(all);
  codes.hashes = arena.take<uint32_t>(all);
  codes.hash_slots = arena.take<int32_t>(groups * codes.slot_count);
  for (int level = 1; level < codes.levels; ++level) codes.packed[level] = take_packed(level);
  return arena.used();
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

PreparedSearch::PreparedSearch(const Nearest& asked, Buffer* buffer)
    : asked_(asked), isa_(asked.topk > 0 ? kernels().topk : kernels().nearest) {
  const Codebook& given = asked_.codebook;
  const bool serves = asked_.metric != Metric::cosine && (given.dim_stride == 1 || given.dim == 1) &&
                      (given.code_stride == given.dim || given.codes == 1);
  asked_.doubles = asked_.x.dtype == DType::float64;
  asked_.copies_codes = !serves;
  asked_.code_rows = const_cast<void*>(given.data);  // written only where they are copied
  asked_.code_group_stride = serves ? given.group_stride : given.codes * given.dim;
  asked_.total_rows = asked_.x.rows();
  asked_.slot_count = 4;
  while (asked_.slot_count < 2 * given.codes) asked_.slot_count *= 2;
  isa_->plan(asked_, asked_.total_rows);
  // Rounding to less than float32 takes a slack, which makes what "fast" finds exact.
  asked_.exact |= asked_.format[0] != SINGLES || asked_.column_size > 0;
  if (!buffer) buffer = &own_;
  lay_out(asked_, buffer->at_least(lay_out(asked_, nullptr)));
  begin_progress();
  for (int64_t i = 0; i < given.groups * PACKED_LEVELS && asked_.panels > 0; ++i) asked_.made[i] = 0;
}

PreparedSearch::PreparedSearch(const PreparedSearch& prepared, int64_t rows)
    : asked_(prepared.asked_), isa_(prepared.isa_) {
  asked_.total_rows = rows;
  begin_progress();
}

void PreparedSearch::begin_progress() {
  const int64_t groups = asked_.codebook.groups;
  progress_ = std::make_unique<Memory>(groups * static_cast<int64_t>(sizeof(Progress)));
  asked_.progress = reinterpret_cast<Progress*>(progress_->start());
  for (int64_t group = 0; group < groups; ++group) asked_.progress[group] = {};
}

PreparedSearch::PreparedSearch(const Nearest& asked, int workers, Buffer* buffer) : PreparedSearch(asked, buffer) {
  prepare(workers);
}

PreparedSearch::PreparedSearch(const Codebook& codebook, Metric metric, bool exact, bool doubles, int64_t rows,
                               int workers, Buffer* buffer)
    : PreparedSearch(ask(codebook, metric, exact, doubles, rows), workers, buffer) {}

PreparedSearch::PreparedSearch(const Codebook& codebook, Metric metric, bool exact, bool doubles, int64_t rows,
                               Buffer& buffer)
    : PreparedSearch(ask(codebook, metric, exact, doubles, rows), &buffer) {}

void PreparedSearch::centre() const {
  if (asked_.panels == 0) return;
  for (int64_t group = 0; group < asked_.codebook.groups; ++group) isa_->centre_codes(asked_, group);
}

void PreparedSearch::bound() const {
  if (asked_.panels == 0) return;
  for (int64_t group = 0; group < asked_.codebook.groups; ++group) isa_->bound_codes(asked_, group);
}

void PreparedSearch::prepare(int workers) const {
  const int64_t groups = asked_.codebook.groups;
  if (groups >= int64_t{4} * workers)
    return run_tasks(groups, workers, [&](int64_t group, int) {
      for (int64_t chunk = 0; chunk < asked_.chunks; chunk += asked_.skipped + 1)
        isa_->read_codes(asked_, group, chunk);
      if (asked_.panels == 0) return;
      isa_->centre_codes(asked_, group);
      for (int64_t panel = 0; panel < asked_.panels; ++panel) isa_->pack_codes(asked_, group, panel);
      isa_->bound_codes(asked_, group);
    });
  run_tasks(reads(), workers, [&](int64_t task, int) { read(task); });
  centre();
  run_tasks(packs(), workers, [&](int64_t task, int) { pack(task); });
  bound();
}

int64_t PreparedSearch::block_rows(int workers) const { return isa_->block_rows(asked_, workers); }
int64_t PreparedSearch::scratch_bytes(int64_t block) const { return isa_->scratch_bytes(asked_, block); }

int64_t PreparedSearch::scratch_bytes(int64_t block, int64_t groups) const {
  GroupBlock found;
  return scratch_bytes(block) + (finds_first(groups) ? lay_out_groups(nullptr, groups, block, found) : 0);
}

void PreparedSearch::search(int64_t first_group, int64_t groups, int64_t first, int64_t last, int64_t block,
                            char* scratch) const {
  if (!finds_first(groups)) {
    for (int64_t group = first_group; group < first_group + groups; ++group)
      isa_->search(asked_, group, first, last, block, scratch);
    return;
  }
  GroupBlock found;
  scratch += lay_out_groups(scratch, groups, block, found);
  Nearest call = asked_;
  call.indices = found.indices;
  call.distances = found.distances;
  call.result_row_stride = 1;
  call.result_group_stride = found.stride;
  call.result_first = first_group * found.stride + first;
  int64_t from = first;
  if (found.rows) {  // rows are numbered from 0 then, groups as before
    isa_->take(asked_.x, first_group, groups, first, last, found.rows, found.row_stride);
    const uintptr_t group_bytes = found.row_stride * sizeof(float), start = reinterpret_cast<uintptr_t>(found.rows);
    call.x.data = reinterpret_cast<const void*>(start - first_group * group_bytes);
    call.x.group_stride = found.row_stride;
    call.x.stride2 = call.x.dim;
    call.x.rows1 = 1;
    call.x.rows2 = last - first;
    call.result_first -= first;
    from = 0;
  }
  for (int64_t group = first_group; group < first_group + groups; ++group)
    isa_->search(call, group, from, from + last - first, block, scratch);
  isa_->place(asked_, found, first_group, groups, first, last - first);
}

// Whether results are found group by group before they are written: where rows are narrow, these stores count.
bool PreparedSearch::finds_first(int64_t groups) const { return groups > 1 && asked_.kind == Kind::lanes; }

int64_t PreparedSearch::lay_out_groups(char* base, int64_t groups, int64_t block, GroupBlock& found) const {
  Arena arena(base);
  found.stride = round_up(block, 16) + 16;  // whole lines and one more: groups do not share a place in the cache
  found.indices = arena.take<int64_t>(groups * found.stride);
  found.distances = arena.take<double>(groups * found.stride);
  const bool whole = asked_.x.dtype == DType::float32 && asked_.x.dim_stride == 1 && !asked_.mask.data;
  found.row_stride = block * asked_.x.dim + 16;
  found.rows = whole ? arena.take<float>(groups * found.row_stride) : nullptr;
  return arena.used();
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
  call.result_first = 0;
  isa_->search(call, group, 0, count, block, scratch);
}

}  // namespace fastvq::cpu
