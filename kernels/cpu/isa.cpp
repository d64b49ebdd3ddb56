#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace fastvq::cpu {

#define FASTVQ_DECLARE(isa)                     \
  namespace isa {                               \
  extern const NearestKernels nearest_kernels;  \
  extern const SegmentKernels segment_kernels;  \
  extern const LookupKernels lookup_kernels;    \
  extern const EmaKernels ema_kernels;          \
  }
FASTVQ_DECLARE(portable)
#if defined(__x86_64__)
FASTVQ_DECLARE(avx2)
FASTVQ_DECLARE(avx512)
#endif
#undef FASTVQ_DECLARE

namespace {

#define FASTVQ_TABLE(isa) \
  Kernels { #isa, &isa::nearest_kernels, &isa::segment_kernels, &isa::lookup_kernels, &isa::ema_kernels }

const Kernels* find(const char* name) {
  const bool widest = !name || !*name;
#if defined(__x86_64__)
  static const Kernels avx512_table = FASTVQ_TABLE(avx512), avx2_table = FASTVQ_TABLE(avx2);
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && (widest || !std::strcmp(name, "avx512"))) return &avx512_table;
  if (has_avx2 && (widest || !std::strcmp(name, "avx2"))) return &avx2_table;
#endif
  static const Kernels portable_table = FASTVQ_TABLE(portable);
  return widest || !std::strcmp(name, "portable") ? &portable_table : nullptr;
}
#undef FASTVQ_TABLE

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

bool select_kernels(const char* name) {
  const Kernels* found = find(name);
  if (found) chosen.store(found);
  return found != nullptr;
}

const Kernels& kernels() {
  if (!chosen.load() && !select_kernels(std::getenv("FASTVQ_CPU_ISA"))) select_kernels("");
  return *chosen.load();
}

}  // namespace fastvq::cpu
