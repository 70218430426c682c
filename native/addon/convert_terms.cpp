// NativeTerm of src/native/binding-types.ts to the native IR. Shapes are checked against the model
// by check_terms.
#include "arguments.h"
#include "convert.h"

namespace manyfold {

namespace {

// A missing part of a NativeTerm is undefined.
bool absent(const Napi::Value& value) {
  return value.IsUndefined();
}

TermTensor to_tensor(const Napi::Value& value, const std::string& path) {
  static constexpr const char* kTypes[] = {"f32", "f16", "bf16"};
  static constexpr Dtype kDtypes[] = {Dtype::kF32, Dtype::kF16, Dtype::kBf16};
  const Napi::Object object = to_object(value, path);
  TermTensor tensor;
  tensor.dtype = kDtypes[to_choice(field(object, "dtype"), path + ".dtype", kTypes)];
  const Napi::Array shape = to_array(field(object, "shape"), path + ".shape");
  for (uint32_t i = 0; i < shape.Length(); ++i) {
    tensor.shape.push_back(
        to_int32(shape.Get(i), path + ".shape[" + std::to_string(i) + "]", 1, 2147483647));
  }
  const napi_typedarray_type type =
      tensor.dtype == Dtype::kF32 ? napi_float32_array : napi_uint16_array;
  tensor.bytes = copy_values<uint8_t>(typed_bytes(field(object, "data"), path + ".data", type));
  return tensor;
}

std::vector<float> to_vector(const Napi::Object& term, const char* name, const std::string& path) {
  const Napi::Value value = field(term, name);
  return absent(value) ? std::vector<float>{} : to_floats(value, path + "." + name);
}

Bottleneck to_bottleneck(const Napi::Object& object, const std::string& path) {
  static constexpr const char* kActivations[] = {"identity",  "relu", "gelu",
                                                 "gelu_tanh", "silu", "tanh"};
  static constexpr const char* kPlacements[] = {"sequential", "parallel"};
  Bottleneck term;
  term.placement = static_cast<BottleneckPlacement>(
      to_choice(field(object, "placement"), path + ".placement", kPlacements));
  term.activation = static_cast<BottleneckActivation>(
      to_choice(field(object, "activation"), path + ".activation", kActivations));
  term.down = to_tensor(field(object, "first"), path + ".first");
  term.up = to_tensor(field(object, "second"), path + ".second");
  term.down_bias = to_vector(object, "vectorA", path);
  term.up_bias = to_vector(object, "vectorB", path);
  term.scale = to_float(field(object, "scale"), path + ".scale");
  return term;
}

Override to_override(const Napi::Object& object, const std::string& path) {
  Override term;
  const Napi::Value rows = field(object, "rows");
  if (!absent(rows)) term.rows = to_uint32s(rows, path + ".rows");
  term.values = to_tensor(field(object, "first"), path + ".first");
  return term;
}

Prefix to_prefix(const Napi::Object& object, const std::string& path) {
  Prefix term{to_tensor(field(object, "first"), path + ".first"),
              to_tensor(field(object, "second"), path + ".second"), std::nullopt};
  const Napi::Value gate = field(object, "gate");
  if (!absent(gate)) term.gate = to_float(gate, path + ".gate");
  return term;
}

Term to_term(const Napi::Value& value, const std::string& path) {
  static constexpr const char* kKinds[] = {"lowrank", "diag", "override", "prefix", "bottleneck"};
  const Napi::Object object = to_object(value, path);
  const SiteRef site = to_site(field(object, "layer"), field(object, "site"), path);
  switch (to_choice(field(object, "kind"), path + ".kind", kKinds)) {
    case 0:
      return {site,
              LowRank{to_tensor(field(object, "first"), path + ".first"),
                      to_tensor(field(object, "second"), path + ".second"),
                      to_float(field(object, "scale"), path + ".scale"),
                      to_vector(object, "vectorA", path), to_vector(object, "vectorB", path)}};
    case 1:
      return {site, Diag{to_vector(object, "vectorA", path), to_vector(object, "vectorB", path),
                         to_vector(object, "vectorC", path)}};
    case 2:
      return {site, to_override(object, path)};
    case 3:
      return {site, to_prefix(object, path)};
    default:
      return {site, to_bottleneck(object, path)};
  }
}

}  // namespace

TermSet to_term_set(const Napi::Value& value) {
  const Napi::Array array = to_array(value, "terms");
  TermSet terms;
  terms.reserve(array.Length());
  for (uint32_t i = 0; i < array.Length(); ++i) {
    terms.push_back(to_term(array.Get(i), "terms[" + std::to_string(i) + "]"));
  }
  return terms;
}

}  // namespace manyfold
