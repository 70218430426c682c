// Errors that cross native code. Callers: everything under native/. The addon turns them into JS
// errors with a code.
#pragma once

#include <stdexcept>
#include <string>

namespace manyfold {

// kInvalidArgument: the caller broke a written rule; the message says what was expected and what
// came. kUnavailable: this build or machine lacks it. kOutOfMemory: a pool or allocation is
// exhausted. kIo: a file.
enum class ErrorCode { kInvalidArgument, kUnavailable, kOutOfMemory, kIo, kBug };

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

[[noreturn]] inline void fail(ErrorCode code, const std::string& message) {
  throw Error(code, message);
}

// For rules on arguments. The message is only built on failure.
#define MF_CHECK(condition, message)                                                      \
  do {                                                                                    \
    if (!(condition)) ::manyfold::fail(::manyfold::ErrorCode::kInvalidArgument, message); \
  } while (false)

// For states that cannot be.
#define MF_ASSERT(condition)                                                                      \
  do {                                                                                            \
    if (!(condition))                                                                             \
      ::manyfold::fail(::manyfold::ErrorCode::kBug, std::string("[" __FILE__ "] ") + #condition + \
                                                        " does not hold; this is a bug");         \
  } while (false)

}  // namespace manyfold
