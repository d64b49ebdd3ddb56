// One exponential-moving-average step of a codebook, in place (see reference.ema_update_):
//
//   n <- decay n + (1 - decay) counts;  m <- decay m + (1 - decay) sums;  c = m / n',
//   n' = n or, with Laplace smoothing, (n + eps) / (N + K eps) N with N = sum of n.
//
// The counts of a group are summed first, in float64; then one pass reads m, sums and writes m, c.
#pragma once

#include "common.h"

namespace fastvq::cpu {

constexpr int64_t EMA_PART = 64;  // the most codes that update_codes takes at once

struct Ema {
  void *codebook, *embed_sum, *cluster_size;  // (G, K, D), (G, K, D), (G, K), contiguous, one dtype
  const void *sums, *counts;
  bool is_double;
  int64_t groups, codes, dim;
  double decay, eps, dead_below;
  bool laplace, normalize, relative;
  double* totals;  // (G)
  bool* dead;      // (G, K)
};

struct EmaKernels {
  void (*count_group)(const Ema&, int64_t group);
  void (*update_codes)(const Ema&, int64_t group, int64_t first_code, int64_t last_code);
};

void ema_update(Ema& call);

}  // namespace fastvq::cpu
