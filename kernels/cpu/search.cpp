// The nearest-code kernels of one instruction set: which one a shape takes, and how its codes are packed.
#include "direct.h"
#include "lanes.h"
#include "panels.h"

namespace fastvq::cpu::FASTVQ_ISA {
namespace {

constexpr int64_t COARSE_DIM = int64_t{1} << 20;  // beyond, the slack's constants are no longer proven

enum class Kind : int { scan, direct, lanes, panels };

Kind choose_kind(const Nearest& call) {
  if (call.is_double() || call.x.dim > COARSE_DIM) return Kind::scan;
  if (call.x.dim <= WIDEST) return Kind::lanes;
  const bool direct = call.x.rows() <= DIRECT_ROWS && call.metric == Metric::l2 && !call.copies_codes;
  return direct ? Kind::direct : Kind::panels;
}

Kind kind_of(const Nearest& call) { return static_cast<Kind>(call.kind); }

void plan(Nearest& call) {
  const int64_t codes = call.codebook.codes, dim = call.codebook.dim;
  call.kind = static_cast<int>(choose_kind(call));
  call.chunks = ceil_div(codes, CODE_CHUNK);
  switch (kind_of(call)) {
    case Kind::scan:
      call.panels = call.packed_size = 0;
      call.padded_dim = dim;
      break;
    case Kind::direct: call.chunks = call.panels = call.packed_size = call.padded_dim = 0; break;
    case Kind::lanes:
      call.panels = call.chunks;
      call.padded_dim = padded_dim(dim);
      call.packed_size = round_up(codes, 4) * (call.padded_dim + 1);
      break;
    case Kind::panels:
      call.panels = ceil_div(codes, PANEL);
      call.padded_dim = dim;
      call.packed_size = call.panels * (dim + 1) * PANEL;
      break;
  }
}

void pack_codes(const Nearest& call, int64_t group, int64_t panel) {
  if (kind_of(call) == Kind::lanes) pack_lane_codes(call, group, panel);
  else pack_panel(call, group, panel);
}

// Enough rows to reuse the codes in cache, few enough to leave every thread some blocks.
int64_t block_rows(const Nearest& call, int workers) {
  int64_t step = LARGEST_SET, most = LANE_BLOCK_ROWS;
  if (kind_of(call) == Kind::panels) {
    const int64_t cached = BLOCK_BYTES / (4 * call.x.dim);
    step = TILE;
    most = cached < BLOCK_ROWS ? cached : BLOCK_ROWS;
  } else if (kind_of(call) == Kind::direct) {
    step = AT_ONCE;
  }
  const int64_t share = ceil_div(call.x.rows() * call.x.groups, int64_t{2} * workers);
  if (share < most) most = share;
  return most < step ? step : most / step * step;
}

struct ScanScratch {
  int64_t* numbers;
  int64_t* offsets;
  char* row_values;  // (D) float or double
  ScanQueue queue;

  int64_t lay_out(char* base, const Nearest& call, int64_t block) {
    Arena arena(base);
    numbers = arena.take<int64_t>(block);
    offsets = arena.take<int64_t>(block);
    row_values = reinterpret_cast<char*>(arena.take<double>(call.x.dim));
    queue.rows = arena.take<double>(SCAN_ROWS * call.x.dim);
    queue.scratch = arena.take<double>(scan_scratch(call.x.dim));
    queue.count = 0;
    return arena.used();
  }
};

template <class T>
void search_all(const Nearest& call, int64_t group, int64_t first, int64_t last, int64_t block, char* scratch) {
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

int64_t scratch_bytes(const Nearest& call, int64_t block) {
  switch (kind_of(call)) {
    case Kind::direct: return DirectScratch().lay_out(nullptr, call, block);
    case Kind::lanes: return LaneScratch().lay_out(nullptr, call, block);
    case Kind::panels: return PanelScratch().lay_out(nullptr, call, block);
    default: return ScanScratch().lay_out(nullptr, call, block);
  }
}

void search(const Nearest& call, int64_t group, int64_t first, int64_t last, int64_t block, char* scratch) {
  switch (kind_of(call)) {
    case Kind::direct: return search_direct(call, group, first, last, block, scratch);
    case Kind::lanes: return search_lanes(call, group, first, last, block, scratch);
    case Kind::panels: return search_panels(call, group, first, last, block, scratch);
    default: {
      const auto all = call.is_double() ? search_all<double> : search_all<float>;
      return all(call, group, first, last, block, scratch);
    }
  }
}

}  // namespace

extern const NearestKernels nearest_kernels;
const NearestKernels nearest_kernels{plan,        read_codes, centre_codes,  pack_codes,
                                     bound_codes, block_rows, scratch_bytes, search};

}  // namespace fastvq::cpu::FASTVQ_ISA
