#include "kept.h"

#include <atomic>
#include <map>
#include <mutex>

namespace fastvq::cpu {
namespace {

constexpr int64_t MANY_ROWS = int64_t{1} << 20;  // packing has been paid for, however few rows will come

std::mutex guard;
std::map<int64_t, std::shared_ptr<const KeptStack>> all;
std::atomic<int64_t> count{0};

bool holds(const CodeStack& kept, const CodeStack& asked) {
  return kept.data == asked.data && kept.is_double == asked.is_double && kept.groups == asked.groups &&
         kept.codes == asked.codes && kept.dim == asked.dim && kept.stages >= asked.stages &&
         (kept.group_stride == asked.group_stride || asked.groups == 1) &&
         (kept.stage_stride == asked.stage_stride || asked.stages == 1) && kept.code_stride == asked.code_stride &&
         kept.dim_stride == asked.dim_stride;
}

}  // namespace

int64_t keep(const CodeStack& codes) {
  auto kept = std::make_shared<KeptStack>();
  kept->stack = codes;
  const int64_t stages = codes.stage_stride == 0 ? 1 : codes.stages;
  for (int64_t stage = 0; stage < stages; ++stage)
    kept->searches.push_back(std::make_unique<PreparedSearch>(codebook_of(codes, stage, codes.codes), Metric::l2, true,
                                                              codes.is_double, MANY_ROWS, thread_count()));
  const std::lock_guard<std::mutex> lock(guard);
  static int64_t last = 0;
  all[++last] = kept;
  ++count;
  return last;
}

void forget(int64_t number) {
  std::shared_ptr<const KeptStack> dropped;  // freed once the lock is open again
  const std::lock_guard<std::mutex> lock(guard);
  const auto found = all.find(number);
  if (found == all.end()) return;
  dropped = found->second;
  all.erase(found);
  --count;
}

std::shared_ptr<const KeptStack> find_kept(const CodeStack& codes, const int64_t* sizes) {
  if (sizes || count.load(std::memory_order_relaxed) == 0) return nullptr;
  const std::lock_guard<std::mutex> lock(guard);
  for (const auto& entry : all)
    if (holds(entry.second->stack, codes)) return entry.second;
  return nullptr;
}

}  // namespace fastvq::cpu
