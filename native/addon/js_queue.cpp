// See js_queue.h.
#include "js_queue.h"

#include "../core/error.h"
#include "errors.h"

namespace manyfold {

struct JsQueue::Message {
  uint64_t id;
  bool settles;
  JsQueue::MakeValue make_value;
  std::exception_ptr error;
  double done = 0, total = 0;
};

JsQueue::JsQueue(Napi::Env env) : env_(env) {
  const napi_value name = Napi::String::New(env, "manyfold");
  const napi_status status = napi_create_threadsafe_function(
      env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, call_js, &function_);
  if (status != napi_ok) throw Napi::Error::New(env);
  napi_unref_threadsafe_function(env, function_);  // an idle engine does not keep the process alive
}

uint64_t JsQueue::open(Open&& promise) {
  if (open_.empty()) napi_ref_threadsafe_function(env_, function_);
  open_.emplace(++last_id_, std::move(promise));
  return last_id_;
}

void JsQueue::settle(uint64_t id, MakeValue make_value, std::exception_ptr error) {
  post(new Message{id, true, std::move(make_value), std::move(error)});
}

void JsQueue::progress(uint64_t id, double done, double total) {
  post(new Message{id, false, nullptr, nullptr, done, total});
}

void JsQueue::post(Message* message) {
  // Refused only after close(), when nobody waits for the message.
  if (napi_call_threadsafe_function(function_, message, napi_tsfn_nonblocking) != napi_ok)
    delete message;
}

void JsQueue::close() {
  open_.clear();
  napi_release_threadsafe_function(function_, napi_tsfn_abort);
}

void JsQueue::call_js(napi_env env, napi_value, void* context, void* data) {
  const std::unique_ptr<Message> message(static_cast<Message*>(data));
  // A null environment means that it ended with this message still queued; the context is gone
  // then.
  if (env == nullptr) return;
  guarded(env, [&]() -> napi_value {
    JsQueue& queue = *static_cast<JsQueue*>(context);
    if (message->settles) {
      queue.run_settle(env, *message);
    } else {
      queue.run_progress(env, *message);
    }
    return nullptr;
  });
}

void JsQueue::run_progress(Napi::Env env, const Message& message) {
  const auto place = open_.find(message.id);
  if (place == open_.end() || place->second.on_progress.IsEmpty() || place->second.thrown) return;
  try {
    place->second.on_progress.Call(
        {Napi::Number::New(env, message.done), Napi::Number::New(env, message.total)});
  } catch (const Napi::Error& error) {
    // The callback may have opened promises, so the place is looked up again.
    const auto again = open_.find(message.id);
    if (again != open_.end()) again->second.thrown = error;
  }
}

void JsQueue::run_settle(Napi::Env env, const Message& message) {
  const auto place = open_.find(message.id);
  MF_ASSERT(place != open_.end());
  Open promise = std::move(place->second);
  open_.erase(place);
  if (open_.empty()) napi_unref_threadsafe_function(env_, function_);
  if (promise.on_settle) promise.on_settle();
  if (message.error) {
    promise.deferred.Reject(to_js_error(env, message.error).Value());
    return;
  }
  if (promise.thrown) {
    promise.deferred.Reject(promise.thrown->Value());
    return;
  }
  Napi::Value value;
  try {
    value = message.make_value(env, promise);
  } catch (...) {
    promise.deferred.Reject(to_js_error(env, std::current_exception()).Value());
    return;
  }
  promise.deferred.Resolve(value);
}

}  // namespace manyfold
