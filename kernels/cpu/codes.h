// Prepares a codebook for the coarse pass: reads, centres, packs and bounds it (see nearest.h).
//
// Packed codes lie in panels of PANEL codes side by side: their biases -|e^|^2/2 (minus infinity where a code is left
// out), what else the format has in its header, then rows of entries, one per d in float32. A panel's last codes and
// last entries may be padding.
#pragma once

#include <cmath>

#include "load.h"
#include "nearest.h"
#include "oracle.h"
#include "score.h"

namespace fastvq::cpu::FASTVQ_ISA {

// A TILE x VECTORS block of accumulators, the codes and one broadcast row value fill the registers: 32 with AVX-512
// and NEON, 16 otherwise.
#if defined(__AVX512F__)
constexpr int TILE = 12, VECTORS = 2;
#elif defined(__aarch64__)
constexpr int TILE = 8, VECTORS = 3;
#else
constexpr int TILE = 4, VECTORS = 3;
#endif
constexpr int PANEL = VECTORS * LANES;

enum Made : int32_t { NONE, BUSY, SAME, OWN };  // the codes of a later level: the SAME as the first one's, or its OWN

template <class T>
static void read_codes_as(const PreparedCodes& call, int64_t group, int64_t first, int64_t last) {
  const int64_t dim = call.codebook.dim;
  T* rows = static_cast<T*>(call.code_rows) + group * call.code_group_stride;
  if (call.copies_codes) {
    const auto* from = static_cast<const T*>(call.codebook.data) + group * call.codebook.group_stride;
    for (int64_t k = first; k < last; ++k)
      for (int64_t d = 0; d < dim; ++d)
        rows[k * dim + d] = from[k * call.codebook.code_stride + d * call.codebook.dim_stride];
  }
  uint8_t* excluded = call.excluded + group * call.codebook.codes;
  if (sizeof(T) == 4) std::memset(excluded + first, 0, last - first);
  else
    for (int64_t k = first; k < last; ++k) excluded[k] = !all_finite(rows + k * dim, dim);
  if (call.metric == Metric::cosine) unit_rows(rows + first * dim, dim, last - first, dim, rows + first * dim, dim);
}

// Adds N codes to the sums of their entries and to the largest magnitudes. As bits, these order like the values.
template <int N>
FASTVQ_INLINE void add_codes(const float* rows, int64_t dim, double* sums, Ints& largest) {
  for (int64_t d = 0; d < dim; d += LANES) {
    Floats total{};
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      const Floats value = load_part(rows + i * dim + d, dim - d);
      largest = maximum(largest, reinterpret<Ints>(value) & splat(int32_t{0x7fffffff}));
      total += value;
    }
    store(sums + d, load<Doubles>(sums + d) + low(total));
    store(sums + d + LANES / 2, load<Doubles>(sums + d + LANES / 2) + high(total));
  }
}

// The same for short codes, several of which fill a vector.
FASTVQ_INLINE void add_short_codes(const float* rows, int64_t count, int64_t dim, double* sums, Ints& largest) {
  double lanes[LANES] = {};
  for (int64_t i = 0; i < count * dim; i += LANES) {
    const Floats value = load_part(rows + i, count * dim - i);
    largest = maximum(largest, reinterpret<Ints>(value) & splat(int32_t{0x7fffffff}));
    store(lanes, load<Doubles>(lanes) + low(value));
    store(lanes + LANES / 2, load<Doubles>(lanes + LANES / 2) + high(value));
  }
  for (int lane = 0; lane < LANES; ++lane) sums[lane % dim] += lanes[lane];
}

FASTVQ_INLINE float largest_of(Ints magnitudes) {
  uint32_t result = 0;
  for (int lane = 0; lane < LANES; ++lane) {
    const auto bits = static_cast<uint32_t>(magnitudes[lane]);
    result = bits > result ? bits : result;
  }
  return reinterpret<float>(result);
}

