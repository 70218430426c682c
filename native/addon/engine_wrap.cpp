// See engine_wrap.h.
#include "engine_wrap.h"

#include <algorithm>

#include "../core/error.h"
#include "arguments.h"
#include "errors.h"

namespace manyfold {

namespace {

// Random, so that no other addon's tag is equal.
constexpr napi_type_tag kEngineTag = {0x6d3f8a1b52c94e07, 0x9b1d5e7f30a2c846};

// What an instance wraps.
struct EngineHandle {
  std::shared_ptr<EngineCore> core;
  OwnedPlan plan;  // of the step that runs
  bool stepping = false;
};

EngineCore& alive(EngineHandle& handle) {
  if (handle.core->disposed())
    fail(ErrorCode::kUnavailable, "the engine is disposed; make a new one with createEngine");
  return *handle.core;
}

// The engine behind `this`, or a thrown sentence when a method was borrowed onto another object.
EngineHandle& unwrap(const Napi::CallbackInfo& info) {
  const napi_value self = info.This();
  bool tagged = false;
  if (info.This().IsObject()) napi_check_object_type_tag(info.Env(), self, &kEngineTag, &tagged);
  MF_CHECK(tagged,
           "illegal invocation: expected `this` to be an engine made by createEngine, found " +
               describe(info.This()));
  void* data = nullptr;
  if (napi_unwrap(info.Env(), self, &data) != napi_ok) throw Napi::Error::New(info.Env());
  return *static_cast<EngineHandle*>(data);
}

// Opens a promise that keeps the engine's object, runs `work` on the engine's thread and resolves
// with what it returns. `work` and its result hold native data only.
template <typename Work>
Napi::Value run_on_engine(const Napi::CallbackInfo& info, EngineCore& core,
                          std::function<void()> on_settle, Work work) {
  JsQueue& queue = AddonState::of(info.Env()).queue();
  JsQueue::Open open{Napi::Promise::Deferred::New(info.Env()),
                     Napi::Persistent(info.This().As<Napi::Object>()),
                     {},
                     std::move(on_settle),
                     {},
                     {}};
  const Napi::Promise promise = open.deferred.Promise();
  const uint64_t id = queue.open(std::move(open));
  core.thread().post([&queue, id, work = std::move(work)]() mutable {
    JsQueue::MakeValue make_value;
    std::exception_ptr error;
    try {
      make_value = work();
    } catch (...) {
      error = std::current_exception();
    }
    queue.settle(id, std::move(make_value), std::move(error));
  });
  return promise;
}

Napi::Value step(const Napi::CallbackInfo& info) {
  EngineHandle& handle = unwrap(info);
  EngineCore& core = alive(handle);
  if (handle.stepping)
    fail(ErrorCode::kInvalidArgument, "step: expected one at a time, found a step that still runs");
  handle.plan.assign(info[0]);
  // Only after run_on_engine nothing can throw any more, so the flag cannot stay up.
  const Napi::Value promise = run_on_engine(
      info, core, [&handle] { handle.stepping = false; },
      [&core, &handle]() -> JsQueue::MakeValue {
        auto result = std::make_shared<StepResult>();
        core.step(handle.plan.plan(), *result);
        return [result](Napi::Env env, const JsQueue::Open&) { return from_result(env, *result); };
      });
  handle.stepping = true;
  return promise;
}

Napi::Value load_terms(const Napi::CallbackInfo& info) {
  EngineHandle& handle = unwrap(info);
  EngineCore& core = alive(handle);
  auto terms = std::make_shared<TermSet>(to_term_set(info[0]));
  return run_on_engine(info, core, {}, [&core, terms]() -> JsQueue::MakeValue {
    const TermHandle loaded = core.load_terms(std::move(*terms));
    return [loaded](Napi::Env env, const JsQueue::Open&) { return Napi::Number::New(env, loaded); };
  });
}

Napi::Value free_terms(const Napi::CallbackInfo& info) {
  EngineHandle& handle = unwrap(info);
  EngineCore& core = alive(handle);
  const TermHandle terms = to_int32(info[0], "handle", 1, 2147483647);
  const std::span<const int32_t> used = handle.plan.plan().term_sets;
  MF_CHECK(
      !handle.stepping || std::find(used.begin(), used.end(), terms) == used.end(),
      "handle: expected one that the running step does not use, found " + std::to_string(terms));
  core.free_terms(terms);
  return info.Env().Undefined();
}

Napi::Value read_weight(const Napi::CallbackInfo& info) {
  EngineCore& core = alive(unwrap(info));
  const SiteRef site = to_site(info[0], info[1], "readWeight");
  const WeightPart part = to_part(info[2], "part");
  const int32_t row0 = to_int32(info[3], "row0", 0, 2147483647);
  const int32_t count = to_int32(info[4], "rowCount", 0, 2147483647);
  return from_floats(info.Env(), core.read_weight(site, part, row0, count));
}

Napi::Value counters(const Napi::CallbackInfo& info) {
  return from_counters(info.Env(), alive(unwrap(info)).snapshot().counters);
}

Napi::Value engine_info(const Napi::CallbackInfo& info) {
  const EngineSnapshot snapshot = alive(unwrap(info)).snapshot();
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("isa", snapshot.backend.isa);
  object.Set("threads", snapshot.backend.threads);
  object.Set("weightBytes", static_cast<double>(snapshot.weight_bytes));
  object.Set("kvBytes", static_cast<double>(snapshot.backend.kv_bytes));
  object.Set("pageBytes", static_cast<double>(snapshot.backend.page_bytes));
  object.Set("termSets", snapshot.term_sets);
  object.Set("termBytes", static_cast<double>(snapshot.term_bytes));
  return object;
}

Napi::Value dispose(const Napi::CallbackInfo& info) {
  unwrap(info).core->dispose();
  return info.Env().Undefined();
}

// A method as C sees it. node-addon-api's own ObjectWrap would unwrap `this` before its type tag
// can be looked at.
template <Napi::Value (*method)(const Napi::CallbackInfo&)>
napi_value method_callback(napi_env env, napi_callback_info info) {
  return guarded(env, [&]() -> napi_value { return method(Napi::CallbackInfo(env, info)); });
}

napi_value construct(napi_env env, napi_callback_info raw_info) {
  return guarded(env, [&]() -> napi_value {
    const Napi::CallbackInfo info(env, raw_info);
    std::shared_ptr<EngineCore> core = std::move(AddonState::of(env).under_construction);
    if (core == nullptr || !info.IsConstructCall()) {
      fail(ErrorCode::kInvalidArgument, "illegal constructor: engines are made by createEngine");
    }
    auto handle = std::make_unique<EngineHandle>();
    handle->core = std::move(core);
    const auto finalize = [](napi_env, void* data, void*) {
      delete static_cast<EngineHandle*>(data);
    };
    if (napi_wrap(env, info.This(), handle.get(), finalize, nullptr, nullptr) != napi_ok)
      throw Napi::Error::New(env);
    handle.release();  // the object owns it now
    if (napi_type_tag_object(env, info.This(), &kEngineTag) != napi_ok) throw Napi::Error::New(env);
    return info.This();
  });
}

// Wraps the engine that the promise of createEngine owns.
Napi::Value make_engine_object(Napi::Env env, const JsQueue::Open& promise) {
  AddonState& state = AddonState::of(env);
  state.under_construction = std::static_pointer_cast<EngineCore>(promise.owned);
  try {
    return state.engine_class.New(std::initializer_list<napi_value>{});
  } catch (...) {
    state.under_construction.reset();
    throw;
  }
}

}  // namespace

AddonState::AddonState(Napi::Env env) : env_(env), queue_(std::make_unique<JsQueue>(env)) {
  // After the queue was made: hooks run in reverse, so threads end while the queue still takes
  // their messages.
  napi_add_env_cleanup_hook(env, clean_up, this);
}

AddonState::~AddonState() = default;

AddonState& AddonState::of(Napi::Env env) {
  return *env.GetInstanceData<AddonState>();
}

void AddonState::add_engine(const std::shared_ptr<EngineCore>& core) {
  std::erase_if(engines_, [](const std::weak_ptr<EngineCore>& engine) { return engine.expired(); });
  engines_.push_back(core);
}

void AddonState::clean_up(void* data) {
  AddonState& state = *static_cast<AddonState*>(data);
  for (const std::weak_ptr<EngineCore>& engine : state.engines_) {
    if (const std::shared_ptr<EngineCore> core = engine.lock()) core->dispose();
  }
  state.queue_->close();
}

void define_engine_class(Napi::Env env, AddonState& state) {
  const auto method = [](const char* name, napi_callback callback) {
    return napi_property_descriptor{
        name, nullptr, callback, nullptr, nullptr, nullptr, napi_default_method, nullptr};
  };
  const std::vector<napi_property_descriptor> methods = {
      method("step", method_callback<step>),
      method("loadTerms", method_callback<load_terms>),
      method("freeTerms", method_callback<free_terms>),
      method("readWeight", method_callback<read_weight>),
      method("counters", method_callback<counters>),
      method("info", method_callback<engine_info>),
      method("dispose", method_callback<dispose>),
  };
  napi_value constructor = nullptr;
  const napi_status status =
      napi_define_class(env, "NativeEngine", NAPI_AUTO_LENGTH, construct, nullptr, methods.size(),
                        methods.data(), &constructor);
  if (status != napi_ok) throw Napi::Error::New(env);
  state.engine_class = Napi::Persistent(Napi::Function(env, constructor));
}

Napi::Value create_engine(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  AddonState& state = AddonState::of(env);
  JsQueue& queue = state.queue();
  MF_CHECK(info[1].IsUndefined() || info[1].IsFunction(),
           "onProgress: expected a function or undefined, found " + describe(info[1]));
  auto core = std::make_shared<EngineCore>(to_engine_options(info[0]));
  state.add_engine(core);
  JsQueue::Open open{Napi::Promise::Deferred::New(env), {}, {}, {}, core, {}};
  if (info[1].IsFunction()) open.on_progress = Napi::Persistent(info[1].As<Napi::Function>());
  // The promise owns the engine until its object does: the last owner is always on the JS thread.
  const Napi::Promise promise = open.deferred.Promise();
  const uint64_t id = queue.open(std::move(open));
  EngineCore& engine = *core;
  engine.thread().post([&engine, &queue, id] {
    std::exception_ptr error;
    try {
      uint64_t told = 0;
      engine.load([&](uint64_t done, uint64_t total) {
        if (done != total && done - told < total / 10) return;
        told = done;
        queue.progress(id, static_cast<double>(done), static_cast<double>(total));
      });
    } catch (...) {
      error = std::current_exception();
    }
    queue.settle(id, make_engine_object, std::move(error));
  });
  return promise;
}

}  // namespace manyfold
