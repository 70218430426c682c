// The JS class NativeEngine of src/native/binding-types.ts, and what an environment (main thread or
// worker) holds. Instances are type-tagged, so that a method called on another object throws; they
// are made by createEngine alone.
#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "engine_core.h"
#include "js_queue.h"

namespace manyfold {

// One for each environment, so that several may load the addon; freed with it. Its clean-up hook
// ends every engine's thread before JavaScript goes.
class AddonState {
 public:
  explicit AddonState(Napi::Env env);
  ~AddonState();
  static AddonState& of(Napi::Env env);

  JsQueue& queue() { return *queue_; }
  void add_engine(const std::shared_ptr<EngineCore>& core);

  Napi::FunctionReference engine_class;
  // Set for the moment in which createEngine constructs an instance; empty when anybody else tries.
  std::shared_ptr<EngineCore> under_construction;

 private:
  static void clean_up(void* state);

  napi_env env_;
  std::unique_ptr<JsQueue> queue_;
  std::vector<std::weak_ptr<EngineCore>> engines_;
};

// Defines the class for this environment.
void define_engine_class(Napi::Env env, AddonState& state);

// createEngine(options, onProgress?) of the binding.
Napi::Value create_engine(const Napi::CallbackInfo& info);

}  // namespace manyfold
