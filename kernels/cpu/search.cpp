// The nearest-code kernels of one instruction set: which one a shape takes, and how its codes are packed.
#include "direct.h"
#include "lanes.h"
#include "panels.h"

namespace fastvq::cpu::FASTVQ_ISA {
namespace {

constexpr int64_t COARSE_DIM = int64_t{1} << 20;  // beyond, the slack's constants are no longer proven

constexpr int64_t FEW_ROWS = 2 * TILE;  // of narrow ones, for which lanes = codes is faster
#if defined(__AVX512BF16__)
constexpr bool HAS_PAIRS = true;
#else
constexpr bool HAS_PAIRS = false;
#endif

Kind choose_kind(const PreparedCodes& call, int64_t rows) {
  if (call.doubles || call.codebook.dim > COARSE_DIM) return Kind::scan;
  if (call.codebook.dim <= WIDEST) return Kind::lanes;
  return rows <= DIRECT_ROWS && call.metric == Metric::l2 && !call.copies_codes ? Kind::direct : Kind::panels;
}

void plan(PreparedCodes& call, int64_t rows) {
  const int64_t dim = call.codebook.dim;
  call.kind = choose_kind(call, rows);
  call.chunks = ceil_div(call.codebook.codes, CODE_CHUNK);
  call.panels = 0;
  call.pairs = HAS_PAIRS && call.kind == Kind::panels;
  call.width = round_up(dim, call.pairs ? 2 * LANES : LANES);
  if (call.kind == Kind::direct) call.chunks = 0;
  if (call.kind != Kind::lanes && call.kind != Kind::panels) return;
  call.panels = ceil_div(call.codebook.codes, PANEL);
  call.depth[0] = call.pairs ? ceil_div(dim, 2) : call.kind == Kind::lanes ? padded_dim(dim) : dim;
  call.depth[1] = call.pairs ? dim : call.depth[0];
  for (int slot = 0; slot < 2; ++slot) call.packed_size[slot] = call.panels * (call.depth[slot] + 1) * PANEL;
}

void pack_codes(const PreparedCodes& call, int64_t group, int64_t panel) {
  if (call.groups[group].example < 0) return;
  const int64_t at = group * call.panels + panel;
  const uint8_t* absent = call.excluded + group * call.codebook.codes;
  float* to = reinterpret_cast<float*>(call.packed[0]) + group * call.packed_size[0] +
              panel * (call.depth[0] + 1) * PANEL;
#if defined(__AVX512BF16__)
  const double square = call.pairs ? pack_pairs(call, group, panel, absent, call.panel_rounding + at, to)
                                   : pack_singles(call, group, panel, absent, call.depth[0], to);
#else
  const double square = pack_singles(call, group, panel, absent, call.depth[0], to);
#endif
  call.panel_square[at] = static_cast<float>(square * (1 + 0x1p-20));
}

// Enough rows to reuse the codes in cache, few enough to leave every thread some blocks.
int64_t block_rows(const Nearest& call, int workers) {
  int64_t step = LARGEST_SET, most = LANE_BLOCK_ROWS;
  if (call.kind == Kind::panels) {
    const int64_t cached = BLOCK_BYTES / (4 * call.codebook.dim);
    step = TILE;
    most = cached < BLOCK_ROWS ? cached : BLOCK_ROWS;
  } else if (call.kind == Kind::direct) {
    step = AT_ONCE;
  }
  const int64_t share = ceil_div(call.total_rows * call.codebook.groups, int64_t{2} * workers);
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
    row_values = reinterpret_cast<char*>(arena.take<double>(call.codebook.dim));
    queue.lay_out(arena, call.codebook.dim);
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
                                     bound_codes, block_rows, scratch_bytes, search};

}  // namespace fastvq::cpu::FASTVQ_ISA
