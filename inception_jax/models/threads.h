// Work in parts, for the threads of XLA.

#ifndef INCEPTION_JAX_THREADS_H_
#define INCEPTION_JAX_THREADS_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>

#include "xla/ffi/api/ffi.h"

namespace onednn {

constexpr int kPartsPerThread = 4;  // so that a thread that comes late finds work

namespace ffi = xla::ffi;

// Calls work(0) to work(count - 1) on the caller's thread and those of the pool that are idle. The caller takes every
// index that nobody else has taken, so it never waits for a task that has not begun.
template <typename Work>
void Divide(ffi::ThreadPool& pool, int64_t count, const Work& work) {
  struct State {
    std::atomic<int64_t> next{0};
    int64_t finished = 0;
    std::exception_ptr error;
    std::mutex mutex;
    std::condition_variable all_finished;
  };
  auto state = std::make_shared<State>();
  // A task that begins after the last index was taken touches the shared state alone.
  auto take = [state, count, work = &work] {
    for (int64_t index; (index = state->next++) < count;) {
      std::exception_ptr error;
      try {
        (*work)(index);
      } catch (...) {
        error = std::current_exception();
      }
      std::lock_guard<std::mutex> lock(state->mutex);
      if (error) state->error = error;
      if (++state->finished == count) state->all_finished.notify_all();
    }
  };
  int64_t helpers = std::min<int64_t>(count, pool.num_threads()) - 1;
  try {
    for (int64_t i = 0; i < helpers; i++) pool.Schedule([take] { take(); });
  } catch (const std::bad_alloc&) {  // fewer helpers, then
  }
  take();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_finished.wait(lock, [&] { return state->finished == count; });
  if (state->error) std::rethrow_exception(state->error);
}

}  // namespace onednn

#endif  // INCEPTION_JAX_THREADS_H_
