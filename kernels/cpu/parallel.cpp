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

struct Loop {
  int64_t count;
  TaskFunction function;
  void* context;
  std::atomic<int64_t> next{0};

  void work(int worker) {
    [[maybe_unused]] const KeepDenormals guard;
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < count;)
      function(context, task, worker);
  }
};

}  // namespace

int thread_count() {
  uint32_t threads = 1;
  return torch_get_num_threads(&threads) == 0 && threads > 0 ? static_cast<int>(threads) : 1;
}

void run_tasks(int64_t count, int workers, TaskFunction function, void* context) {
  Loop loop{count, function, context};
  if (count < workers) workers = static_cast<int>(count);
  const auto run = [](int64_t first, int64_t, void* loop) {
    static_cast<Loop*>(loop)->work(static_cast<int>(first));
  };
  // One range per worker; where torch runs the loop serially, the first range takes every task.
  if (workers <= 1 || torch_parallel_for(0, workers, 1, run, &loop) != 0) loop.work(0);
}

}  // namespace fastvq::cpu
