// Medians of repeated runs. On a machine that others use too, a repetition in which a thread lost
// its core tells nothing about the code: those are left out as long as enough others remain. With
// one thread (use_cpu_time) the processor time of the thread is taken instead, which is right on a
// busy machine too.
#pragma once

#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

namespace manyfold::bench {

struct Timing {
  double seconds = 0;     // median of the undisturbed repetitions
  int32_t disturbed = 0;  // repetitions that lost a core
  int32_t kept =
      0;  // repetitions in the median: the undisturbed ones, or all where those are too few
};

inline bool use_cpu_time = false;
// Seconds that the whole bench may still wait for others to leave the machine; 0: it takes the
// machine as it is.
inline double wait_budget_s = 0;

inline double seconds_of(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

inline int64_t lost_cores() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_nivcsw;
}

// Ticks of all processors spent working, and in all.
struct Ticks {
  double busy = 0, all = 0;
};
inline Ticks read_ticks() {
  std::ifstream stat("/proc/stat");
  std::string name;
  stat >> name;
  Ticks ticks;
  double value = 0;
  for (int32_t i = 0; i < 8 && stat >> value; ++i) {
    ticks.all += value;
    if (i != 3 && i != 4) ticks.busy += value;  // neither idle nor waiting for a disk
  }
  return ticks;
}

// Returns when nobody else has worked for a moment, or the budget is spent.
inline void wait_for_idle() {
  while (wait_budget_s > 0) {
    const Ticks before = read_ticks();
    const timespec moment{0, 200000000};
    nanosleep(&moment, nullptr);
    const Ticks after = read_ticks();
    if (after.busy - before.busy <= 0.06 * (after.all - before.all)) return;
    wait_budget_s -= 0.2;
  }
}

// Runs until `wanted` undisturbed repetitions are there, or for at most `limit_s`.
template <class Run>
Timing time_of(const Run& run, int32_t wanted = 11, double limit_s = 3.0) {
  const clockid_t clock = use_cpu_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
  std::vector<double> clean, all;
  run();
  const double begin = seconds_of(CLOCK_MONOTONIC);
  while (static_cast<int32_t>(clean.size()) < wanted &&
         (seconds_of(CLOCK_MONOTONIC) - begin < limit_s || all.size() < 3)) {
    if (clean.size() < all.size() || all.empty()) wait_for_idle();
    const int64_t lost = lost_cores();
    const double start = seconds_of(clock);
    run();
    all.push_back(seconds_of(clock) - start);
    if (use_cpu_time || lost_cores() == lost) clean.push_back(all.back());
  }
  std::vector<double>& use = clean.size() >= 3 ? clean : all;
  std::sort(use.begin(), use.end());
  return {use[use.size() / 2], static_cast<int32_t>(all.size() - clean.size()),
          static_cast<int32_t>(use.size())};
}

}  // namespace manyfold::bench
