// Prepares a codebook for the coarse pass: reads, centres, finds repeats, packs and bounds it (see nearest.h).
#pragma once

#include <cmath>

#include "load.h"
#include "nearest.h"
#include "oracle.h"
#include "simd.h"

namespace fastvq::cpu::FASTVQ_ISA {

typedef double Quad64 __attribute__((vector_size(32)));
typedef uint32_t Bits __attribute__((vector_size(16)));

FASTVQ_INLINE double sum(const Quad64& q) { return (q[0] + q[2]) + (q[1] + q[3]); }

FASTVQ_INLINE Quad load_quad(const float* row, int64_t d, int64_t dim) {
  if (d + 4 <= dim) return load<Quad>(row + d);
  Quad result{};
  for (int i = 0; d + i < dim; ++i) result[i] = row[d + i];
  return result;
}

template <class T>
static void read_codes_as(const Nearest& call, int64_t group, int64_t first, int64_t last) {
  const int64_t dim = call.codebook.dim;
  T* rows = static_cast<T*>(call.code_rows) + group * call.code_group_stride;
  if (call.copies_codes) {
    const auto* from = static_cast<const T*>(call.codebook.data) + group * call.codebook.group_stride;
    for (int64_t k = first; k < last; ++k)
      for (int64_t d = 0; d < dim; ++d)
        rows[k * dim + d] = from[k * call.codebook.code_stride + d * call.codebook.dim_stride];
  }
  if (call.is_double() || call.metric == Metric::cosine)
    for (int64_t k = first; k < last; ++k)
      call.excluded[group * call.codebook.codes + k] = !all_finite(rows + k * dim, dim);
  if (call.metric == Metric::cosine) unit_rows(rows + first * dim, dim, last - first, dim, rows + first * dim, dim);
}

struct CodeBits {
  uint32_t largest;  // of |c_d|; as bits it orders like the value
  uint32_t hash;
};

FASTVQ_INLINE CodeBits bits_of(const float* row, int64_t dim) {
  Bits largest{}, hash{}, factor = {0x85ebca6bu, 0xc2b2ae35u, 0x27d4eb2fu, 0x165667b1u};
  for (int64_t d = 0; d < dim; d += 4) {
    const Bits bits = reinterpret<Bits>(load_quad(row, d, dim)), magnitude = bits & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
    hash += (bits ^ bits >> 15) * factor;
    factor += 0x9e3779b2u;
  }
  CodeBits result{0, hash[0] ^ hash[1] << 7 ^ hash[2] << 13 ^ hash[3] << 19};
  for (int i = 0; i < 4; ++i) result.largest = largest[i] > result.largest ? largest[i] : result.largest;
  return result;
}

// Reads one chunk of codes: copies them where the oracle needs its own, marks the excluded, and adds up what
// centring, scaling and the search for repeats need.
static void read_codes(const Nearest& call, int64_t group, int64_t chunk) {
  const int64_t codes = call.codebook.codes, dim = call.codebook.dim;
  const int64_t first = chunk * CODE_CHUNK, last = first + CODE_CHUNK < codes ? first + CODE_CHUNK : codes;
  if (call.is_double()) return read_codes_as<double>(call, group, first, last);
  read_codes_as<float>(call, group, first, last);

  constexpr uint32_t INFINITE = 0x7f800000u;
  const int64_t slot = group * call.chunks + chunk;
  double* sums = call.chunk_sums + slot * dim;
  for (int64_t d = 0; d < dim; ++d) sums[d] = 0;
  uint32_t largest = 0;
  double largest_square = 0;
  int64_t finite = 0;
  for (int64_t k = first; k < last; ++k) {
    const int64_t code = group * codes + k;
    const float* row = call.float_codes(group) + k * dim;
    const CodeBits bits = bits_of(row, dim);
    call.hashes[code] = bits.hash;
    if (call.metric != Metric::cosine) call.excluded[code] = bits.largest >= INFINITE;
    if (call.excluded[code]) continue;
    largest = bits.largest > largest ? bits.largest : largest;
    ++finite;
    int64_t d = 0;
    for (; d + 4 <= dim; d += 4)
      store(sums + d, load<Quad64>(sums + d) + __builtin_convertvector(load<Quad>(row + d), Quad64));
    for (; d < dim; ++d) sums[d] += row[d];
    if (call.metric != Metric::l2) {
      double square = 0;
      for (d = 0; d < dim; ++d) square += double(row[d]) * row[d];
      largest_square = square > largest_square ? square : largest_square;
    }
  }
  call.chunk_largest[slot] = reinterpret<float>(largest);
  call.chunk_square[slot] = largest_square;
  call.chunk_finite[slot] = finite;
}

// Marks codes that equal an earlier one bit for bit. Open addressing; after a few collisions a code passes for
// unique, which costs time in the search and nothing else.
static void find_repeats(const Nearest& call, int64_t group, int32_t* slots) {
  const int64_t codes = call.codebook.codes, dim = call.codebook.dim;
  const uint8_t* excluded = call.excluded + group * codes;
  uint8_t* repeated = call.repeated + group * codes;
  const uint32_t* hashes = call.hashes + group * codes;
  const float* rows = call.float_codes(group);
  const auto mask = static_cast<uint32_t>(call.slot_count - 1);
  for (int64_t i = 0; i < call.slot_count; ++i) slots[i] = -1;
  for (int64_t k = 0; k < codes; ++k) {
    repeated[k] = excluded[k];
    if (excluded[k]) continue;
    uint32_t slot = (hashes[k] * 0x9e3779b1u >> 7) & mask;
    for (int probe = 0; probe < 8; ++probe, slot = (slot + 1) & mask) {
      const int32_t other = slots[slot];
      if (other < 0) {
        slots[slot] = static_cast<int32_t>(k);
        break;
      }
      if (hashes[other] == hashes[k] && std::memcmp(rows + other * dim, rows + k * dim, dim * sizeof(float)) == 0) {
        repeated[k] = 1;
        break;
      }
    }
  }
}

// The group's mean and scale, from the chunks.
static void centre_codes(const Nearest& call, int64_t group, int worker) {
  const int64_t dim = call.codebook.dim, slot = group * call.chunks;
  GroupCodes& codes = call.groups[group];
  int64_t finite = 0;
  float largest_entry = 0;
  for (int64_t chunk = 0; chunk < call.chunks; ++chunk) {
    finite += call.chunk_finite[slot + chunk];
    if (call.chunk_largest[slot + chunk] > largest_entry) largest_entry = call.chunk_largest[slot + chunk];
  }
  codes.searchable = finite > 0;
  // A power of two that brings the largest entry into [2^-40, 2^20], where no square under- or overflows.
  int exponent = 0;
  if (largest_entry > 0) __builtin_frexpf(largest_entry, &exponent);
  codes.scale = __builtin_ldexpf(1.0f, exponent > 20 ? 20 - exponent : exponent < -39 ? -39 - exponent : 0);
  const bool l2 = call.metric == Metric::l2;
  codes.row_scale = l2 ? codes.scale : 1.0f;

  double* sums = call.chunk_sums + slot * dim;
  for (int64_t chunk = 1; chunk < call.chunks; ++chunk)
    for (int64_t d = 0; d < dim; ++d) sums[d] += sums[chunk * dim + d];
  float* mean = call.mean + group * call.padded_dim;
  float* row_shift = call.row_shift + group * call.padded_dim;
  for (int64_t d = 0; d < call.padded_dim; ++d) {
    mean[d] = d < dim && finite ? static_cast<float>(sums[d] / finite * codes.scale) : 0.0f;
    row_shift[d] = l2 ? mean[d] : 0.0f;
  }
  find_repeats(call, group, call.hash_slots + worker * call.slot_count);
}

// Four codes from `first` on, centred and scaled: calls write(d, q) for every four d, q[i] belonging to code i, and
// gives their biases (minus infinity where a code is left out). Returns the largest |e^|^2.
template <class Write>
FASTVQ_INLINE double centre_four(const Nearest& call, int64_t group, int64_t first, float* bias, Write&& write) {
  const int64_t codes = call.codebook.codes, dim = call.codebook.dim;
  const float* mean = call.mean + group * call.padded_dim;
  const float scale = call.groups[group].scale;
  const float* row[4];
  bool absent[4];
  Quad64 square[4] = {};
  for (int i = 0; i < 4; ++i) {
    absent[i] = first + i >= codes || call.repeated[group * codes + first + i];
    row[i] = call.float_codes(group) + (absent[i] ? 0 : first + i) * dim;
  }
  for (int64_t d = 0; d < dim; d += 4) {
    const Quad m = load_quad(mean, d, dim);
    Quad q[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      q[i] = absent[i] ? Quad{} : load_quad(row[i], d, dim) * scale - m;
      const Quad64 wide = __builtin_convertvector(q[i], Quad64);
      square[i] += wide * wide;
    }
    write(d, q);
  }
  double largest_square = 0;
  for (int i = 0; i < 4; ++i) {
    const double s = sum(square[i]);
    largest_square = s > largest_square ? s : largest_square;
    bias[i] = absent[i] ? -HUGE_VALF : call.metric == Metric::l2 ? static_cast<float>(-0.5 * s) : 0.0f;
  }
  return largest_square;
}

// The slack's coefficients, once every panel is packed.
static void bound_codes(const Nearest& call, int64_t group) {
  GroupCodes& codes = call.groups[group];
  const auto dim = static_cast<double>(call.codebook.dim);
  double code_square = 0, given_square = 0;
  for (int64_t panel = 0; panel < call.panels; ++panel) {
    const double square = call.panel_square[group * call.panels + panel];
    code_square = square > code_square ? square : code_square;
  }
  for (int64_t chunk = 0; chunk < call.chunks; ++chunk) {
    const double square = call.chunk_square[group * call.chunks + chunk];
    given_square = square > given_square ? square : given_square;
  }
  const double E = __builtin_sqrt(code_square), C = __builtin_sqrt(given_square) * codes.scale;
  const auto gamma = [](double n, double unit) { return n * unit / (1 - n * unit); };
  const double g = gamma(dim + 5, 0x1p-24), h = gamma(dim + 3, 0x1p-53), t = (dim + 1) * 0x1p-124;
  const bool l2 = call.metric == Metric::l2;
  constexpr double INFLATION = 1 + 0x1p-10;
  codes.quadratic = static_cast<float>(INFLATION * (l2 ? h : 0));
  codes.linear = static_cast<float>(INFLATION * (2 * g * E + 2 * h * (l2 ? E : C) + 2 * t));
  codes.constant = static_cast<float>(INFLATION * ((l2 ? (g + h) * E * E : 0) + 2 * t * (1 + E)));
  codes.norm_factor = static_cast<float>(INFLATION * (1 + 2 * gamma(dim + 1, 0x1p-24)));
  codes.norm_offset = static_cast<float>(INFLATION * dim * 0x1p-126);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
