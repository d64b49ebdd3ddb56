// The kernels for the k nearest codes (topk.h) of one instruction set.
#include "topk.h"

#include "scan.h"

namespace fastvq::cpu::FASTVQ_ISA {
namespace {

constexpr int64_t NARROW = 16;  // rows for which the coarse pass takes little of the time

void plan(PreparedCodes& call, int64_t) {
  const int64_t dim = call.codebook.dim;
  call.chunks = ceil_div(call.codebook.codes, CODE_CHUNK);
  call.panels = 0;
  call.kind = call.doubles || dim > COARSE_DIM || call.topk > MOST_CODES ? Kind::scan : Kind::panels;
  if (call.kind == Kind::scan) return;
  call.width = 0;
  call.panels = ceil_div(call.codebook.codes, PANEL);
  call.levels = 0;
  plan_level(call, dim, HAS_PAIRS && dim > NARROW ? PAIRS : SINGLES);
  plan_level(call, dim, SINGLES);
}

int64_t block_rows(const Nearest& call, int workers) {
  if (call.kind == Kind::scan) return rows_together(call, SCAN_ROWS, BLOCK_ROWS, workers);
  const int64_t rows = BLOCK_BYTES / (4 * call.codebook.dim);
  const int64_t scores = SCORE_BYTES / (4 * TopkScratch::score_stride(call));
  const int64_t cached = rows < scores ? rows : scores;
  return rows_together(call, TILE, cached < BLOCK_ROWS ? cached : BLOCK_ROWS, workers);
}

int64_t scratch_bytes(const Nearest& call, int64_t block) {
  return call.kind == Kind::scan ? ScanScratch().lay_out(nullptr, call, block)
                                 : TopkScratch().lay_out(nullptr, call, block);
}

void search(const Nearest& call, int64_t group, int64_t first, int64_t last, int64_t block, char* scratch) {
  const auto all = call.doubles ? search_all<double> : search_all<float>;
  const auto run = call.kind == Kind::scan ? all : search_topk;
  run(call, group, first, last, block, scratch);
}

}  // namespace

extern const NearestKernels topk_kernels;
const NearestKernels topk_kernels{plan,        read_codes, centre_codes,  pack_codes,
                                  bound_codes, block_rows, scratch_bytes, search, nullptr, nullptr};

}  // namespace fastvq::cpu::FASTVQ_ISA
