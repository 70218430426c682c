// A loaded model with its own thread: everything of an engine that is not JavaScript. Made and
// called by engine_wrap on the JS thread; the backend itself is only touched by the engine's
// thread, but for read_weight, whose data never change.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "../core/backend.h"
#include "../core/check_plan.h"
#include "convert.h"

namespace manyfold {

// Runs jobs one after another. A thread of its own and not one of libuv's: a step must not keep
// file reads waiting.
class EngineThread {
 public:
  EngineThread();
  ~EngineThread() { stop(); }
  // Jobs must not throw. Refused (false) after stop().
  bool post(std::function<void()> job);
  bool idle();
  // Runs what is queued, then ends the thread. Not from a job.
  void stop();

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;  // mutex_
  bool busy_ = false;                       // mutex_
  bool stopping_ = false;                   // mutex_
  std::thread thread_;
};

// What info() and counters() tell, as of the last job's end.
struct EngineSnapshot {
  Counters counters;
  BackendInfo backend;
  size_t weight_bytes = 0, term_bytes = 0;
  int32_t term_sets = 0;
};

class EngineCore {
 public:
  explicit EngineCore(EngineOptions&& options);
  ~EngineCore() { dispose(); }
  EngineCore(const EngineCore&) = delete;
  EngineCore& operator=(const EngineCore&) = delete;

  EngineThread& thread() { return thread_; }

  // On the engine's thread.
  void load(const LoadProgress& progress);
  void step(const StepPlan& plan, StepResult& result);
  TermHandle load_terms(TermSet&& terms);

  // On the JS thread.
  void free_terms(TermHandle handle);
  std::vector<float> read_weight(SiteRef site, WeightPart part, int32_t row0, int32_t count) const;
  EngineSnapshot snapshot() const;
  // Waits for what runs, then frees everything. A load in progress ends early with an error.
  // Idempotent.
  void dispose();
  bool disposed() const { return disposed_; }

 private:
  void update_snapshot();

  EngineOptions options_;
  std::unique_ptr<Backend> backend_;
  std::atomic<bool> cancelled_ = false;
  bool disposed_ = false;
  mutable std::mutex mutex_;
  LoadedTerms terms_;        // mutex_
  EngineSnapshot snapshot_;  // mutex_
  EngineThread thread_;      // last: it ends before what its jobs use
};

}  // namespace manyfold
