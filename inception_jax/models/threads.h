// Work in parts, for the threads of XLA.

#ifndef INCEPTION_JAX_THREADS_H_
#define INCEPTION_JAX_THREADS_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace onednn {

constexpr int kPartsPerThread = 4;  // so that a thread that comes late finds work

namespace ffi = xla::ffi;

// The threads of XLA, and the number of the device whose program calls.
class Pool {
 public:
  Pool(ffi::ThreadPool pool, int32_t device) : pool_(pool), device_(device) {}

  int64_t num_threads() const { return pool_.num_threads(); }
  int32_t device() const { return device_; }

  template <typename Task>
  void Schedule(Task task) {
    pool_.Schedule(std::move(task));
  }

 private:
  ffi::ThreadPool pool_;
  int32_t device_;
};

// Work of callers, which they and helpers do together: tasks of the pool.
//
// To wake a thread takes 5 to 20 microseconds, on a virtual machine 600 where its core sleeps, too, and Linux may put
// it on the caller's core, where it waits for up to 4 milliseconds. A small convolution takes 50 microseconds. So where
// one device has work, a helper that is done waits for more without sleeping, and the caller for its helpers: longer
// than it takes between two calls, or from one program to the next. Where several devices have work, their callers need
// the cores.
class Team {
 public:
  static Team& Get() {
    static auto* team = new Team;
    return *team;
  }

  // Calls work(0) to work(count - 1). The caller takes every index that nobody else has taken, so it never waits for a
  // helper that has not begun.
  template <typename AnyPool, typename Work>
  void Do(AnyPool& pool, int64_t count, const Work& work) {
    Job job{pool.device(), count, &work,
            [](const void* work, int64_t index) { (*static_cast<const Work*>(work))(index); }};
    for (int64_t missing = Begin(&job, pool.num_threads()); missing > 0; missing--) {
      try {
        pool.Schedule([this] { Help(); });
      } catch (const std::bad_alloc&) {  // fewer helpers, then
        std::lock_guard<std::mutex> lock(mutex_);
        helpers_--;
      }
    }
    Take(&job);
    End(&job);
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kWait{200};
  static constexpr std::chrono::milliseconds kIdle{1};  // a device that had no call for so long has no work

  struct Job {
    const int32_t device;
    const int64_t count;
    const void* const work;
    void (*const call)(const void* work, int64_t index);
    std::atomic<int64_t> next{0};
    std::atomic<int> helpers{0};
    std::exception_ptr error;

    bool HasWork() const { return next < count; }
  };

  // Waits without sleeping until the condition holds; false: for too long.
  template <typename Condition>
  static bool WaitFor(const Condition& condition) {
    const auto end = Clock::now() + kWait;
    do {
      for (int i = 0; i < 16; i++) {
        if (condition()) return true;
        __builtin_ia32_pause();
      }
    } while (Clock::now() < end);
    return false;
  }

  // Makes a job known; returns the number of helpers that it lacks.
  int64_t Begin(Job* job, int64_t threads) {
    std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(job);
    with_work_++;
    const auto now = Clock::now();
    for (const Job* one : jobs_) latest_[one->device] = now;
    auto has_work = [now](const auto& device) { return now - device.second < kIdle; };
    is_one_device_ = std::count_if(latest_.begin(), latest_.end(), has_work) == 1;
    const int64_t missing = std::max<int64_t>(0, std::min(threads, job->count) - 1 - helpers_);
    helpers_ += missing;
    return missing;
  }

  // Waits until no helper is left in the job.
  void End(Job* job) {
    std::unique_lock<std::mutex> lock(mutex_);
    jobs_.erase(std::find(jobs_.begin(), jobs_.end(), job));
    latest_[job->device] = Clock::now();
    auto is_left = [job] { return job->helpers == 0; };
    if (is_one_device_) {
      lock.unlock();
      WaitFor(is_left);
      lock.lock();  // the last helper held it when it left
    }
    left_.wait(lock, is_left);
  }

  void Take(Job* job) {
    for (int64_t index; (index = job->next++) < job->count;) {
      if (index == job->count - 1) with_work_--;
      try {
        job->call(job->work, index);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        job->error = std::current_exception();
      }
    }
  }

  void Help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (bool stays = true; stays;) {
      auto found = std::find_if(jobs_.begin(), jobs_.end(), [](const Job* job) { return job->HasWork(); });
      if (found != jobs_.end()) {
        Job* job = *found;
        job->helpers++;
        lock.unlock();
        Take(job);
        lock.lock();
        if (--job->helpers == 0) left_.notify_all();
      }
      stays = is_one_device_;
      if (stays) {
        lock.unlock();
        stays = WaitFor([this] { return with_work_ > 0; });
        lock.lock();
      }
    }
    helpers_--;
  }

  std::mutex mutex_;                             // of all but the atomic numbers
  std::vector<Job*> jobs_;                       // that have begun and not ended
  std::atomic<int64_t> with_work_{0};            // of them, those with an index that nobody has taken
  std::condition_variable left_;                 // the last helper left a job
  std::map<int32_t, Clock::time_point> latest_;  // of each device, the time of its latest call
  bool is_one_device_ = true;                    // with work
  int64_t helpers_ = 0;                          // that are scheduled or work or wait for work
};

template <typename Work>
void Divide(Pool& pool, int64_t count, const Work& work) {
  if (std::min(count, pool.num_threads()) > 1) {
    Team::Get().Do(pool, count, work);
  } else {
    for (int64_t index = 0; index < count; index++) work(index);
  }
}

}  // namespace onednn

namespace xla::ffi {

template <>
struct CtxDecoding<onednn::Pool> {
  using Type = onednn::Pool;

  static std::optional<Type> Decode(const XLA_FFI_Api* api, XLA_FFI_ExecutionContext* context,
                                    DiagnosticEngine& diagnostic) {
    auto pool = CtxDecoding<ThreadPool>::Decode(api, context, diagnostic);
    auto device = CtxDecoding<DeviceOrdinal>::Decode(api, context, diagnostic);
    if (!pool || !device) return std::nullopt;
    return Type(*pool, *device);
  }
};

}  // namespace xla::ffi

#endif  // INCEPTION_JAX_THREADS_H_
