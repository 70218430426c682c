// LoadOptions of src/native/binding-types.ts to native data.
#include "arguments.h"
#include "convert.h"

#include "../core/error.h"
#include "../model/dequant.h"

namespace manyfold {

namespace {

constexpr int32_t kMostInt = 2147483647;
constexpr int64_t kMostOffset = int64_t{1} << 53;

ModelConfig to_model(const Napi::Object& object) {
  const auto integer = [&](const char* name) {
    return to_int32(field(object, name), std::string("model.") + name, 0, kMostInt);
  };
  const auto number = [&](const char* name) {
    return to_float(field(object, name), std::string("model.") + name);
  };
  const auto boolean = [&](const char* name) {
    return to_bool(field(object, name), std::string("model.") + name);
  };
  ModelConfig model;
  model.vocab = integer("vocabSize");
  model.hidden = integer("hiddenSize");
  model.heads = integer("numHeads");
  model.kv_heads = integer("numKvHeads");
  model.head_dim = integer("headDim");
  model.ffn = integer("ffnSize");
  model.norm_eps = number("normEps");
  model.activation =
      static_cast<Activation>(to_int32(field(object, "activation"), "model.activation", 0, 1));
  model.qk_norm = boolean("qkNorm");
  model.post_norms = boolean("postNorms");
  model.tied_head = boolean("tiedHead");
  model.embed_scale = number("embedScale");
  model.attn_scale = number("attnScale");
  const std::vector<int32_t> windows = to_int32s(field(object, "layerWindow"), "model.layerWindow");
  const std::vector<int32_t> ropes = to_int32s(field(object, "layerRope"), "model.layerRope");
  MF_CHECK(windows.size() == ropes.size(),
           "model.layerRope: expected length " + std::to_string(windows.size()) +
               " as layerWindow, found " + std::to_string(ropes.size()));
  for (size_t l = 0; l < windows.size(); ++l) model.layers.push_back({windows[l], ropes[l]});
  const Napi::Array tables = to_array(field(object, "ropeInvFreq"), "model.ropeInvFreq");
  const std::vector<float> scales = to_floats(field(object, "ropeScale"), "model.ropeScale");
  MF_CHECK(tables.Length() == scales.size(),
           "model.ropeScale: expected length " + std::to_string(tables.Length()) +
               " as ropeInvFreq, found " + std::to_string(scales.size()));
  for (uint32_t t = 0; t < tables.Length(); ++t) {
    model.ropes.push_back(
        {to_floats(tables.Get(t), "model.ropeInvFreq[" + std::to_string(t) + "]"), scales[t]});
  }
  return model;
}

WeightSource to_weight(const Napi::Value& value, const std::string& path) {
  const Napi::Object object = to_object(value, path);
  const auto integer = [&](const char* name) {
    return to_int32(field(object, name), path + "." + name, 0, kMostInt);
  };
  const auto size = [&](const char* name) {
    return static_cast<uint64_t>(
        to_integer(field(object, name), path + "." + name, 0, kMostOffset));
  };
  WeightSource weight;
  weight.file = integer("file");
  weight.offset = size("offset");
  weight.byte_length = size("byteLength");
  weight.dtype = to_dtype(field(object, "dtype"), path + ".dtype");
  weight.rows = integer("rows");
  weight.cols = integer("cols");
  weight.site = to_site(field(object, "layer"), field(object, "site"), path);
  weight.part = to_part(field(object, "part"), path + ".part");
  weight.permuted_heads = integer("permutedHeads");
  weight.add = to_float(field(object, "add"), path + ".add");
  return weight;
}

}  // namespace

Dtype to_dtype(const Napi::Value& value, const std::string& path) {
  const char* names[kDtypeCount];
  for (int i = 0; i < kDtypeCount; ++i) names[i] = dtype_name(static_cast<Dtype>(i));
  return static_cast<Dtype>(to_choice(value, path, names));
}

SiteRef to_site(const Napi::Value& layer, const Napi::Value& site, const std::string& path) {
  return {to_int32(layer, path + ".layer", -1, 1 << 20),
          static_cast<Site>(to_int32(site, path + ".site", 0, kSiteCount - 1))};
}

WeightPart to_part(const Napi::Value& value, const std::string& path) {
  static constexpr const char* kParts[] = {"weight", "bias"};
  return to_choice(value, path, kParts) == 0 ? WeightPart::kWeight : WeightPart::kBias;
}

EngineOptions to_engine_options(const Napi::Value& value) {
  static constexpr const char* kTypes[] = {"f32", "bf16", "int8", "q4"};
  static constexpr WeightFormat kFormats[] = {WeightFormat::kPlain, WeightFormat::kPlain,
                                              WeightFormat::kInt8, WeightFormat::kQ4};
  static constexpr const char* kBackends[] = {"cpu", "cuda"};
  const Napi::Object object = to_object(value, "options");
  EngineOptions options;
  options.backend.model = to_model(to_object(field(object, "model"), "model"));
  const int32_t type = to_choice(field(object, "dtype"), "dtype", kTypes);
  options.backend.dtype = type == 0 ? Dtype::kF32 : Dtype::kBf16;
  options.backend.format = kFormats[type];
  static constexpr const char* kKvTypes[] = {"auto", "int8"};
  const Napi::Value kv = object.Get("kvCacheDtype");
  const bool int8_kv = !kv.IsUndefined() && to_choice(kv, "kvCacheDtype", kKvTypes) == 1;
  options.backend.kv_format = int8_kv ? KvFormat::kInt8 : KvFormat::kPlain;
  options.backend.threads = to_int32(field(object, "threads"), "threads", 0, kMostInt);
  options.backend.isa = to_text(field(object, "isa"), "isa");
  options.backend.kv_pages = to_int32(field(object, "kvPages"), "kvPages", 0, kMostInt);
  options.backend.max_rows = to_int32(field(object, "maxRows"), "maxRows", 0, kMostInt);
  options.backend.max_entries = to_int32(field(object, "maxEntries"), "maxEntries", 0, kMostInt);
  options.cuda = to_choice(field(object, "backend"), "backend", kBackends) == 1;
  const Napi::Array files = to_array(field(object, "files"), "files");
  for (uint32_t i = 0; i < files.Length(); ++i) {
    options.files.push_back(to_text(files.Get(i), "files[" + std::to_string(i) + "]"));
  }
  const Napi::Array weights = to_array(field(object, "weights"), "weights");
  for (uint32_t i = 0; i < weights.Length(); ++i) {
    options.weights.push_back(to_weight(weights.Get(i), "weights[" + std::to_string(i) + "]"));
  }
  return options;
}

}  // namespace manyfold
