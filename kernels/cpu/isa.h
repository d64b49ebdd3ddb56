// The instruction sets the kernels are compiled for, and the one in use.
#pragma once

#include "ema.h"
#include "lookup.h"
#include "nearest.h"
#include "segment.h"

namespace fastvq::cpu {

struct Kernels {
  const char* name;
  const NearestKernels* nearest;
  const SegmentKernels* segment;
  const LookupKernels* lookup;
  const EmaKernels* ema;
};

// The kernels in use: the widest the processor has, or what FASTVQ_CPU_ISA names.
const Kernels& kernels();

// Chooses by name ("avx512", "avx2", "portable", or "" for the widest); false where it is unknown or the processor
// lacks it.
bool select_kernels(const char* name);

}  // namespace fastvq::cpu
