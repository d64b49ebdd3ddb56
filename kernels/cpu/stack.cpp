// Takes blocks of rows through residual stacks, and slices of columns through their sums, on torch's threads.
#include <deque>
#include <memory>
#include <vector>

#include "isa.h"
#include "kept.h"
#include "workers.h"

namespace fastvq::cpu {
namespace {

constexpr int64_t GROUPS_TOGETHER = 8;

template <class T>
void copy_codes(const CodeStack& from, int64_t stages, T* to) {
  const T* data = static_cast<const T*>(from.data);
  for (int64_t group = 0; group < from.groups; ++group)
    for (int64_t stage = 0; stage < stages; ++stage)
      for (int64_t k = 0; k < from.codes; ++k)
        for (int64_t d = 0; d < from.dim; ++d)
          *to++ = data[group * from.group_stride + stage * from.stage_stride + k * from.code_stride +
                       d * from.dim_stride];
}

// The codes, each whole and one after the other: as given, or a copy.
class WholeCodes {
 public:
  explicit WholeCodes(const CodeStack& given) : stack_(given) {
    const bool whole = (given.dim_stride == 1 || given.dim == 1) &&
                       (given.code_stride == given.dim || given.codes == 1);
    if (whole) return;
    const int64_t stages = given.stage_stride == 0 ? 1 : given.stages;
    const int64_t values = given.groups * stages * given.codes * given.dim;
    memory_ = std::make_unique<Memory>(values * (given.is_double ? 8 : 4));
    if (given.is_double) copy_codes(given, stages, reinterpret_cast<double*>(memory_->start()));
    else copy_codes(given, stages, reinterpret_cast<float*>(memory_->start()));
    stack_.data = memory_->start();
    stack_.code_stride = given.dim;
    stack_.dim_stride = 1;
    stack_.stage_stride = given.stage_stride == 0 ? 0 : given.codes * given.dim;
    stack_.group_stride = stages * given.codes * given.dim;
  }
  const CodeStack& stack() const { return stack_; }

 private:
  CodeStack stack_;
  std::unique_ptr<Memory> memory_;
};

int64_t size_of(const ResidualNearest& call, int64_t stage) {
  return call.sizes ? call.sizes[stage] : call.codebooks.codes;
}

Codebook codebook_of(const ResidualNearest& call, int64_t stage) {
  return codebook_of(call.codebooks, stage, size_of(call, stage));
}

// The search of every stage, from what is kept of the codes, if anything. Stages that share a codebook share its
// preparation.
class PreparedStages {
 public:
  PreparedStages(const ResidualNearest& call, std::shared_ptr<const KeptStack> kept, int workers)
      : kept_(std::move(kept)), of_stage_(call.codebooks.stages) {
    const CodeStack& stack = call.codebooks;
    for (int64_t stage = 0; stage < stack.stages; ++stage) {
      const int64_t size = size_of(call, stage);
      if (stack.stage_stride == 0)
        for (int64_t earlier = 0; earlier < stage && !of_stage_[stage]; ++earlier)
          if (size_of(call, earlier) == size) of_stage_[stage] = of_stage_[earlier];
      if (of_stage_[stage]) continue;
      if (kept_) prepared_.emplace_back(kept_->of(stage), call.x.rows());
      else
        prepared_.emplace_back(codebook_of(call, stage), Metric::l2, call.exact, stack.is_double, call.x.rows(),
                               workers);
      of_stage_[stage] = &prepared_.back();
    }
  }

  const PreparedSearch& operator[](int64_t stage) const { return *of_stage_[stage]; }

  int64_t block_rows(int workers) const { return prepared_.front().block_rows(workers); }

  int64_t scratch_bytes(int64_t block) const {
    int64_t most = 0;
    for (const PreparedSearch& search : prepared_) {
      const int64_t bytes = search.scratch_bytes(block);
      most = bytes > most ? bytes : most;
    }
    return most;
  }

