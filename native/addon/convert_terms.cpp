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
  static constexpr const char* kTypes[] = {"f32", "f16", "bf16", "int8", "ternary"};
  static constexpr Dtype kDtypes[] = {Dtype::kF32, Dtype::kF16, Dtype::kBf16};
  const Napi::Object object = to_object(value, path);
  TermTensor tensor;
  const int32_t dtype = to_choice(field(object, "dtype"), path + ".dtype", kTypes);
  const Napi::Array shape = to_array(field(object, "shape"), path + ".shape");
  for (uint32_t i = 0; i < shape.Length(); ++i) {
    tensor.shape.push_back(
        to_int32(shape.Get(i), path + ".shape[" + std::to_string(i) + "]", 1, 2147483647));
  }
  const Napi::Value shared = field(object, "shared");
  if (!absent(shared)) tensor.shared = to_text(shared, path + ".shared");
  if (dtype == 4) {
    tensor.codec = Codec::kTernary;
    tensor.positive = to_uint32s(field(object, "positive"), path + ".positive");
    tensor.negative = to_uint32s(field(object, "negative"), path + ".negative");
    tensor.scales = {to_float(field(object, "scale"), path + ".scale")};
    return tensor;
  }
  napi_typedarray_type type = napi_int8_array;
  if (dtype == 3) {
    tensor.codec = Codec::kInt8;
    tensor.scales = to_floats(field(object, "scales"), path + ".scales");
  } else {
    tensor.dtype = kDtypes[dtype];
    type = tensor.dtype == Dtype::kF32 ? napi_float32_array : napi_uint16_array;
  }
  tensor.bytes = copy_values<uint8_t>(typed_bytes(field(object, "data"), path + ".data", type));
  return tensor;
}

std::vector<float> to_vector(const Napi::Object& term, const char* name, const std::string& path) {
  const Napi::Value value = field(term, name);
  return absent(value) ? std::vector<float>{} : to_floats(value, path + "." + name);
}

// A list of indices of an object; empty when it is absent.
std::vector<uint32_t> to_indices(const Napi::Object& object, const char* name,
                                 const std::string& path) {
  const Napi::Value value = field(object, name);
  return absent(value) ? std::vector<uint32_t>{} : to_uint32s(value, path + "." + name);
}

LowRank to_lowrank(const Napi::Object& object, const std::string& path) {
  LowRank term;
  term.a = to_tensor(field(object, "first"), path + ".first");
  term.b = to_tensor(field(object, "second"), path + ".second");
  term.scale = to_float(field(object, "scale"), path + ".scale");
  term.mid = to_vector(object, "vectorA", path);
  term.out_diag = to_vector(object, "vectorB", path);
  const Napi::Value matrix = field(object, "third");
  if (!absent(matrix)) term.mid_matrix = to_tensor(matrix, path + ".third");
  return term;
}

RowCol to_rowcol(const Napi::Object& object, const std::string& path) {
  static constexpr const char* kSides[] = {"in", "out"};
  RowCol term;
  term.side =
      static_cast<RowColSide>(to_choice(field(object, "placement"), path + ".placement", kSides));
  term.index = to_indices(object, "rows", path);
  term.values = to_tensor(field(object, "first"), path + ".first");
  term.scale = to_float(field(object, "scale"), path + ".scale");
  return term;
}

Sparse to_sparse(const Napi::Object& object, const std::string& path) {
  return {to_indices(object, "rowStart", path), to_indices(object, "rows", path),
          to_tensor(field(object, "first"), path + ".first"),
          to_float(field(object, "scale"), path + ".scale")};
}

BlockDiag to_blockdiag(const Napi::Object& object, const std::string& path) {
  static constexpr const char* kPlacements[] = {"pre", "post", "additive"};
  BlockDiag term;
  term.placement = static_cast<BlockPlacement>(
      to_choice(field(object, "placement"), path + ".placement", kPlacements));
  const Napi::Array stages = to_array(field(object, "stages"), path + ".stages");
  for (uint32_t i = 0; i < stages.Length(); ++i) {
    const std::string stage_path = path + ".stages[" + std::to_string(i) + "]";
    const Napi::Object stage = to_object(stages.Get(i), stage_path);
    term.stages.push_back({to_indices(stage, "gather", stage_path),
                           to_tensor(field(stage, "blocks"), stage_path + ".blocks")});
  }
  term.output = to_indices(object, "rows", path);
  term.scale = to_float(field(object, "scale"), path + ".scale");
  return term;
}

Bottleneck to_bottleneck(const Napi::Object& object, const std::string& path) {
  static constexpr const char* kActivations[] = {"identity",  "relu", "gelu",
                                                 "gelu_tanh", "silu", "tanh"};
  static constexpr const char* kPlacements[] = {"sequential", "parallel", "sum", "residual"};
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
  const Napi::Value norm = field(object, "norm");
  if (!absent(norm)) {
    const Napi::Object values = to_object(norm, path + ".norm");
    term.norm = {to_floats(field(values, "weight"), path + ".norm.weight"),
                 to_floats(field(values, "bias"), path + ".norm.bias"),
                 to_float(field(values, "eps"), path + ".norm.eps")};
  }
  return term;
}

Override to_override(const Napi::Object& object, const std::string& path) {
  Override term;
  term.rows = to_indices(object, "rows", path);
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
  static constexpr const char* kKinds[] = {"lowrank",    "diag",   "override", "prefix",
                                           "bottleneck", "rowcol", "sparse",   "blockdiag"};
  const Napi::Object object = to_object(value, path);
  const SiteRef site = to_site(field(object, "layer"), field(object, "site"), path);
  switch (to_choice(field(object, "kind"), path + ".kind", kKinds)) {
    case 0:
      return {site, to_lowrank(object, path)};
    case 1:
      return {site, Diag{to_vector(object, "vectorA", path), to_vector(object, "vectorB", path),
                         to_vector(object, "vectorC", path)}};
    case 2:
      return {site, to_override(object, path)};
    case 3:
      return {site, to_prefix(object, path)};
    case 4:
      return {site, to_bottleneck(object, path)};
    case 5:
      return {site, to_rowcol(object, path)};
    case 6:
      return {site, to_sparse(object, path)};
    default:
      return {site, to_blockdiag(object, path)};
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
