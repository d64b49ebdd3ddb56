// The nearest-code kernels of one instruction set: which one a shape takes, and how its codes are packed.
#include "direct.h"
#include "lanes.h"
#include "panels.h"
#include "place.h"
#include "scan.h"

namespace fastvq::cpu::FASTVQ_ISA {
namespace {

constexpr int64_t SAMPLE_CHUNKS = 4;
constexpr int64_t MANY_CODES = 1024, MANY_ROWS = 512;  // narrow ones, for which lanes = codes is faster in bytes
constexpr int64_t FEW_CODES = 256, MOST_COLUMNS = 65536;  // between which narrow rows are faster in bytes
constexpr int64_t FEW_ROWS = 2 * TILE;  // of narrow ones, for which lanes = codes is faster

Kind choose_kind(const PreparedCodes& call, int64_t rows) {
  if (call.doubles || call.codebook.dim > COARSE_DIM) return Kind::scan;
  const bool few = rows <= direct_rows(call.codebook.dim);
  if (few && call.metric == Metric::l2 && !call.copies_codes) return Kind::direct;
  const bool bytes =
      HAS_BYTES && call.codebook.dim >= LEAST_BYTES && call.codebook.codes >= MANY_CODES && rows >= MANY_ROWS;
  return call.codebook.dim <= WIDEST && !bytes ? Kind::lanes : Kind::panels;
}

void plan(PreparedCodes& call, int64_t rows) {
  const int64_t dim = call.codebook.dim;
  call.kind = choose_kind(call, rows);
  call.chunks = ceil_div(call.codebook.codes, CODE_CHUNK);
  call.panels = 0;
  call.width = round_up(dim, LANES);
  if (call.kind == Kind::direct) call.chunks = 0;
  if (call.kind != Kind::lanes && call.kind != Kind::panels) return;
  call.panels = ceil_div(call.codebook.codes, PANEL);
  // Wide codes come from memory, and once is enough: a few chunks tell where they lie.
  if (call.kind == Kind::panels && !call.copies_codes) call.skipped = (call.chunks - 1) / SAMPLE_CHUNKS;
  call.levels = 0;
  if (call.kind == Kind::panels) {
    if (HAS_BYTES && dim >= LEAST_BYTES && dim <= MOST_BYTES) plan_level(call, dim, BYTES);
    if (HAS_PAIRS) plan_level(call, dim, PAIRS);
  }
  const int64_t depth = call.kind == Kind::lanes ? padded_dim(dim) : dim;
#if defined(__AVX512VNNI__)
  const bool columns = call.kind == Kind::lanes && depth >= 8 && call.codebook.codes >= FEW_CODES &&
                       call.codebook.codes <= MOST_COLUMNS && rows >= FEW_ROWS;
  call.column_size = columns ? column_size(depth) : 0;
#endif
  do plan_level(call, depth, SINGLES);
  while (call.levels < 2);
}

int64_t block_rows(const Nearest& call, int workers) {
  int64_t step = LARGEST_SET, most = LANE_BLOCK_ROWS;
  if (call.kind == Kind::panels) {
    const int64_t cached = BLOCK_BYTES / (4 * call.codebook.dim);
    step = TILE;
    most = cached < BLOCK_ROWS ? cached : BLOCK_ROWS;
  } else if (call.kind == Kind::direct) {
    step = AT_ONCE;
  }
  return rows_together(call, step, most, workers);
}

int64_t scratch_bytes(const Nearest& call, int64_t block) {
  switch (call.kind) {
    case Kind::direct: return DirectScratch().lay_out(nullptr, call, block);
    case Kind::panels: return PanelScratch().lay_out(nullptr, call, block);
    case Kind::scan: return ScanScratch().lay_out(nullptr, call, block);
    case Kind::lanes: break;
  }
  const int64_t many = LaneScratch().lay_out(nullptr, call, block);
  const int64_t few = PanelScratch().lay_out(nullptr, call, FEW_ROWS);
  return many > few ? many : few;
}

void search(const Nearest& call, int64_t group, int64_t first, int64_t last, int64_t block, char* scratch) {
  switch (call.kind) {
    case Kind::direct: return search_direct(call, group, first, last, block, scratch);
    case Kind::panels: return search_panels(call, group, first, last, block, scratch);
    case Kind::lanes:
      if (last - first > FEW_ROWS) return search_lanes(call, group, first, last, block, scratch);
      return search_panels(call, group, first, last, FEW_ROWS, scratch);
    case Kind::scan: {
      const auto all = call.doubles ? search_all<double> : search_all<float>;
      return all(call, group, first, last, block, scratch);
    }
  }
}

}  // namespace

extern const NearestKernels nearest_kernels;
const NearestKernels nearest_kernels{plan,        read_codes, centre_codes,  pack_codes,
                                     bound_codes, block_rows, scratch_bytes, search, take_rows, place_results};

}  // namespace fastvq::cpu::FASTVQ_ISA
