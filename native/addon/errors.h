// Native errors as JS errors. Callers: every file of the addon that meets JS.
#pragma once

#include <napi.h>

#include <exception>

namespace manyfold {

// An Error with a `code`: 'invalid_argument', 'unavailable', 'out_of_memory', 'io' or 'bug'.
Napi::Error to_js_error(Napi::Env env, const std::exception_ptr& thrown);

// Runs the body of a native function; what it throws becomes the pending JS exception. Nothing is
// thrown to C code, also while the environment ends and exceptions cannot be made any more.
template <typename Body>
napi_value guarded(napi_env env, Body&& body) noexcept {
  try {
    try {
      return body();
    } catch (const Napi::Error& error) {
      error.ThrowAsJavaScriptException();
    } catch (...) {
      to_js_error(env, std::current_exception()).ThrowAsJavaScriptException();
    }
  } catch (...) {
    return nullptr;  // a worker that is being terminated: no JS will see a result
  }
  return nullptr;
}

}  // namespace manyfold
