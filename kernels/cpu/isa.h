// The instruction sets the kernels are compiled for, and the one in use.
#pragma once

#include "commitment.h"
#include "ema.h"
#include "lookup.h"
#include "nearest.h"
#include "residual.h"
#include "residual_sum.h"
#include "segment.h"

namespace fastvq::cpu {

struct Kernels {
  const char* name;
  const NearestKernels* nearest;
  const NearestKernels* topk;  // where rows ask for several codes
  const SegmentKernels* segment;
  const LookupKernels* lookup;
  const EmaKernels* ema;
  const ResidualKernels* residual;
  const ResidualSumKernels* residual_sum;
  const CommitmentKernels* commitment;
};

// The kernels in use. A choice must have been made.
const Kernels& kernels();
bool has_kernels();

// Chooses by name, "" for the widest; false where the processor lacks it or the build left it out.
bool select_kernels(const char* name);

}  // namespace fastvq::cpu
