// The one way from native threads back to JavaScript: promises that are open, and the queue that
// settles them on the JS thread. One for each environment (main thread or worker). Native threads
// know a promise by number only, so no JS reference is ever touched, or dropped, off the JS thread.
#pragma once

#include <napi.h>

#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

namespace manyfold {

class JsQueue {
 public:
  struct Open {
    Napi::Promise::Deferred deferred;
    Napi::ObjectReference keep_alive;     // not collected while the promise is open
    Napi::FunctionReference on_progress;  // (done, total) => void
    std::function<void()> on_settle;      // on the JS thread, before the promise settles
    std::shared_ptr<void> owned;          // native data that must be dropped on the JS thread
    std::optional<Napi::Error> thrown;    // by on_progress: the promise rejects with it
  };
  // Makes the value that a promise resolves with. Runs on the JS thread; holds native data only, of
  // no owner above.
  using MakeValue = std::function<Napi::Value(Napi::Env, const Open&)>;

  explicit JsQueue(Napi::Env env);
  JsQueue(const JsQueue&) = delete;
  JsQueue& operator=(const JsQueue&) = delete;

  // JS thread. While a promise is open the event loop stays alive.
  uint64_t open(Open&& promise);

  // Any thread. Exactly one settle for each open; `error` null means success.
  void settle(uint64_t id, MakeValue make_value, std::exception_ptr error);
  void progress(uint64_t id, double done, double total);

  // JS thread, when no native thread can call any more. Open promises are forgotten.
  void close();

 private:
  struct Message;
  static void call_js(napi_env env, napi_value function, void* context, void* data);
  void post(Message* message);
  void run_progress(Napi::Env env, const Message& message);
  void run_settle(Napi::Env env, const Message& message);

  napi_env env_;
  napi_threadsafe_function function_ = nullptr;
  std::unordered_map<uint64_t, Open> open_;
  uint64_t last_id_ = 0;
};

}  // namespace manyfold
