// The few words that native tests are written in. TEST registers a function; main (check.cpp) runs
// those whose name begins with one of its arguments (all without any) and prints how many checks
// held.
#pragma once

#include <string>

namespace manyfold::test {

struct Registration {
  Registration(const char* name, void (*run)());
};

// Counts one check; prints `what` with its place when it failed.
void record(bool held, const std::string& what, const char* file, int line);

}  // namespace manyfold::test

#define TEST(name)                                                                   \
  static void test_##name();                                                         \
  static const ::manyfold::test::Registration registered_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition) ::manyfold::test::record((condition), #condition, __FILE__, __LINE__)

// With more to say when it fails.
#define CHECK_THAT(condition, message) \
  ::manyfold::test::record((condition), (message), __FILE__, __LINE__)

// |found - expected| <= tolerance; NaN fails.
#define CHECK_CLOSE(found, expected, tolerance)                                                    \
  do {                                                                                             \
    const double found_ = (found), expected_ = (expected), difference_ = found_ - expected_;       \
    ::manyfold::test::record((difference_ < 0 ? -difference_ : difference_) <= (tolerance),        \
                             std::string(#found " is ") + std::to_string(found_) + ", expected " + \
                                 std::to_string(expected_),                                        \
                             __FILE__, __LINE__);                                                  \
  } while (false)