// Reads one chunk of codes: copies them where the oracle needs its own, marks the excluded, and adds up what
// centring and scaling need.
static void read_chunk(const PreparedCodes& call, int64_t group, int64_t chunk) {
  const int64_t codes = call.codebook.codes, dim = call.codebook.dim;
  const int64_t first = chunk * CODE_CHUNK, last = first + CODE_CHUNK < codes ? first + CODE_CHUNK : codes;
  if (call.doubles) return read_codes_as<double>(call, group, first, last);
  read_codes_as<float>(call, group, first, last);
  if (call.panels == 0) return;

  const int64_t slot = group * call.chunks + chunk;
  const float* rows = call.float_codes(group);
  double* sums = call.chunk_sums + slot * call.width;
  std::memset(sums, 0, call.width * sizeof(double));
  Ints largest{};
  int64_t finite = last - first, k = first;
  if (dim < LANES && LANES % dim == 0) {
    add_short_codes(rows + first * dim, finite, dim, sums, largest);
  } else {
    for (; k + 4 <= last; k += 4) add_codes<4>(rows + k * dim, dim, sums, largest);
    for (; k < last; ++k) add_codes<1>(rows + k * dim, dim, sums, largest);
  }
  if (!(largest_of(largest) < HUGE_VALF)) {
    std::memset(sums, 0, call.width * sizeof(double));
    largest = Ints{};
    for (k = first; k < last; ++k) {
      const bool excluded = !all_finite(rows + k * dim, dim);
      call.excluded[group * codes + k] = excluded;
      finite -= excluded;
      if (!excluded) add_codes<1>(rows + k * dim, dim, sums, largest);
    }
  }
  call.chunk_largest[slot] = largest_of(largest);
  call.chunk_finite[slot] = finite;
}

// The group's mean and scale, from the chunks that were read, which hold `read` codes. A chunk with far larger entries
// than another stays out of the mean, which one outlier would draw away from all other codes; any m will do.
static void centre_on_chunks(const PreparedCodes& call, int64_t group, int64_t read) {
  constexpr float FAR = 64;
  const int64_t slot = group * call.chunks;
  GroupCodes& codes = call.groups[group];
  int64_t finite = 0;
  float largest_entry = 0, least_entry = HUGE_VALF;
  for (int64_t chunk = 0; chunk < call.chunks; ++chunk) {
    finite += call.chunk_finite[slot + chunk];
    if (call.chunk_finite[slot + chunk] == 0) continue;
    const float entry = call.chunk_largest[slot + chunk];
    largest_entry = entry > largest_entry ? entry : largest_entry;
    least_entry = entry < least_entry ? entry : least_entry;
  }
  codes.whole = finite == read;
  codes.example = finite > 0 ? 0 : -1;
  if (finite > 0)
    while (call.excluded[group * call.codebook.codes + codes.example]) ++codes.example;
  // A power of two that brings the largest entry into [2^-40, 2^20], where no square under- or overflows.
  int exponent = 0;
  if (largest_entry > 0) __builtin_frexpf(largest_entry, &exponent);
  codes.scale = __builtin_ldexpf(1.0f, exponent > 20 ? 20 - exponent : exponent < -39 ? -39 - exponent : 0);
  const bool l2 = call.metric == Metric::l2;
  codes.row_scale = l2 ? codes.scale : 1.0f;

  double* sums = call.chunk_sums + slot * call.width;
  int64_t counted = 0;
  for (int64_t chunk = 0; chunk < call.chunks; ++chunk) {
    if (call.chunk_finite[slot + chunk] == 0 || call.chunk_largest[slot + chunk] > FAR * least_entry) continue;
    const double* add = sums + chunk * call.width;
    for (int64_t d = 0; d < call.width; ++d) sums[d] = counted > 0 ? sums[d] + add[d] : add[d];
    counted += call.chunk_finite[slot + chunk];
  }
  float* mean = call.mean + group * call.width;
  float* row_shift = call.row_shift + group * call.width;
  const double factor = counted > 0 ? double(codes.scale) / double(counted) : 0;
  for (int64_t d = 0; d < call.width; ++d) {
    const auto value = static_cast<float>(sums[d] * factor);
    mean[d] = value - value == 0 ? value : 0.0f;  // sums of huge codes may overflow; any m will do
    row_shift[d] = l2 ? mean[d] : 0.0f;
  }
}

// Takes the chunks skipped after this one for ordinary codes, until packing has seen them.
static void read_codes(const PreparedCodes& call, int64_t group, int64_t chunk) {
  read_chunk(call, group, chunk);
  const int64_t codes = call.codebook.codes;
  for (int64_t other = chunk + 1; other <= chunk + call.skipped && other < call.chunks; ++other) {
    const int64_t first = other * CODE_CHUNK, last = first + CODE_CHUNK < codes ? first + CODE_CHUNK : codes;
    std::memset(call.excluded + group * codes + first, 0, last - first);
    call.chunk_finite[group * call.chunks + other] = 0;
  }
}

