// Parallel loops on torch's own thread pool, so that torch.set_num_threads is obeyed and no second pool appears.
#pragma once

#include <cstdint>

namespace fastvq::cpu {

using TaskFunction = void (*)(void* context, int64_t task, int worker);

// torch.get_num_threads(), or 1 inside another parallel region.
int thread_count();

// Runs tasks [0, count) on at most `workers` threads; each worker takes the next ones when it is free, so a task's
// result must not depend on who runs it. Tasks must not throw.
void run_tasks(int64_t count, int workers, TaskFunction function, void* context);

template <class Task>
void run_tasks(int64_t count, int workers, Task&& task) {
  run_tasks(
      count, workers, [](void* context, int64_t index, int worker) { (*static_cast<Task*>(context))(index, worker); },
      &task);
}

}  // namespace fastvq::cpu
