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

TEST(thread_pool_sees_what_the_run_before_wrote) {
  for (const int32_t threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads, threads == 3);
    CHECK(pool.threads() == threads);
    ThreadPool::Session session(pool);
    std::vector<int64_t> values(7, 1);
    for (int32_t round = 0; round < 2000; ++round) {
      std::vector<int64_t> next(7);
      pool.run_items(7, [&](int32_t item, int32_t) {
        const auto at = static_cast<size_t>(item);
        next[at] = (values[at] + values[(at + 1) % 7] + values[(at + 3) % 7]) % 1000003;
      });
      values = next;
    }
    for (const int64_t value : values) CHECK(value == values[0] && value > 0);
  }
}

TEST(thread_pool_takes_each_item_once) {
  ThreadPool pool(3);
  for (int32_t round = 0; round < 300; ++round) {
    for (const int32_t items : {0, 1, 2, 3, 100}) {
      std::vector<int32_t> taken(static_cast<size_t>(items), 0);
      pool.run_items(items, [&](int32_t item, int32_t thread) {
        if (thread >= 0 && thread < 3) ++taken[static_cast<size_t>(item)];
      });
      for (const int32_t n : taken) CHECK(n == 1);
    }
  }
}

// Two items that wait for each other need two threads.
TEST(thread_pool_runs_items_side_by_side) {
  ThreadPool pool(2);
  for (int32_t round = 0; round < 20; ++round) {
    std::atomic<int32_t> begun{0};
    std::vector<int32_t> threads(2);
    pool.run_items(2, [&](int32_t item, int32_t thread) {
      threads[static_cast<size_t>(item)] = thread;
      begun.fetch_add(1);
      while (begun.load() < 2) std::this_thread::yield();
    });
    CHECK(threads[0] + threads[1] == 1);
  }
}

// The caller finishes the job of a worker that sleeps elsewhere, but for the item that it has
// begun.
TEST(thread_pool_does_not_wait_for_who_has_no_item) {
  ThreadPool pool(2);
  for (int32_t round = 0; round < 20; ++round) {
    std::atomic<int32_t> others{0};
    std::atomic<bool> begun{false}, over{false};
    pool.run_items(40, [&](int32_t, int32_t thread) {
      if (thread == 1) {
        begun = true;
        while (!over) std::this_thread::yield();
        return;
      }
      while (!begun) std::this_thread::yield();
      over = others.fetch_add(1) + 1 == 39;
    });
    CHECK(others.load() == 39);
  }
}

TEST(thread_pool_rethrows_a_failure_when_all_items_were_run) {
  ThreadPool pool(3);
  for (int32_t round = 0; round < 20; ++round) {
    std::atomic<int32_t> ran{0};
    std::string said;
    try {
      pool.run_items(30, [&](int32_t item, int32_t) {
        ran.fetch_add(1);
        if (item == 11) throw std::runtime_error("item 11");
      });
    } catch (const std::runtime_error& error) {
      said = error.what();
    }
    CHECK(said == "item 11" && ran.load() == 30);
  }
  std::atomic<int32_t> ran{0};
  pool.run_items(3, [&](int32_t, int32_t) { ran.fetch_add(1); });
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
    pool.run_items(9, [](int32_t, int32_t) {});
  }
  CHECK(parks(pool));
  pool.run_items(9, [](int32_t, int32_t) {});
  CHECK(parks(pool));
}

TEST(thread_pool_sleeps_in_a_session_that_nobody_ends) {
  ThreadPool pool(3);
  ThreadPool::Session session(pool);
  pool.run_items(9, [](int32_t, int32_t) {});
  CHECK(parks(pool));
  std::atomic<int32_t> ran{0};
  pool.run_items(9, [&](int32_t, int32_t) { ran.fetch_add(1); });
  CHECK(ran.load() == 9);
}

}  // namespace
}  // namespace manyfold
