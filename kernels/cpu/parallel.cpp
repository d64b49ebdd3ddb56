#include "parallel.h"

#include <atomic>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

// As in torch/csrc/stable/c/shim.h (torch 2.10), which takes longer to read than this file to compile.
extern "C" int32_t torch_get_num_threads(uint32_t* threads);
extern "C" int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain_size,
                                      void (*function)(int64_t, int64_t, void*), void* context);

namespace fastvq::cpu {
namespace {

// Denormals as IEEE 754 has them while the kernels run, whatever torch.set_flush_denormal says on this thread: it
// need not say the same on all threads.
class KeepDenormals {
#if defined(__SSE__)
 public:
  KeepDenormals() : state_(_mm_getcsr()) { _mm_setcsr(state_ & ~0x8040u); }
  ~KeepDenormals() { _mm_setcsr(state_); }

 private:
  unsigned state_;
#endif
};

// A worker takes a share of the tasks that are left, and single ones in the end: short tasks would otherwise spend
// their time on the counter, whose cache line every worker writes, and a worker that is held up holds up few.
struct Loop {
  int64_t count;
  int64_t shares;
  TaskFunction function;
  void* context;
  alignas(64) std::atomic<int64_t> next{0};

  void work(int worker) {
    [[maybe_unused]] const KeepDenormals guard;
    for (int64_t first = next.load(std::memory_order_relaxed), taken; first < count;) {
      taken = count - first < shares ? 1 : (count - first) / shares;
      if (!next.compare_exchange_weak(first, first + taken, std::memory_order_relaxed)) continue;
      for (int64_t task = first; task < first + taken; ++task) function(context, task, worker);
      first = next.load(std::memory_order_relaxed);
    }
  }
};

constexpr int64_t SHARES = 8;  // of a worker

}  // namespace

int thread_count() {
  uint32_t threads = 1;
  return torch_get_num_threads(&threads) == 0 && threads > 0 ? static_cast<int>(threads) : 1;
}

void run_tasks(int64_t count, int workers, TaskFunction function, void* context) {
  if (count < workers) workers = static_cast<int>(count);
  Loop loop{count, SHARES * (workers > 1 ? workers : 1), function, context};
  const auto run = [](int64_t first, int64_t, void* loop) {
    static_cast<Loop*>(loop)->work(static_cast<int>(first));
  };
  // One range per worker; where torch runs the loop serially, the first range takes every task.
  if (workers <= 1 || torch_parallel_for(0, workers, 1, run, &loop) != 0) loop.work(0);
}

}  // namespace fastvq::cpu
