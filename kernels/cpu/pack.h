// Packs the codes of one level, in its format.
#pragma once

#include "bfloat16.h"
#include "columns.h"

namespace fastvq::cpu::FASTVQ_ISA {

#if defined(__AVX512BF16__)
constexpr bool HAS_PAIRS = true;
#else
constexpr bool HAS_PAIRS = false;
#endif
#if defined(__AVX512VNNI__)
constexpr bool HAS_BYTES = true;
#else
constexpr bool HAS_BYTES = false;
#endif

// How a level packs codes of that many entries.
FASTVQ_INLINE void plan_level(PreparedCodes& call, int64_t depth, Format format) {
  const int64_t values = format == BYTES ? 4 : format == PAIRS ? 2 : 1, headers = format == BYTES ? 2 : 1;
  const Level level = call.levels++;
  call.format[level] = format;
  call.depth[level] = ceil_div(depth, values);
  call.panel_size[level] = (call.depth[level] + headers) * PANEL;
  const int64_t width = round_up(depth, values * LANES);
  call.width = width > call.width ? width : call.width;
}

// Packs one panel without the codes left out; returns its largest |e^|^2.
static double pack_panel(const PreparedCodes& call, int64_t group, Level level, int64_t panel,
                         const uint8_t* left_out) {
  float* to = call.panel_of(level, group, panel);
  [[maybe_unused]] const int64_t at = group * call.panels + panel;
#if defined(__AVX512VNNI__)
  if (call.format[level] == BYTES)
    return pack_bytes(call, group, panel, left_out, call.panel_steps + at, call.panel_rounding + at, to);
#endif
#if defined(__AVX512BF16__)
  if (call.format[level] == PAIRS) return pack_pairs(call, group, panel, left_out, call.panel_rounding + at, to);
#endif
  return pack_singles(call, group, panel, left_out, call.depth[level], to);
}

// Packs one panel for the first level.
static void pack_codes(const PreparedCodes& call, int64_t group, int64_t panel) {
  if (call.groups[group].example < 0) return;
  const double square = pack_panel(call, group, 0, panel, call.excluded + group * call.codebook.codes);
  const int64_t at = group * call.panels + panel;
  call.panel_square[at] = static_cast<float>(square * (1 + 0x1p-20));
#if defined(__AVX512VNNI__)
  if (call.column_size == 0) return;
  const int64_t padded = call.depth[0];
  const auto pack = padded == 8 ? pack_columns<8> : pack_columns<16>;
  pack(call.panel_of(0, group, panel), call.codebook.dim, call.columns_of(group, panel));
#endif
}

}  // namespace fastvq::cpu::FASTVQ_ISA
