"""`threads.h`: work that callers and helpers do together, with a pool of this test in place of XLA's."""

import os
import shlex
import subprocess

import jax
import pytest

from inception_jax.models import onednn
from inception_jax.models.checks import ModelError

PROGRAM = r"""
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>

#include "threads.h"

using onednn::Team;

#define EXPECT(condition) \
  if (!(condition)) { std::fprintf(stderr, "line %d: %s\n", __LINE__, #condition); std::exit(1); }

// Threads that take tasks from one queue; `refuses`: as where there is no memory for a task.
struct Threads {
  explicit Threads(int count) : count(count) {
    for (int i = 0; i < count; i++) std::thread([this] { Run(); }).detach();
  }
  void Run() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex);
      added.wait(lock, [this] { return !tasks.empty(); });
      auto task = std::move(tasks.front());
      tasks.pop_front();
      lock.unlock();
      task();
    }
  }
  int count;
  std::mutex mutex;
  std::condition_variable added;
  std::deque<std::function<void()>> tasks;
};

struct OfDevice {
  Threads& threads;
  int32_t number;
  bool refuses = false;
  int64_t num_threads() const { return threads.count; }
  int32_t device() const { return number; }
  template <typename Task>
  void Schedule(Task task) {
    if (refuses) throw std::bad_alloc();
    std::lock_guard<std::mutex> lock(threads.mutex);
    threads.tasks.push_back(task);
    threads.added.notify_one();
  }
};

// Calls from several threads at once, of one device or of several: each index is taken once, before `Do` returns.
void TestCallers(Threads& threads, int callers, bool are_devices, bool refuses) {
  std::vector<std::thread> all;
  for (int caller = 0; caller < callers; caller++)
    all.emplace_back([=, &threads] {
      OfDevice pool{threads, are_devices ? caller : 0, refuses};
      for (int round = 0; round < 300; round++) {
        const int64_t count = 2 + (round * 7 + caller) % 40;
        std::vector<int> taken(count);  // each by one thread: a race detector sees a second one
        Team::Get().Do(pool, count, [&](int64_t index) { taken[index]++; });
        EXPECT(std::count(taken.begin(), taken.end(), 1) == count);
        if (round % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    });
  for (std::thread& one : all) one.join();
}

void TestErrors(Threads& threads) {
  OfDevice pool{threads, 0};
  for (int64_t bad : {0, 1, 9}) {
    std::atomic<int> finished{0};
    bool caught = false;
    try {
      Team::Get().Do(pool, 10, [&](int64_t index) {
        if (index == bad) throw std::runtime_error("bad");
        finished++;
      });
    } catch (const std::runtime_error& error) {
      caught = std::string(error.what()) == "bad";
    }
    EXPECT(caught && finished == 9);
  }
}

// Two threads work at the same time: each waits for the other.
void TestHelps(Threads& threads) {
  OfDevice pool{threads, 0};
  for (int round = 0; round < 20; round++) {
    std::atomic<int> begun{0};
    Team::Get().Do(pool, 2, [&](int64_t) {
      begun++;
      while (begun < 2) std::this_thread::yield();
    });
  }
}

// The pool is busy: the caller does all itself, and a helper that begins later finds nothing of it.
void TestBusyPool() {
  auto& threads = *new Threads(2);
  std::atomic<bool> free{false};
  for (int i = 0; i < 2; i++) OfDevice{threads, 0}.Schedule([&] { while (!free) std::this_thread::yield(); });
  {
    OfDevice pool{threads, 0};
    std::vector<int> taken(8);
    Team::Get().Do(pool, 8, [&](int64_t index) { taken[index]++; });
    EXPECT(std::count(taken.begin(), taken.end(), 1) == 8);
  }
  free = true;
  TestHelps(threads);
}

int main() {
  auto& threads = *new Threads(4);
  for (bool refuses : {false, true})
    for (bool are_devices : {false, true})
      for (int callers : {1, 2, 3, 9}) TestCallers(threads, callers, are_devices, refuses);
  TestErrors(threads);
  TestHelps(threads);
  TestBusyPool();
  std::_Exit(0);  // threads wait for tasks
}
"""


def test_work_is_done_once_by_callers_and_helpers(tmp_path):
    try:
        onednn.load()
    except ModelError as error:
        pytest.skip(str(error))
    (tmp_path / "program.cc").write_text(PROGRAM)
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    headers = [f"-I{onednn._SOURCE.parent}", f"-I{jax.ffi.include_dir()}"]
    command = [*compiler, "-std=c++17", "-O2", "-pthread", *headers, "program.cc", "-o", "program"]
    subprocess.run(command, cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "program"], check=True, timeout=120)
