#include "isa.h"

#include <atomic>
#include <cstring>

namespace fastvq::cpu {

// The build defines FASTVQ_HAS_<name> for every instruction set it compiles the kernels for.
#define FASTVQ_TABLE(isa)                                    \
  namespace isa {                                            \
  extern const NearestKernels nearest_kernels;               \
  extern const NearestKernels topk_kernels;                  \
  extern const SegmentKernels segment_kernels;               \
  extern const LookupKernels lookup_kernels;                 \
  extern const EmaKernels ema_kernels;                       \
  extern const ResidualKernels residual_kernels;             \
  extern const ResidualSumKernels residual_sum_kernels;      \
  extern const CommitmentKernels commitment_kernels;         \
  }                                                          \
  constexpr Kernels isa##_table{#isa,                        \
                                &isa::nearest_kernels,       \
                                &isa::topk_kernels,          \
                                &isa::segment_kernels,       \
                                &isa::lookup_kernels,        \
                                &isa::ema_kernels,           \
                                &isa::residual_kernels,      \
                                &isa::residual_sum_kernels,  \
                                &isa::commitment_kernels};
#if defined(FASTVQ_HAS_avx512bf16)
FASTVQ_TABLE(avx512bf16)
#endif
#if defined(FASTVQ_HAS_avx512vnni)
FASTVQ_TABLE(avx512vnni)
#endif
#if defined(FASTVQ_HAS_avx512)
FASTVQ_TABLE(avx512)
#endif
#if defined(FASTVQ_HAS_avx2)
FASTVQ_TABLE(avx2)
#endif
#if defined(FASTVQ_HAS_portable)
FASTVQ_TABLE(portable)
#endif
#undef FASTVQ_TABLE

namespace {

const Kernels* find(const char* name) {
  const bool widest = !*name;
#if defined(FASTVQ_HAS_avx512bf16) || defined(FASTVQ_HAS_avx512vnni) || defined(FASTVQ_HAS_avx512)
#define FASTVQ_HAS_ANY_avx512
#endif
#if defined(FASTVQ_HAS_ANY_avx512) || defined(FASTVQ_HAS_avx2)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#if defined(FASTVQ_HAS_ANY_avx512)
  [[maybe_unused]] const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                                           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                                           __builtin_cpu_supports("avx512vl");
  [[maybe_unused]] const bool has_vnni = has_avx512 && __builtin_cpu_supports("avx512vnni");
#endif
#if defined(FASTVQ_HAS_avx512bf16)
  const bool has_bf16 = has_vnni && __builtin_cpu_supports("avx512bf16");
  if (has_bf16 && (widest || !std::strcmp(name, "avx512bf16"))) return &avx512bf16_table;
#endif
#if defined(FASTVQ_HAS_avx512vnni)
  if (has_vnni && (widest || !std::strcmp(name, "avx512vnni"))) return &avx512vnni_table;
#endif
#if defined(FASTVQ_HAS_avx512)
  if (has_avx512 && (widest || !std::strcmp(name, "avx512"))) return &avx512_table;
#endif
#if defined(FASTVQ_HAS_avx2)
  if (has_avx2 && (widest || !std::strcmp(name, "avx2"))) return &avx2_table;
#endif
#if defined(FASTVQ_HAS_portable)
  if (widest || !std::strcmp(name, "portable")) return &portable_table;
#endif
  return nullptr;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

bool select_kernels(const char* name) {
  const Kernels* found = find(name);
  if (found) chosen.store(found);
  return found != nullptr;
}

const Kernels& kernels() { return *chosen.load(); }
bool has_kernels() { return chosen.load() != nullptr; }

}  // namespace fastvq::cpu
