#include "thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>

namespace manyfold {
namespace {

// Polls before a waiting thread starts to offer its core to others: some 20 to 100 µs. A thread
// whose partner was descheduled must not burn the core that the partner needs.
constexpr int32_t kPolls = 2000;
// Polls before a worker sleeps although a session is on: some milliseconds without work, so that
// not even a session which a failed step left open keeps a core busy.
constexpr int32_t kMostPolls = 10000;

void pause_once(int32_t polls) {
  if (polls < kPolls) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  } else {
    sched_yield();
  }
}

std::vector<int32_t> allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int32_t> cores;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int32_t i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &set)) cores.push_back(i);
    }
  }
  return cores;
}

void pin_thread(std::thread& thread, int32_t core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  // A refusal leaves the thread free to roam, which is slower at worst.
  (void)pthread_setaffinity_np(thread.native_handle(), sizeof(set), &set);
}

}  // namespace

int32_t usable_cores() {
  return std::max<int32_t>(1, static_cast<int32_t>(allowed_cores().size()));
}

ThreadPool::ThreadPool(int32_t threads, bool pinned) : failures_(std::max(threads, 1)) {
  const std::vector<int32_t> cores = pinned ? allowed_cores() : std::vector<int32_t>{};
  workers_.reserve(std::max(threads, 1) - 1);
  for (int32_t i = 1; i < threads; ++i) {
    workers_.emplace_back([this, i] { work(i); });
    if (!cores.empty()) pin_thread(workers_.back(), cores[static_cast<size_t>(i) % cores.size()]);
  }
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::set_hot(bool hot) {
  hot_.store(hot, std::memory_order_release);
}

void ThreadPool::run_job(int32_t items, Job job) {
  job_ = job;
  remaining_.store(items, std::memory_order_relaxed);
  claims_.store(uint64_t{static_cast<uint32_t>(items)} << 32, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  run_claimed(0);
  for (int32_t polls = 0; remaining_.load(std::memory_order_acquire) != 0;) {
    pause_once(polls);
    if (polls < kPolls) ++polls;
  }
  std::exception_ptr first;
  for (std::exception_ptr& failure : failures_) {
    if (failure && !first) first = failure;
    failure = nullptr;
  }
  if (first) std::rethrow_exception(first);
}

// Runs items for as long as there are any.
void ThreadPool::run_claimed(int32_t thread) {
  for (;;) {
    const uint64_t claim = claims_.fetch_add(1, std::memory_order_acq_rel);
    const auto item = static_cast<uint32_t>(claim);
    if (item >= claim >> 32) return;
    try {
      job_.call(job_.context, static_cast<int32_t>(item), thread);
    } catch (...) {
      std::exception_ptr& failure = failures_[static_cast<size_t>(thread)];
      if (!failure) failure = std::current_exception();
    }
    remaining_.fetch_sub(1, std::memory_order_release);
  }
}

// Returns the first epoch after `seen`: spins for a while when a session is on, else sleeps.
uint32_t ThreadPool::await_epoch(uint32_t seen) {
  for (int32_t polls = 0;; ++polls) {
    const uint32_t now = epoch_.load(std::memory_order_acquire);
    if (now != seen) return now;
    if (polls < kMostPolls && hot_.load(std::memory_order_acquire)) {
      pause_once(polls);
    } else {
      parked_.fetch_add(1, std::memory_order_acq_rel);
      epoch_.wait(seen, std::memory_order_acquire);
      parked_.fetch_sub(1, std::memory_order_acq_rel);
      polls = 0;
    }
  }
}

void ThreadPool::work(int32_t thread) {
  for (uint32_t seen = 0;;) {
    seen = await_epoch(seen);
    if (stopping_.load(std::memory_order_relaxed)) return;
    run_claimed(thread);
  }
}

}  // namespace manyfold
