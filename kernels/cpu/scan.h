// The oracle over every code, without a coarse pass: for float64 rows and whatever no slack is proven for.
#pragma once

#include "rows.h"

namespace fastvq::cpu::FASTVQ_ISA {

struct ScanScratch {
  int64_t* numbers;
  int64_t* offsets;
  char* row_values;  // (D) float or double
  ScanQueue queue;

  int64_t lay_out(char* base, const Nearest& call, int64_t block) {
    Arena arena(base);
    numbers = arena.take<int64_t>(block);
    offsets = arena.take<int64_t>(block);
    row_values = reinterpret_cast<char*>(arena.take<double>(call.codebook.dim));
    queue.lay_out(arena, call.codebook.dim, call.topk > 0 ? call.topk : 1);
    return arena.used();
  }
};

template <class T>
static void search_all(const Nearest& call, int64_t group, int64_t first, int64_t last, int64_t block,
                       char* scratch) {
  ScanScratch s;
  s.lay_out(scratch, call, block);
  const int64_t dim = call.x.dim;
  auto* row = reinterpret_cast<T*>(s.row_values);
  const int count = list_rows(call.x, call.mask, group, first, last, s.numbers, s.offsets,
                              [&](int64_t number) { write_masked<T>(call, group, number); });
  for (int r = 0; r < count; ++r) {
    if constexpr (sizeof(T) == 8) copy_rows<double>(call.x.data, s.offsets + r, 1, dim, call.x.dim_stride, row, dim);
    else load_rows(call.x, s.offsets + r, 1, row, dim);
    if (!all_finite(row, dim)) {
      write_row<T>(call, group, s.numbers[r], -1, 0);
      continue;
    }
    if (call.metric == Metric::cosine) unit_rows(row, dim, 1, dim, row, dim);
    queue_scan<T>(call, group, s.numbers[r], row, s.queue);
  }
  scan_queued<T>(call, group, s.queue);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
