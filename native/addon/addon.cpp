// The addon's table of contents: what `require` gives, exactly NativeBinding of
// src/native/binding-types.ts.
#include <napi.h>

#include <sched.h>

#include <algorithm>
#include <thread>

#include "../core/backend.h"
#include "../core/step.h"
#include "../model/dequant.h"
#include "arguments.h"
#include "convert.h"
#include "engine_wrap.h"
#include "errors.h"

namespace manyfold {

namespace {

// Cores that this process may run on.
int32_t core_count() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  return static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
}

Napi::Value info(const Napi::CallbackInfo& call) {
  const Napi::Env env = call.Env();
  Napi::Array backends = Napi::Array::New(env);
  backends.Set(0u, "cpu");
  if (has_cuda_backend()) backends.Set(1u, "cuda");
  Napi::Array isas = Napi::Array::New(env);
  for (const std::string& isa : cpu_isas()) isas.Set(isas.Length(), isa);
  Napi::Object object = Napi::Object::New(env);
  object.Set("version", MANYFOLD_VERSION);
  object.Set("backends", backends);
  object.Set("isas", isas);
  object.Set("pageTokens", kPageTokens);
  object.Set("cores", core_count());
  return object;
}

Napi::Value dequantize_values(const Napi::CallbackInfo& call) {
  const Dtype dtype = to_dtype(call[0], "dtype");
  const std::vector<uint8_t> bytes = to_uint8s(call[1], "bytes");
  std::vector<float> values(static_cast<size_t>(to_integer(call[2], "count", 0, 1 << 30)));
  dequantize(dtype, bytes.data(), bytes.size(), values.size(), values.data());
  return from_floats(call.Env(), values);
}

template <Napi::Value (*function)(const Napi::CallbackInfo&)>
napi_value callback(napi_env env, napi_callback_info call) {
  return guarded(env, [&]() -> napi_value { return function(Napi::CallbackInfo(env, call)); });
}

template <Napi::Value (*function)(const Napi::CallbackInfo&)>
void add_function(Napi::Object& exports, const char* name) {
  napi_value value = nullptr;
  const Napi::Env env = exports.Env();
  if (napi_create_function(env, name, NAPI_AUTO_LENGTH, callback<function>, nullptr, &value) !=
      napi_ok) {
    throw Napi::Error::New(env);
  }
  exports.Set(name, value);
}

}  // namespace

static Napi::Object init_addon(Napi::Env env, Napi::Object exports) {
  auto* state = new AddonState(env);
  env.SetInstanceData(state);
  define_engine_class(env, *state);
  add_function<info>(exports, "info");
  add_function<create_engine>(exports, "createEngine");
  add_function<dequantize_values>(exports, "dequantize");
  return exports;
}

NODE_API_MODULE(manyfold, init_addon)

}  // namespace manyfold
