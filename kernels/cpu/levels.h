// Which level the rows of a group are searched on: the first, until its close calls cost more than the next one does.
//
// Every task reports how its rows went; what is decided from that changes how long the search takes and nothing else.
#pragma once

#include "pack.h"

namespace fastvq::cpu::FASTVQ_ISA {

constexpr int64_t TRIAL_ROWS = 2 * TILE;        // that a level is tried on
constexpr int64_t LONG_SEARCH = 16 * TRIAL_ROWS;  // rows of a group from which a trial is worth a walk of its own

// Marks codes that equal an earlier one bit for bit; true where there are any. Open addressing; after a few
// collisions a code passes for unique, which costs time in the search and nothing else.
static bool find_repeats(const PreparedCodes& call, int64_t group) {
  const int64_t codes = call.codebook.codes, dim = call.codebook.dim;
  const uint8_t* excluded = call.excluded + group * codes;
  uint8_t* repeated = call.repeated + group * codes;
  if (call.topk > 0) {
    std::memcpy(repeated, excluded, codes);
    return false;
  }
  uint32_t* hashes = call.hashes + group * codes;
  int32_t* slots = call.hash_slots + group * call.slot_count;
  const float* rows = call.float_codes(group);
  const auto mask = static_cast<uint32_t>(call.slot_count - 1);
  bool any = false;
  for (int64_t i = 0; i < call.slot_count; ++i) slots[i] = -1;
  for (int64_t k = 0; k < codes; ++k) {
    repeated[k] = excluded[k];
    if (excluded[k]) continue;
    uint32_t hash[4] = {};
    for (int64_t d = 0; d < dim; ++d)
      hash[d & 3] = (hash[d & 3] ^ reinterpret<uint32_t>(rows[k * dim + d])) * 0x85ebca6bu + 0x9e3779b9u;
    hashes[k] = hash[0] ^ hash[1] << 7 ^ hash[2] << 13 ^ hash[3] << 19;
    uint32_t slot = (hashes[k] * 0x9e3779b1u >> 7) & mask;
    for (int probe = 0; probe < 8; ++probe, slot = (slot + 1) & mask) {
      const int32_t other = slots[slot];
      if (other < 0) {
        slots[slot] = static_cast<int32_t>(k);
        break;
      }
      if (hashes[other] == hashes[k] && std::memcmp(rows + other * dim, rows + k * dim, dim * sizeof(float)) == 0) {
        repeated[k] = 1;
        any = true;
        break;
      }
    }
  }
  return any;
}

FASTVQ_INLINE int32_t made(const PreparedCodes& call, int64_t group, Level level) {
  return __atomic_load_n(call.made + group * PACKED_LEVELS + level, __ATOMIC_ACQUIRE);
}

// Makes the codes of a level after the first, unless another task has begun to. The levels before it have theirs.
static void make_level(const PreparedCodes& call, int64_t group, Level level) {
  int32_t* state = call.made + group * PACKED_LEVELS + level;
  int32_t none = NONE;
  if (!__atomic_compare_exchange_n(state, &none, BUSY, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) return;
  const bool repeats = level == 1 && find_repeats(call, group);
  const bool own = repeats || level > 1 || call.format[level] != call.format[0];
  for (int64_t panel = 0; own && panel < call.panels; ++panel) {
    pack_panel(call, group, level, panel, call.repeated + group * call.codebook.codes);
    drop_outliers(call.groups[group], call.panel_of(level, group, panel));
  }
  if (call.format[level] == PAIRS) bound_pairs(call, group);
  __atomic_store_n(state, own ? OWN : SAME, __ATOMIC_RELEASE);
}

// The level to search a block of rows on. While another task makes a level's codes, the one before it serves.
static Level level_of(const Nearest& call, int64_t group) {
  const Level wanted = __atomic_load_n(&call.progress[group].level, __ATOMIC_RELAXED);
  for (Level level = 1; level <= wanted && level < call.levels; ++level) {
    if (made(call, group, level) == NONE) make_level(call, group, level);
    if (made(call, group, level) == BUSY) return level - 1;
  }
  return wanted;
}

FASTVQ_INLINE Format format_of(const PreparedCodes& call, Level level) {
  return level < call.levels ? call.format[level] : DOUBLES;
}

// The codes that a level leaves out.
FASTVQ_INLINE const uint8_t* left_out(const PreparedCodes& call, int64_t group, Level level) {
  const bool known = level > 0 && made(call, group, 1) > BUSY;
  return (known ? call.repeated : call.excluded) + group * call.codebook.codes;
}

// The first panel of the packed codes that a level reads.
FASTVQ_INLINE const float* panels_of(const PreparedCodes& call, int64_t group, Level level) {
  return call.panel_of(level > 0 && made(call, group, level) == SAME ? 0 : level, group, 0);
}

FASTVQ_INLINE bool is_trial(const Nearest& call, int64_t group) {
  return call.exact && call.total_rows >= LONG_SEARCH &&
         __atomic_load_n(&call.progress[group].rows, __ATOMIC_RELAXED) < TRIAL_ROWS;
}

// In vector operations: a float32 pass over one row, and what close calls add.
FASTVQ_INLINE int64_t pass_effort(const Nearest& call) {
  return call.codebook.codes * call.codebook.dim / LANES;
}
FASTVQ_INLINE int64_t rescore_effort(const Nearest& call, int64_t codes, int64_t dense_rows) {
  return codes * (3 * call.codebook.dim / LANES + 10) + dense_rows * pass_effort(call) * 5 / 2;
}

// Tells what the close calls of some rows cost, and moves the group to the next level where that is cheaper.
static void report(const Nearest& call, int64_t group, Level level, int64_t rows, int64_t effort) {
  Progress& progress = call.progress[group];
  if (!call.exact || level == call.levels || __atomic_load_n(&progress.level, __ATOMIC_RELAXED) != level) return;
  rows = __atomic_add_fetch(&progress.rows, rows, __ATOMIC_RELAXED);
  effort = __atomic_add_fetch(&progress.effort, effort, __ATOMIC_RELAXED);
  // To twice the pass, from any pass to one without repeats, or to float64, which takes two and a half of float32's.
  const double worth = call.format[level] == BYTES ? 0.3 : level + 1 < call.levels ? 0.45 : 1.6;
  if (rows < TRIAL_ROWS || double(effort) <= worth * double(pass_effort(call)) * double(rows)) return;
  int32_t current = level;
  if (!__atomic_compare_exchange_n(&progress.level, &current, level + 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
    return;
  __atomic_store_n(&progress.rows, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&progress.effort, 0, __ATOMIC_RELAXED);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
