// Conversions between the JS shapes of src/native/binding-types.ts and native data, in both
// directions. JS thread only.
#pragma once

#include <napi.h>

#include <array>
#include <string>
#include <vector>

#include "../core/backend.h"
#include "../model/weight_loader.h"

namespace manyfold {

// Everything of LoadOptions.
struct EngineOptions {
  BackendOptions backend;
  bool cuda = false;
  std::vector<std::string> files;
  std::vector<WeightSource> weights;
};
EngineOptions to_engine_options(const Napi::Value& value);

// A copy of a NativePlan, so that JS may do what it likes with its arrays while the step runs.
// `plan` points into the other members; used again step after step.
class OwnedPlan {
 public:
  // Types are checked here; lengths and values by check_plan.
  void assign(const Napi::Value& value);
  const StepPlan& plan() const { return plan_; }

 private:
  static constexpr size_t kIntFields = 20;
  static constexpr size_t kFloatFields = 4;
  static constexpr size_t kUintFields = 2;
  std::array<std::vector<int32_t>, kIntFields> ints_;
  std::array<std::vector<float>, kFloatFields> floats_;
  std::array<std::vector<uint32_t>, kUintFields> uints_;
  std::vector<uint8_t> run_kind_;
  StepPlan plan_;
};

TermSet to_term_set(const Napi::Value& value);

Dtype to_dtype(const Napi::Value& value, const std::string& path);
SiteRef to_site(const Napi::Value& layer, const Napi::Value& site, const std::string& path);
WeightPart to_part(const Napi::Value& value, const std::string& path);

Napi::Value from_result(Napi::Env env, const StepResult& result);
Napi::Value from_counters(Napi::Env env, const Counters& counters);
Napi::Float32Array from_floats(Napi::Env env, const std::vector<float>& values);

}  // namespace manyfold
