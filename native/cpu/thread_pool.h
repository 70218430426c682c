// The compute threads of one CPU backend. The caller of run() is thread 0; the others are owned
// here. Within a Session (one step) idle workers spin, so that an operation starts in well under a
// microsecond; outside they sleep in the kernel, because the JavaScript thread needs the core.
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

  // Calls fn(thread, threads) once on every thread and waits for all. The exception of the lowest
  // thread is rethrown.
  template <class F>
  void run(F&& fn) {
    using Fn = std::remove_reference_t<F>;
    run_job({[](void* context, int32_t thread, int32_t threads) {
               (*static_cast<Fn*>(context))(thread, threads);
             },
             const_cast<std::remove_const_t<Fn>*>(&fn)});
  }

  // Calls fn(item, thread) for every item in 0 .. items - 1, each once; threads take the next item
  // when they are free, so a core that is lent out elsewhere delays only what it holds. fn must not
  // care who runs an item.
  template <class F>
  void run_items(int32_t items, F&& fn) {
    if (items <= 0) return;
    if (items == 1 || workers_.empty()) {
      for (int32_t item = 0; item < items; ++item) fn(item, 0);
      return;
    }
    next_item_.store(0, std::memory_order_relaxed);
    run([&](int32_t thread, int32_t) {
      for (;;) {
        const int32_t item = next_item_.fetch_add(1, std::memory_order_relaxed);
        if (item >= items) return;
        fn(item, thread);
      }
    });
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
    void (*call)(void* context, int32_t thread, int32_t threads);
    void* context;
  };

  void run_job(Job job);
  void set_hot(bool hot);
  void work(int32_t thread);
  uint32_t await_epoch(uint32_t seen);

  // Each on its own cache line: workers poll epoch_ while others count down pending_.
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<int32_t> pending_{0};
  alignas(64) std::atomic<int32_t> next_item_{0};
  alignas(64) std::atomic<bool> hot_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<int32_t> parked_{0};
  Job job_{};
  std::vector<std::exception_ptr> failures_;
  std::vector<std::thread> workers_;
};

}  // namespace manyfold