 private:
  std::shared_ptr<const KeptStack> kept_;
  std::deque<PreparedSearch> prepared_;
  std::vector<const PreparedSearch*> of_stage_;
};

int64_t lay_out(ResidualBlock& block, char* base, const ResidualNearest& call, int64_t rows) {
  Arena arena(base);
  const int64_t value = call.codebooks.is_double ? 8 : 4;
  block.numbers = arena.take<int64_t>(rows);
  block.offsets = arena.take<int64_t>(rows);
  block.depths = arena.take<int32_t>(rows);
  block.order = arena.take<int64_t>(rows * 3);
  block.residuals = arena.take<char>(rows * call.x.dim * value);
  block.codes = arena.take<int64_t>(rows);
  block.errors = arena.take<char>(rows * value);
  block.sum = arena.take<char>(call.x.dim * value);
  return arena.used();
}

// How many parts the rows are cut into. Codes are read anywhere, residuals in order: where the codes of all stages do
// not stay in the second-level cache, more rows go through a stage before the next stage's codes come in. Few parts
// are equal shares of the threads.
int64_t part_count(const ResidualNearest& call, int64_t step, int workers) {
  constexpr int64_t CODE_BYTES = 512 * 1024, ROW_BYTES = 1024 * 1024;
  const CodeStack& stack = call.codebooks;
  const int64_t row_bytes = stack.dim * (stack.is_double ? 8 : 4);
  const int64_t code_bytes = row_bytes * stack.codes * (stack.stage_stride == 0 ? 1 : stack.stages);
  int64_t most = code_bytes > CODE_BYTES ? ROW_BYTES / row_bytes : step;
  if (most < step) most = step;
  const int64_t parts = ceil_div(call.x.rows(), most), groups = call.x.groups;
  if (parts * groups >= int64_t{8} * workers) return parts;
  return ceil_div(round_up(parts * groups, workers), groups);
}

// Takes the rows of a part, at the start of what is left of them, through one stage.
void search_stage(const ResidualNearest& call, const ResidualKernels& isa, const PreparedSearch& search, int64_t group,
                  int64_t stage, int64_t step, char* scratch, int64_t& left, ResidualBlock& own) {
  const int64_t value = call.codebooks.is_double ? 8 : 4;
  while (left > 0 && own.depths[left - 1] <= stage) --left;
  for (int64_t r = 0; r < left; r += step) {
    const int64_t end = r + step < left ? r + step : left;
    const char* from = static_cast<const char*>(own.rows) + r * own.row_stride * value;
    search.search(from, own.row_stride, end - r, group, step, scratch, own.codes + r,
                  static_cast<char*>(own.errors) + r * value);
    isa.advance(call, group, stage, r, end, own);
  }
  own.rows = own.residuals;
  own.row_stride = call.x.dim;
}

// Whether the codes of all stages are many and the rows few: then much of the time goes into preparing codes.
bool few_rows(const ResidualNearest& call) {
  constexpr int64_t CODE_BYTES = 2 << 20, ROW_BYTES = 2 << 20;
  const CodeStack& stack = call.codebooks;
  const int64_t row_bytes = stack.groups * stack.dim * (stack.is_double ? 8 : 4);
  return stack.stage_stride != 0 && !call.sizes && row_bytes * stack.codes * stack.stages > CODE_BYTES &&
         row_bytes * call.x.rows() <= ROW_BYTES;
}

// All rows pass a stage, while the codes of the next one are packed and those of the one after it read: what comes from
// memory does so beside arithmetic, threads wait for each other once a stage, and three stages' codes are all that is
// kept.
void stage_by_stage(ResidualNearest& call, int workers) {
  struct Part {
    ResidualBlock block;
    int64_t left;
    int count;
  };
  constexpr int64_t KEPT = 3;
  const ResidualKernels& isa = *kernels().residual;
  const CodeStack& stack = call.codebooks;
  const int64_t rows = call.x.rows(), groups = call.x.groups;
  Buffer codes[KEPT], scratch;
  std::unique_ptr<PreparedSearch> searches[KEPT];
  const auto open = [&](int64_t stage) -> const PreparedSearch* {
    auto& search = searches[stage % KEPT];
    search = std::make_unique<PreparedSearch>(codebook_of(call, stage), Metric::l2, call.exact, stack.is_double, rows,
                                              codes[stage % KEPT]);
    return search.get();
  };
  const PreparedSearch *searched = nullptr, *packed = nullptr, *read = open(0);

  const int64_t block = read->block_rows(workers), parts = ceil_div(rows, block), tasks = parts * groups;
  ResidualBlock measured;
  const int64_t bytes = lay_out(measured, nullptr, call, block);
  const Memory blocks(tasks * bytes);
  std::vector<Part> all(tasks);
  run_tasks(tasks, workers, [&](int64_t task, int) {
    Part& part = all[task];
    lay_out(part.block, blocks.start() + task * bytes, call, block);
    const int64_t first = task / groups * block, last = first + block < rows ? first + block : rows;
    part.count = isa.begin(call, task % groups, first, last, part.block);
    part.left = part.count;
  });
  for (int64_t stage = -2; stage < stack.stages; ++stage) {
    const int64_t search_bytes = searched ? searched->scratch_bytes(block) : 0;
    char* const start = scratch.at_least(workers * search_bytes);
    const int64_t searching = searched ? tasks : 0, packing = packed ? packed->packs() : 0;
    run_tasks(searching + packing + (read ? read->reads() : 0), workers, [&](int64_t task, int worker) {
      if (task >= searching + packing) return read->read(task - searching - packing);
      if (task >= searching) return packed->pack(task - searching);
      search_stage(call, isa, *searched, task % groups, stage, block, start + worker * search_bytes, all[task].left,
                   all[task].block);
    });
    if (packed) packed->bound();
    if (read) read->centre();
    searched = packed;
    packed = read;
    read = stage + 3 < stack.stages ? open(stage + 3) : nullptr;
  }
  run_tasks(tasks, workers, [&](int64_t task, int) {
    if (all[task].count > 0) isa.finish(call, task % groups, all[task].count, all[task].block);
  });
}

}  // namespace

void residual_nearest(ResidualNearest& call) {
  const int64_t rows = call.x.rows(), groups = call.x.groups;
  if (rows == 0 || groups == 0) return;
  const WholeCodes whole(call.codebooks);
  call.codebooks = whole.stack();
  const CodeStack& stack = call.codebooks;
  const double code_values = double(groups) * double(stack.stages) * double(stack.codes) * double(call.x.dim);
  const int workers = workers_for(2 * code_values * double(rows));
  std::shared_ptr<const KeptStack> kept = find_kept(stack, call.sizes);
  if (!kept && few_rows(call)) return stage_by_stage(call, workers);
  const PreparedStages searches(call, std::move(kept), workers);
  const ResidualKernels& isa = *kernels().residual;

  const int64_t step = searches.block_rows(workers), parts = part_count(call, step, workers);
  const int64_t block = ceil_div(rows, parts);
  const int64_t search_bytes = searches.scratch_bytes(step);
  ResidualBlock measured;
  const int64_t bytes = search_bytes + lay_out(measured, nullptr, call, block);
  const Memory scratch(workers * bytes);
  // Results of neighbouring groups share cache lines: one worker takes several.
  const int64_t together = parts * ceil_div(groups, GROUPS_TOGETHER) >= int64_t{4} * workers ? GROUPS_TOGETHER : 1;
  const int64_t bundles = ceil_div(groups, together);
  run_tasks(parts * bundles, workers, [&](int64_t task, int worker) {
    char* search_scratch = scratch.start() + worker * bytes;
    ResidualBlock own;
    lay_out(own, search_scratch + search_bytes, call, block);
    const int64_t first = task / bundles * block, last = first + block < rows ? first + block : rows;
    const int64_t first_group = task % bundles * together;
    for (int64_t group = first_group; group < groups && group < first_group + together && first < last; ++group) {
      const int count = isa.begin(call, group, first, last, own);
      int64_t left = count;
      for (int64_t stage = 0; stage < stack.stages; ++stage)
        search_stage(call, isa, searches[stage], group, stage, step, search_scratch, left, own);
      isa.finish(call, group, count, own);
    }
  });
}

int64_t residual_segment_sum(ResidualSum& call) {
  const ResidualSumKernels& isa = *kernels().residual_sum;
  const CodeStack& stack = call.codebooks;
  const int64_t groups = call.x.groups, dim = call.x.dim;
  const int workers = workers_for(double(groups) * double(call.x.rows()) * double(stack.stages) * double(dim));
  // A stage's sums of one slice stay in the second-level cache, and all of them within a few megabytes.
  constexpr int64_t STAGE_BYTES = 256 * 1024, ALL_BYTES = 4 * 1024 * 1024, LEAST = 8, MOST = 64;
  const auto suits = [&](int64_t width) {
    const int64_t stage_bytes = width * stack.codes * 8;
    return stage_bytes <= STAGE_BYTES && stage_bytes * stack.stages <= ALL_BYTES &&
           groups * ceil_div(dim, width) >= int64_t{2} * workers;
  };
  int64_t width = MOST;
  while (width > LEAST && !suits(width)) width /= 2;
  call.width = width < dim ? width : dim;
  const int64_t slices = ceil_div(dim, call.width);
  const int64_t scratch_bytes = isa.slice_scratch_bytes(call);
  const Memory scratch(workers * scratch_bytes);
  const Ranges seen(workers);
  run_tasks(groups * slices, workers, [&](int64_t task, int worker) {
    isa.sum_slice(call, task / slices, task % slices, scratch.start() + worker * scratch_bytes, seen[worker]);
  });
  return seen.outside(stack.codes);
}

}  // namespace fastvq::cpu