static void read_and_centre_all(const PreparedCodes& call, int64_t group) {
  for (int64_t chunk = 0; chunk < call.chunks; ++chunk) read_chunk(call, group, chunk);
  centre_on_chunks(call, group, call.codebook.codes);
  call.groups[group].sampled = false;
}

static void centre_codes(const PreparedCodes& call, int64_t group) {
  GroupCodes& codes = call.groups[group];
  const int64_t all = call.codebook.codes;
  int64_t read = 0;
  for (int64_t first = 0; first < all; first += (call.skipped + 1) * CODE_CHUNK)
    read += all - first < CODE_CHUNK ? all - first : CODE_CHUNK;
  centre_on_chunks(call, group, read);
  codes.sampled = read < all;
  if (codes.sampled && !codes.whole) read_and_centre_all(call, group);
}

// LANES codes of one panel: where each is, and a lane mask of those left out, which point at some finite code.
struct PanelCodes {
  const float* rows[LANES];
  uint32_t absent;

  FASTVQ_INLINE PanelCodes(const PreparedCodes& call, int64_t group, int64_t first, const uint8_t* left_out)
      : absent(0) {
    const int64_t codes = call.codebook.codes, dim = call.codebook.dim;
    const float* all = call.float_codes(group);
    const bool whole = call.groups[group].whole && left_out == call.excluded + group * codes;
    if (whole && first + LANES <= codes) {
      for (int lane = 0; lane < LANES; ++lane) rows[lane] = all + (first + lane) * dim;
      return;
    }
    for (int lane = 0; lane < LANES; ++lane) {
      const int64_t code = first + lane;
      const bool missing = code >= codes || left_out[code];
      absent |= uint32_t{missing} << lane;
      rows[lane] = all + (missing ? call.groups[group].example : code) * dim;
    }
  }
};

// Writes the biases of LANES codes, from their squares; returns the largest square, infinity where one is no number.
FASTVQ_INLINE double write_biases(const PreparedCodes& call, const double* squares, uint32_t absent, float* biases) {
  double largest_square = 0;
  for (int lane = 0; lane < LANES; ++lane) {
    const bool missing = absent >> lane & 1;
    if (!missing && !(squares[lane] <= largest_square))
      largest_square = squares[lane] == squares[lane] ? squares[lane] : HUGE_VAL;
    biases[lane] = missing ? -HUGE_VALF : call.metric == Metric::l2 ? static_cast<float>(-0.5 * squares[lane]) : 0;
  }
  return largest_square;
}

// The scores of a tile of rows begin with the codes' biases.
FASTVQ_INLINE void start_from_biases(const float* panel, Floats (&score)[TILE][VECTORS]) {
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    const Floats bias = load<Floats>(panel + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < TILE; ++r) score[r][v] = bias;
  }
}

// Packs one panel in float32, without the codes left out; returns its largest |e^|^2.
static double pack_singles(const PreparedCodes& call, int64_t group, int64_t panel, const uint8_t* left_out,
                           int64_t depth, float* to) {
  const int64_t dim = call.codebook.dim;
  const float* mean = call.mean + group * call.width;
  const Floats scale = splat(call.groups[group].scale);
  double largest_square = 0;
  for (int v = 0; v < VECTORS; ++v, to += LANES) {
    const PanelCodes codes(call, group, panel * PANEL + v * LANES, left_out);
    Doubles square[2] = {};
    for (int64_t d0 = 0; d0 < depth; d0 += LANES) {
      Floats e[LANES];
      const Floats m = load<Floats>(mean + d0);
#pragma GCC unroll 16
      for (int lane = 0; lane < LANES; ++lane) e[lane] = load_part(codes.rows[lane] + d0, dim - d0) * scale - m;
      transpose(e);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) {
        if (d0 + i >= depth) break;
        square[0] += low(e[i]) * low(e[i]);
        square[1] += high(e[i]) * high(e[i]);
        store(to + (d0 + i + 1) * PANEL, e[i]);
      }
    }
    double squares[LANES];
    store(squares, square[0]);
    store(squares + LANES / 2, square[1]);
    const double s = write_biases(call, squares, codes.absent, to);
    largest_square = s > largest_square ? s : largest_square;
  }
  return largest_square;
}

