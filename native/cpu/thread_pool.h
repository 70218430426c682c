// The compute threads of one CPU backend. The caller of run_items() is thread 0; the others are
// owned here. Within a Session (one step) idle workers spin, so that an operation starts in well
// under a microsecond; outside they sleep in the kernel, because the JavaScript thread needs the
// core.
//
// Work is claimed item by item, and a job is over when its items are done: a worker whose core is
// lent to somebody else holds up no more than the item that it has begun.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <type_traits>
#include <vector>

namespace manyfold {

// Cores that this process may use.
int32_t usable_cores();

class ThreadPool {
 public:
  // threads: the caller included, at least 1. pinned: worker i is bound to the i-th core of the
  // process's set; the caller is never bound.
  explicit ThreadPool(int32_t threads, bool pinned = false);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int32_t threads() const { return static_cast<int32_t>(workers_.size()) + 1; }

  // Calls fn(item, thread) for every item in 0 .. items - 1, each once, and waits for all. No more
  // than one call at a time, and none from within fn. fn must not care who runs an item; the
  // exception of the lowest thread is rethrown when all items have been run.
  template <class F>
  void run_items(int32_t items, F&& fn) {
    if (items <= 0) return;
    if (items == 1 || workers_.empty()) {
      for (int32_t item = 0; item < items; ++item) fn(item, 0);
      return;
    }
    using Fn = std::remove_reference_t<F>;
    run_job(items, {[](void* context, int32_t item, int32_t thread) {
                      (*static_cast<Fn*>(context))(item, thread);
                    },
                    const_cast<std::remove_const_t<Fn>*>(&fn)});
  }

  // Keeps the workers awake while it lives. One at a time.
  class Session {
   public:
    explicit Session(ThreadPool& pool) : pool_(pool) { pool_.set_hot(true); }
    ~Session() { pool_.set_hot(false); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

   private:
    ThreadPool& pool_;
  };

  // True when every worker sleeps in the kernel (tests).
  bool all_parked() const { return parked_.load(std::memory_order_acquire) == threads() - 1; }

 private:
  struct Job {
    void (*call)(void* context, int32_t item, int32_t thread);
    void* context;
  };

  void run_job(int32_t items, Job job);
  void run_claimed(int32_t thread);
  void set_hot(bool hot);
  void work(int32_t thread);
  uint32_t await_epoch(uint32_t seen);

  // The running job's items (high half) and the next one to claim (low half), in one word: who
  // claims an item knows that it belongs to the job that stands in job_, and that this job cannot
  // end before the item does.
  alignas(64) std::atomic<uint64_t> claims_{0};
  alignas(64) std::atomic<int32_t> remaining_{0};  // items that are not done
  alignas(64) std::atomic<uint32_t> epoch_{0};     // jobs so far: what waiting workers look at
  alignas(64) std::atomic<bool> hot_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<int32_t> parked_{0};
  Job job_{};
  std::vector<std::exception_ptr> failures_;
  std::vector<std::thread> workers_;
};

}  // namespace manyfold
