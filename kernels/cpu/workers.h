// What a call's workers share: memory, and the ranges of indices that they met.
#pragma once

#include <cstdlib>
#include <new>

#include "parallel.h"
#include "segment.h"

namespace fastvq::cpu {

class Memory {
 public:
  explicit Memory(int64_t bytes) : start_(static_cast<char*>(std::aligned_alloc(64, round_up(bytes + 64, 64)))) {
    if (!start_) throw std::bad_alloc();
  }
  ~Memory() { std::free(start_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  char* start() const { return start_; }

 private:
  char* start_;
};

// One range of indices per worker, a cache line apart.
class Ranges {
 public:
  explicit Ranges(int workers) : memory_(workers * LINE), workers_(workers) {
    for (int worker = 0; worker < workers; ++worker) new (memory_.start() + worker * LINE) IndexRange;
  }
  IndexRange& operator[](int worker) const { return *reinterpret_cast<IndexRange*>(memory_.start() + worker * LINE); }
  int64_t outside(int64_t codes) const {
    IndexRange seen;
    for (int worker = 0; worker < workers_; ++worker) {
      seen.include((*this)[worker].low);
      seen.include((*this)[worker].high);
    }
    return seen.outside(codes);
  }

 private:
  static constexpr int64_t LINE = 64;
  Memory memory_;
  int workers_;
};

constexpr double SERIAL_FLOPS = 200'000;  // below this, waking a thread costs more than it saves

inline int workers_for(double flops) { return flops < SERIAL_FLOPS ? 1 : thread_count(); }

}  // namespace fastvq::cpu
