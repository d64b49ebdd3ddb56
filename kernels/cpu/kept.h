// Codebooks that stay prepared between calls, for whoever knows that they do not change.
//
//   const int64_t number = keep(codes);       // prepares every stage
//   residual_nearest(call);                   // finds what is kept of call.codebooks, or of more stages of them
//   forget(number);
//
// What is kept is known by where the codes lie: until `forget`, they must lie there and stay as they are. A search
// that is under way keeps what it uses.
#pragma once

#include <memory>
#include <vector>

#include "prepared.h"
#include "residual.h"

namespace fastvq::cpu {

// One search for each stage, or a single one where stages share their codes.
struct KeptStack {
  CodeStack stack;
  std::vector<std::unique_ptr<PreparedSearch>> searches;
  const PreparedSearch& of(int64_t stage) const { return *searches[stack.stage_stride == 0 ? 0 : stage]; }
};

// Codes each of which lies whole, one after the other.
int64_t keep(const CodeStack& codes);
void forget(int64_t number);

// What is kept of these codes, or null; `sizes` is ResidualNearest's.
std::shared_ptr<const KeptStack> find_kept(const CodeStack& codes, const int64_t* sizes);

}  // namespace fastvq::cpu
