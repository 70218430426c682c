// See errors.h.
#include "errors.h"

#include <new>
#include <stdexcept>

#include "../core/error.h"

namespace manyfold {

namespace {

const char* code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid_argument";
    case ErrorCode::kUnavailable:
      return "unavailable";
    case ErrorCode::kOutOfMemory:
      return "out_of_memory";
    case ErrorCode::kIo:
      return "io";
    case ErrorCode::kBug:
      return "bug";
  }
  return "bug";
}

Napi::Error make_error(Napi::Env env, ErrorCode code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Value().Set("code", Napi::String::New(env, code_name(code)));
  return error;
}

}  // namespace

Napi::Error to_js_error(Napi::Env env, const std::exception_ptr& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Napi::Error& error) {
    return error;
  } catch (const Error& error) {
    return make_error(env, error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return make_error(env, ErrorCode::kOutOfMemory,
                      "not enough memory; free some, or ask for a smaller pool or batch");
  } catch (const std::length_error&) {
    return make_error(env, ErrorCode::kOutOfMemory,
                      "a buffer beyond the address space was asked for");
  } catch (const std::exception& error) {
    return make_error(env, ErrorCode::kBug, std::string(error.what()) + "; this is a bug");
  } catch (...) {
    return make_error(env, ErrorCode::kBug, "an unknown native exception; this is a bug");
  }
}

}  // namespace manyfold
