// Which level the rows of a group are searched on: the first, until its close calls cost more than the next one does.
//
// Every task reports how its rows went; what is decided from that changes how long the search takes and nothing else.
#pragma once

#include "codes.h"

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

// Makes the second level's codes, unless another task has begun to.
static void make_second(const PreparedCodes& call, int64_t group) {
  int32_t* state = call.second + group;
  int32_t none = NONE;
  if (!__atomic_compare_exchange_n(state, &none, BUSY, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) return;
  const bool own = find_repeats(call, group) || call.pairs;
  auto* packed = reinterpret_cast<float*>(call.packed[1]) + group * call.packed_size[1];
  for (int64_t panel = 0; own && panel < call.panels; ++panel) {
    float* to = packed + panel * (call.depth[1] + 1) * PANEL;
    pack_singles(call, group, panel, call.repeated + group * call.codebook.codes, call.depth[1], to);
    drop_outliers(call.groups[group], to);
  }
  __atomic_store_n(state, own ? OWN : SAME, __ATOMIC_RELEASE);
}

FASTVQ_INLINE int32_t second_state(const PreparedCodes& call, int64_t group) {
  return __atomic_load_n(call.second + group, __ATOMIC_ACQUIRE);
}

// The level to search a block of rows on. While another task makes the second level's codes, the first one serves.
static Level level_of(const Nearest& call, int64_t group) {
  const int32_t level = __atomic_load_n(&call.progress[group].level, __ATOMIC_RELAXED);
  if (level == FIRST) return FIRST;
  if (second_state(call, group) == NONE) make_second(call, group);
  return second_state(call, group) == BUSY ? FIRST : static_cast<Level>(level);
}

// The codes that a level leaves out.
FASTVQ_INLINE const uint8_t* left_out(const PreparedCodes& call, int64_t group, Level level) {
  const bool known = level != FIRST && second_state(call, group) > BUSY;
  return (known ? call.repeated : call.excluded) + group * call.codebook.codes;
}

// The packed codes that a level reads: 0 or 1.
FASTVQ_INLINE int packed_slot(const PreparedCodes& call, int64_t group, Level level) {
  return level == SECOND && second_state(call, group) == OWN;
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
  if (!call.exact || level == DENSE || __atomic_load_n(&progress.level, __ATOMIC_RELAXED) != level) return;
  rows = __atomic_add_fetch(&progress.rows, rows, __ATOMIC_RELAXED);
  effort = __atomic_add_fetch(&progress.effort, effort, __ATOMIC_RELAXED);
  // From half a pass to a whole one, from any pass to one without repeats, or to float64, which takes two and a half.
  const double worth = level == FIRST ? 0.45 : 1.6;
  if (rows < TRIAL_ROWS || double(effort) <= worth * double(pass_effort(call)) * double(rows)) return;
  auto current = static_cast<int32_t>(level);
  if (!__atomic_compare_exchange_n(&progress.level, &current, level + 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
    return;
  __atomic_store_n(&progress.rows, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&progress.effort, 0, __ATOMIC_RELAXED);
}

}  // namespace fastvq::cpu::FASTVQ_ISA