// Makes outliers absent from a packed panel.
FASTVQ_INLINE void drop_outliers(const GroupCodes& codes, float* panel) {
  for (int lane = 0; lane < PANEL; ++lane) panel[lane] = panel[lane] < codes.least_bias ? -HUGE_VALF : panel[lane];
}

// Drops outliers from the first level: a few codes (one in 16 at most), each 256 times as long as those of some panel
// and twice as long as any that is kept. Returns the largest |e^|^2 of the others. `largest` is that of all codes.
static double find_outliers(const PreparedCodes& call, int64_t group, double largest) {
  GroupCodes& codes = call.groups[group];
  codes.least_bias = -HUGE_VALF;
  codes.near_square = HUGE_VALF;
  double least = largest;
  for (int64_t panel = group * call.panels; panel < (group + 1) * call.panels; ++panel)
    least = call.panel_square[panel] < least ? double(call.panel_square[panel]) : least;
  if (call.metric != Metric::l2 || call.topk > 0 || largest <= 65536 * least) return largest;

  float* packed = call.panel_of(0, group, 0);
  const int64_t panel_size = call.panel_size[0];
  double kept = 0x1p-124, shortest = HUGE_VAL;  // biases below that are not exact to a float's last bit
  int64_t count = 0;
  for (int64_t panel = 0; panel < call.panels; ++panel)
    for (int lane = 0; lane < PANEL; ++lane) {
      const double square = -2 * double(packed[panel * panel_size + lane]);
      if (square == HUGE_VAL) continue;
      if (square <= 65536 * least) {
        kept = square > kept ? square : kept;
      } else {
        shortest = square < shortest ? square : shortest;
        ++count;
      }
    }
  if (16 * count > call.codebook.codes || shortest < 4 * kept) return largest;
  codes.least_bias = static_cast<float>(-kept);
  for (int64_t panel = 0; panel < call.panels; ++panel) drop_outliers(codes, packed + panel * panel_size);
  const double norm = 0.499 * __builtin_sqrt(shortest) - 0.501 * __builtin_sqrt(kept);
  const double square = (1 - 0x1p-20) * (norm * norm / codes.norm_factor - codes.norm_offset);
  codes.near_square = square > 0 ? static_cast<float>(square) : 0.0f;
  return (1 + 0x1p-20) * kept;
}

static void pack_codes(const PreparedCodes& call, int64_t group, int64_t panel);

FASTVQ_INLINE double gamma_of(double n, double unit) { return n * unit / (1 - n * unit); }

// Whether codes that were not read before are finite, and no larger than those that were made the scale expect.
static bool packed_well(const PreparedCodes& call, int64_t group) {
  constexpr float LARGEST = 0x1p44f;
  bool well = true;
  for (int64_t panel = group * call.panels; panel < (group + 1) * call.panels; ++panel)
    well &= call.panel_square[panel] <= LARGEST;
  return well;
}

// From a pass's own errors (linear in Y, constant, and of what rounding took from the row) on codes up to `length`.
static Slack slack_from(const PreparedCodes& call, int64_t group, double linear, double constant, double rounding,
                        double length) {
  constexpr double INFLATION = 1 + 0x1p-10;
  const auto dim = static_cast<double>(call.codebook.dim);
  const double h = gamma_of(dim + 3, 0x1p-53), t = (dim + 1) * 0x1p-124;
  const bool l2 = call.metric == Metric::l2;
  const double C = call.groups[group].given_norm;
  return Slack{static_cast<float>(INFLATION * (l2 ? h : 0)),
               static_cast<float>(INFLATION * (linear + 2 * h * (l2 ? length : C) + 2 * t)),
               static_cast<float>(INFLATION * (constant + (l2 ? h * length * length : 0) + 2 * t * (1 + length))),
               static_cast<float>(INFLATION * rounding)};
}

// The slack of the pass over pairs, once a level's panels are packed as such.
static void bound_pairs(const PreparedCodes& call, int64_t group) {
  GroupCodes& codes = call.groups[group];
  double lost_square = 0;
  for (int64_t panel = group * call.panels; panel < (group + 1) * call.panels; ++panel) {
    // Where a panel had outliers: rounding to bfloat16 takes at most 2^-8 of an entry, or a denormal one whole.
    const bool had_outliers = call.panel_square[panel] > codes.code_square;
    const double lost = had_outliers ? 0x1p-16 * double(codes.code_square) : double(call.panel_rounding[panel]);
    if (lost > lost_square) lost_square = lost;
  }
  lost_square = (lost_square + codes.norm_offset) * codes.norm_factor;
  const double E = __builtin_sqrt(double(codes.code_square)), Q = __builtin_sqrt(lost_square);
  const double g = gamma_of(static_cast<double>(call.codebook.dim) + 5, 0x1p-24);
  const double constant = call.metric == Metric::l2 ? g * E * E : 0;
  codes.slack[PAIRS] = slack_from(call, group, 2 * (Q + g * (E + Q)), constant, 2 * (1 + g) * (E + Q), E);
}

