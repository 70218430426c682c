// Runs the native tests; see check.h.
#include "check.h"

#include <chrono>
#include <cstdio>
#include <exception>
#include <string_view>
#include <vector>

namespace manyfold::test {
namespace {

struct Case {
  const char* name;
  void (*run)();
};

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

long passed = 0, failed = 0;

bool chosen(std::string_view name, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (name.substr(0, std::string_view(argv[i]).size()) == argv[i]) return true;
  }
  return argc < 2;
}

void run(const Case& test) {
  const auto start = std::chrono::steady_clock::now();
  const long before = failed;
  try {
    test.run();
  } catch (const std::exception& error) {
    record(false, std::string("threw: ") + error.what(), test.name, 0);
  }
  const double ms =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  std::printf("%s %s (%.0f ms)\n", failed == before ? "ok  " : "FAIL", test.name, ms);
  std::fflush(stdout);
}

}  // namespace

Registration::Registration(const char* name, void (*run)()) {
  cases().push_back({name, run});
}

void record(bool held, const std::string& what, const char* file, int line) {
  if (held) {
    ++passed;
    return;
  }
  // A broken kernel fails thousands of times; the first ones tell enough.
  if (++failed <= 40) std::printf("%s:%d: %s\n", file, line, what.c_str());
}

}  // namespace manyfold::test

int main(int argc, char** argv) {
  using namespace manyfold::test;
  int ran = 0;
  for (const Case& test : cases()) {
    if (!chosen(test.name, argc, argv)) continue;
    run(test);
    ++ran;
  }
  std::printf("%ld passed, %ld failed\n", passed, failed);
  return failed > 0 || ran == 0 ? 1 : 0;
}
