// NativePlan, NativeResult and NativeCounters of src/native/binding-types.ts.
#include "arguments.h"
#include "convert.h"

#include <cstring>

namespace manyfold {

namespace {

template <typename T>
struct PlanField {
  const char* name;
  std::span<const T> StepPlan::* field;
};

constexpr std::array<PlanField<int32_t>, 20> kInts = {{
    {"rowSequence", &StepPlan::row_sequence},
    {"rowPosition", &StepPlan::row_position},
    {"rowToken", &StepPlan::row_token},
    {"rowTerms", &StepPlan::row_terms},
    {"rowGate", &StepPlan::row_gate},
    {"sequenceBase", &StepPlan::sequence_base},
    {"sequenceRuns", &StepPlan::sequence_runs},
    {"runRef", &StepPlan::run_ref},
    {"runTokens", &StepPlan::run_tokens},
    {"pages", &StepPlan::pages},
    {"termSets", &StepPlan::term_sets},
    {"entryRow", &StepPlan::entry_row},
    {"entryTarget", &StepPlan::entry_target},
    {"entryTopLogprobs", &StepPlan::entry_top_logprobs},
    {"entryBias", &StepPlan::entry_bias},
    {"biasIds", &StepPlan::bias_ids},
    {"entryHistory", &StepPlan::entry_history},
    {"historyIds", &StepPlan::history_ids},
    {"historyCounts", &StepPlan::history_counts},
    {"entryMask", &StepPlan::entry_mask},
}};
constexpr std::array<PlanField<float>, 4> kFloats = {{
    {"rankGates", &StepPlan::rank_gates},
    {"embeddings", &StepPlan::embeddings},
    {"entryParams", &StepPlan::entry_params},
    {"biasValues", &StepPlan::bias_values},
}};
constexpr std::array<PlanField<uint32_t>, 2> kUints = {{
    {"entrySeed", &StepPlan::entry_seed},
    {"masks", &StepPlan::masks},
}};

template <typename Fields, typename Storage>
void assign_fields(const Napi::Object& object, const Fields& fields, napi_typedarray_type type,
                   Storage& storage, StepPlan& plan) {
  for (size_t i = 0; i < fields.size(); ++i) {
    auto& values = storage[i];
    const std::span<const uint8_t> bytes =
        typed_bytes(field(object, fields[i].name), fields[i].name, type);
    values.resize(bytes.size() / sizeof(values[0]));
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
    plan.*(fields[i].field) = values;
  }
}

template <typename Array, typename T>
Array from_values(Napi::Env env, const std::vector<T>& values) {
  Array array = Array::New(env, values.size());
  if (!values.empty()) std::memcpy(array.Data(), values.data(), values.size() * sizeof(T));
  return array;
}

}  // namespace

void OwnedPlan::assign(const Napi::Value& value) {
  static_assert(kInts.size() == kIntFields && kFloats.size() == kFloatFields &&
                kUints.size() == kUintFields);
  const Napi::Object object = to_object(value, "plan");
  plan_ = {};
  assign_fields(object, kInts, napi_int32_array, ints_, plan_);
  assign_fields(object, kFloats, napi_float32_array, floats_, plan_);
  assign_fields(object, kUints, napi_uint32_array, uints_, plan_);
  run_kind_ = to_uint8s(field(object, "runKind"), "runKind");
  plan_.run_kind = run_kind_;
  plan_.gate_width = to_int32(field(object, "gateWidth"), "gateWidth", 0, 2147483647);
}

Napi::Float32Array from_floats(Napi::Env env, const std::vector<float>& values) {
  return from_values<Napi::Float32Array>(env, values);
}

Napi::Value from_result(Napi::Env env, const StepResult& result) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("tokens", from_values<Napi::Int32Array>(env, result.tokens));
  object.Set("logprobs", from_floats(env, result.logprobs));
  object.Set("ranks", from_values<Napi::Int32Array>(env, result.ranks));
  object.Set("topIds", from_values<Napi::Int32Array>(env, result.top_ids));
  object.Set("topLogprobs", from_floats(env, result.top_logprobs));
  object.Set("rawLogits", from_floats(env, result.raw_logits));
  object.Set("stepNs", static_cast<double>(result.step_ns));
  return object;
}

Napi::Value from_counters(Napi::Env env, const Counters& counters) {
  const auto number = [env](int64_t value) {
    return Napi::Number::New(env, static_cast<double>(value));
  };
  Napi::Object object = Napi::Object::New(env);
  object.Set("steps", number(counters.steps));
  object.Set("rows", number(counters.rows));
  object.Set("baseLinearReads", number(counters.base_linear_reads));
  object.Set("baseBytesRead", number(counters.base_bytes_read));
  object.Set("termReads", number(counters.term_reads));
  object.Set("termBytesRead", number(counters.term_bytes_read));
  object.Set("singleRowTiles", number(counters.single_row_tiles));
  object.Set("multiRowTiles", number(counters.multi_row_tiles));
  return object;
}

}  // namespace manyfold
