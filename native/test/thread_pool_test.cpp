// The thread pool: every thread and item runs once, failures come through, and nobody spins between
// sessions.
#include "../cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>

#include "check.h"

namespace manyfold {
namespace {

TEST(thread_pool_runs_every_thread_once) {
  for (const int32_t threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads, threads == 3);
    CHECK(pool.threads() == threads);
    std::vector<int32_t> calls(static_cast<size_t>(threads), 0);
    for (int32_t round = 0; round < 200; ++round) {
      pool.run([&](int32_t thread, int32_t all) {
        if (all == threads) ++calls[static_cast<size_t>(thread)];
      });
    }
    for (const int32_t n : calls) CHECK(n == 200);
  }
}

TEST(thread_pool_sees_what_the_run_before_wrote) {
  ThreadPool pool(3);
  ThreadPool::Session session(pool);
  std::vector<int64_t> values(3, 1);
  for (int32_t round = 0; round < 300; ++round) {
    std::vector<int64_t> next(3);
    pool.run([&](int32_t thread, int32_t) {
      next[static_cast<size_t>(thread)] = (values[0] + values[1] + values[2]) % 1000003;
    });
    values = next;
  }
  CHECK(values[0] == values[1] && values[1] == values[2] && values[0] > 0);
}

TEST(thread_pool_takes_each_item_once) {
  ThreadPool pool(3);
  for (const int32_t items : {0, 1, 2, 3, 100}) {
    std::vector<int32_t> taken(static_cast<size_t>(items), 0);
    pool.run_items(items, [&](int32_t item, int32_t thread) {
      if (thread >= 0 && thread < 3) ++taken[static_cast<size_t>(item)];
    });
    for (const int32_t n : taken) CHECK(n == 1);
  }
}

TEST(thread_pool_rethrows_the_lowest_threads_failure) {
  ThreadPool pool(3);
  for (int32_t round = 0; round < 20; ++round) {
    std::string said;
    try {
      pool.run([&](int32_t thread, int32_t) {
        if (thread > 0) throw std::runtime_error("thread " + std::to_string(thread));
      });
    } catch (const std::runtime_error& error) {
      said = error.what();
    }
    CHECK(said == "thread 1");
  }
  std::atomic<int32_t> ran{0};
  pool.run([&](int32_t, int32_t) { ran.fetch_add(1); });
  CHECK(ran.load() == 3);
}

// Sleeping needs no more than the moment that a worker takes to notice; the loop ends with its
// bound, not with a clock.
bool parks(const ThreadPool& pool) {
  for (int32_t i = 0; i < 20000; ++i) {
    if (pool.all_parked()) return true;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return false;
}

TEST(thread_pool_sleeps_outside_sessions) {
  ThreadPool pool(3);
  CHECK(parks(pool));
  {
    ThreadPool::Session session(pool);
    pool.run([](int32_t, int32_t) {});
  }
  CHECK(parks(pool));
  pool.run([](int32_t, int32_t) {});
  CHECK(parks(pool));
}

TEST(thread_pool_sleeps_in_a_session_that_nobody_ends) {
  ThreadPool pool(3);
  ThreadPool::Session session(pool);
  pool.run([](int32_t, int32_t) {});
  CHECK(parks(pool));
  int32_t calls[3] = {};
  pool.run([&](int32_t thread, int32_t) { ++calls[thread]; });
  CHECK(calls[0] == 1 && calls[1] == 1 && calls[2] == 1);
}

}  // namespace
}  // namespace manyfold