// The largest of what rounding to bytes took, and of the codes, in their steps.
static void bound_bytes(const PreparedCodes& call, int64_t group) {
  GroupCodes& codes = call.groups[group];
  double steps_long = 0, steps_lost = 0;
  for (int64_t panel = group * call.panels; panel < (group + 1) * call.panels; ++panel) {
    if (call.panel_steps[panel] > steps_long) steps_long = call.panel_steps[panel];
    if (call.panel_rounding[panel] > steps_lost) steps_lost = call.panel_rounding[panel];
  }
  codes.steps_long = static_cast<float>(__builtin_sqrt(steps_long * codes.norm_factor));
  codes.steps_lost = static_cast<float>(__builtin_sqrt(steps_lost * codes.norm_factor));
}

// The least step of rows with which no bias is more than 2^21 products of two steps.
static void bound_columns(const PreparedCodes& call, int64_t group) {
  double least_step = 0;
  for (int64_t panel = 0; panel < call.panels && call.metric == Metric::l2; ++panel) {
    const double bias = double(call.panel_square[group * call.panels + panel]) / 2;
    const double step = bias * 0x1p-21 * double(call.columns_of(group, panel)[1]);
    least_step = step > least_step ? step : least_step;
  }
  call.groups[group].least_step = static_cast<float>((1 + 0x1p-20) * least_step);
}

// The slacks, once every panel is packed.
static void bound_codes(const PreparedCodes& call, int64_t group) {
  GroupCodes& codes = call.groups[group];
  if (codes.sampled && !packed_well(call, group)) {
    read_and_centre_all(call, group);
    for (int64_t panel = 0; panel < call.panels; ++panel) pack_codes(call, group, panel);
  }
  if (codes.example < 0) return;  // nothing is packed, nor will be searched
  const auto dim = static_cast<double>(call.codebook.dim);
  codes.norm_factor = static_cast<float>((1 + 0x1p-10) * (1 + 2 * gamma_of(dim + 1, 0x1p-24)));
  codes.norm_offset = static_cast<float>((1 + 0x1p-10) * dim * 0x1p-126);
  double all_square = 0, mean_square = 0;
  for (int64_t panel = group * call.panels; panel < (group + 1) * call.panels; ++panel)
    if (call.panel_square[panel] > all_square) all_square = call.panel_square[panel];
  const double code_square = find_outliers(call, group, all_square);
  codes.code_square = static_cast<float>(code_square * (1 + 0x1p-20));
  const float* mean = call.mean + group * call.width;
  for (int64_t d = 0; d < call.codebook.dim; ++d) mean_square += double(mean[d]) * double(mean[d]);
  const double E = __builtin_sqrt(double(codes.code_square)), A = __builtin_sqrt(all_square);
  codes.given_norm = static_cast<float>((1 + 0x1p-20) * (A + __builtin_sqrt(mean_square)));
  const double g = gamma_of(dim + 5, 0x1p-24), wide = gamma_of(2 * dim + 6, 0x1p-53);
  const bool l2 = call.metric == Metric::l2;
  codes.slack[SINGLES] = slack_from(call, group, 2 * g * E, l2 ? g * E * E : 0, 0, E);
  codes.slack[DOUBLES] = slack_from(call, group, 2 * wide * A, l2 ? wide * A * A : 0, 0, A);
  codes.given = slack_from(call, group, 2 * g * codes.given_norm, 0, 0, A);
  if (call.format[0] == PAIRS) bound_pairs(call, group);
  if (call.format[0] != BYTES && call.column_size == 0) return;
  const double step = 0x1p-53, wider = gamma_of(dim + 8, 0x1p-24), reach = 8.1 * wider * (E + step);
  codes.slack[BYTES] = slack_from(call, group, reach, reach * step + (l2 ? wider * E * E : 0), 0, E);
  if (call.column_size > 0) bound_columns(call, group);
  else bound_bytes(call, group);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
