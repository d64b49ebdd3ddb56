// A codebook that is prepared once and then searched block by block, from within any task.
//
//   const PreparedSearch codes(codebook, Metric::l2, exact, doubles, rows, workers);    // outside of tasks
//   const int64_t block = codes.block_rows(workers), bytes = codes.scratch_bytes(block);
//   const Memory scratch(workers * bytes);
//   run_tasks(..., [&](int64_t task, int worker) {
//     codes.search(residuals, dim, count, group, block, scratch.start() + worker * bytes, indices, distances);
//   });
//
// `search` gives what the op gives: the oracle's code of every row (-1 where the row is not finite or no code is), and
// the oracle's distance rounded once (NaN where there is no code). It changes nothing but its scratch and results, so
// any number of tasks may run it at once. Rows are float32 (float64 where `doubles`); `count` is at most `block`,
// which may be any number from 1 on, not only the block_rows proposed. The given codes must outlive the object and
// stay as they are: close calls are decided on them.
#pragma once

#include <memory>

#include "nearest.h"
#include "workers.h"

namespace fastvq::cpu {

// Memory that searches which follow each other may share.
class Buffer {
 public:
  char* at_least(int64_t bytes) {
    if (bytes > bytes_) {
      memory_ = std::make_unique<Memory>(bytes);
      bytes_ = bytes;
    }
    return memory_->start();
  }

 private:
  std::unique_ptr<Memory> memory_;
  int64_t bytes_ = -1;
};

class PreparedSearch {
 public:
  // Codes (G, K, D) of any strides; `rows` is how many rows a group will be asked for in all, and decides whether
  // codes are worth packing. Runs on torch's threads, serially from within a task. The memory may be that of a search
  // which is no longer used.
  PreparedSearch(const Codebook& codebook, Metric metric, bool exact, bool doubles, int64_t rows, int workers,
                 Buffer* buffer = nullptr);
  // The same for given rows, mask and results.
  PreparedSearch(const Nearest& asked, int workers, Buffer* buffer = nullptr);
  // Leaves the preparation to the caller's tasks: every `read`, then `centre`, then every `pack`, then `bound`.
  PreparedSearch(const Codebook& codebook, Metric metric, bool exact, bool doubles, int64_t rows, Buffer& buffer);

  // The same codes, prepared before, for so many rows; what it is made from must outlive it.
  PreparedSearch(const PreparedSearch& prepared, int64_t rows);

  int64_t reads() const { return asked_.codebook.groups * chunks_read(); }
  int64_t packs() const { return asked_.codebook.groups * packs_of_group(); }
  void read(int64_t task) const {
    isa_->read_codes(asked_, task / chunks_read(), task % chunks_read() * (asked_.skipped + 1));
  }
  void pack(int64_t task) const {
    const int64_t first = task % packs_of_group() * PACKED_TOGETHER;
    for (int64_t panel = first; panel < first + PACKED_TOGETHER && panel < asked_.panels; ++panel)
      isa_->pack_codes(asked_, task / packs_of_group(), panel);
  }
  void centre() const;
  void bound() const;

  int64_t block_rows(int workers) const;       // rows at a time that make good use of the caches
  int64_t scratch_bytes(int64_t block) const;  // of one task, 64-byte aligned

  // Searches `count` rows, row_stride elements apart, in one group's codes; results are contiguous.
  void search(const void* rows, int64_t row_stride, int64_t count, int64_t group, int64_t block, char* scratch,
              int64_t* indices, void* distances) const;
  // The same for the rows [first, last) of the rows given at construction, in the codes of some neighbouring groups,
  // and what that takes for at most so many.
  void search(int64_t first_group, int64_t groups, int64_t first, int64_t last, int64_t block, char* scratch) const;
  int64_t scratch_bytes(int64_t block, int64_t groups) const;

 private:
  PreparedSearch(const Nearest& asked, Buffer* buffer);
  void prepare(int workers) const;
  bool finds_first(int64_t groups) const;
  int64_t lay_out_groups(char* base, int64_t groups, int64_t block, GroupBlock& found) const;
  void begin_progress();
  static constexpr int64_t PACKED_TOGETHER = 4;  // panels, each of which fetches the next one's codes
  int64_t packs_of_group() const { return ceil_div(asked_.panels, PACKED_TOGETHER); }
  int64_t chunks_read() const { return ceil_div(asked_.chunks, asked_.skipped + 1); }

  Nearest asked_;
  const NearestKernels* isa_;
  Buffer own_;
  std::unique_ptr<Memory> progress_;
};

}  // namespace fastvq::cpu
