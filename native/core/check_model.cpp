// See check_model.h. Fields are named as in NativeModelConfig of src/native/binding-types.ts.
#include "check_model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "error.h"

namespace manyfold {

namespace {

// Above every model there is; keeps each product of two sizes and of a size with an index far from
// overflow.
constexpr int32_t kMostSize = 1 << 24;
constexpr size_t kMostLayers = 4096;
constexpr int32_t kMostRows = 1 << 20;
constexpr double kMostKvBytes = 4e12;

void check_size(const char* field, int32_t value) {
  MF_CHECK(value >= 1 && value <= kMostSize, std::string(field) + ": expected 1 to " +
                                                 std::to_string(kMostSize) + ", found " +
                                                 std::to_string(value));
}

void check_finite(const char* field, float value) {
  MF_CHECK(std::isfinite(value),
           std::string(field) + ": expected a finite number, found " + std::to_string(value));
}

void check_product(const char* what, int64_t product) {
  MF_CHECK(
      product <= std::numeric_limits<int32_t>::max(),
      std::string(what) + ": expected fewer than 2^31 values, found " + std::to_string(product));
}

}  // namespace

void check_model(const ModelConfig& model) {
  check_size("vocabSize", model.vocab);
  check_size("hiddenSize", model.hidden);
  check_size("numHeads", model.heads);
  check_size("numKvHeads", model.kv_heads);
  check_size("headDim", model.head_dim);
  check_size("ffnSize", model.ffn);
  MF_CHECK(model.heads % model.kv_heads == 0, "numKvHeads: expected a divisor of numHeads " +
                                                  std::to_string(model.heads) + ", found " +
                                                  std::to_string(model.kv_heads));
  MF_CHECK(model.head_dim % 2 == 0,
           "headDim: expected an even number, found " + std::to_string(model.head_dim));
  const int64_t q_width = static_cast<int64_t>(model.heads) * model.head_dim;
  MF_CHECK(q_width <= kMostSize, "numHeads times headDim: expected at most " +
                                     std::to_string(kMostSize) + ", found " +
                                     std::to_string(q_width));
  check_product("vocabSize times hiddenSize", static_cast<int64_t>(model.vocab) * model.hidden);
  check_product("ffnSize times hiddenSize", static_cast<int64_t>(model.ffn) * model.hidden);
  check_product("numHeads times headDim times hiddenSize", q_width * model.hidden);
  check_finite("embedScale", model.embed_scale);
  check_finite("attnScale", model.attn_scale);
  MF_CHECK(
      std::isfinite(model.norm_eps) && model.norm_eps >= 0,
      "normEps: expected a finite number of at least 0, found " + std::to_string(model.norm_eps));
  MF_CHECK(!model.layers.empty() && model.layers.size() <= kMostLayers,
           "layerWindow: expected 1 to " + std::to_string(kMostLayers) + " layers, found " +
               std::to_string(model.layers.size()));
  for (size_t l = 0; l < model.layers.size(); ++l) {
    const std::string at = "[" + std::to_string(l) + "]";
    MF_CHECK(model.layers[l].window >= 0, "layerWindow" + at + ": expected at least 0, found " +
                                              std::to_string(model.layers[l].window));
    MF_CHECK(
        model.layers[l].rope >= 0 && static_cast<size_t>(model.layers[l].rope) < model.ropes.size(),
        "layerRope" + at + ": expected an index into " + std::to_string(model.ropes.size()) +
            " rope tables, found " + std::to_string(model.layers[l].rope));
  }
  for (size_t t = 0; t < model.ropes.size(); ++t) {
    const std::string at = "[" + std::to_string(t) + "]";
    MF_CHECK(model.ropes[t].inv_freq.size() == static_cast<size_t>(model.head_dim / 2),
             "ropeInvFreq" + at + ": expected length " + std::to_string(model.head_dim / 2) +
                 ", found " + std::to_string(model.ropes[t].inv_freq.size()));
    for (const float f : model.ropes[t].inv_freq) check_finite("ropeInvFreq", f);
    check_finite("ropeScale", model.ropes[t].scale);
  }
}

void check_options(const BackendOptions& options) {
  check_model(options.model);
  MF_CHECK(options.dtype == Dtype::kF32 || options.dtype == Dtype::kBf16,
           "dtype: expected f32 or bf16, found number " +
               std::to_string(static_cast<int>(options.dtype)));
  const ModelConfig& model = options.model;
  const int32_t widest = std::max({model.hidden, model.q_width(), model.ffn});
  MF_CHECK(options.format == WeightFormat::kPlain || widest <= kMostInt8Inputs,
           "dtype: " + std::string(is_q4(options.format) ? "q4" : "int8") +
               " expects linears of at most " + std::to_string(kMostInt8Inputs) +
               " inputs, found " + std::to_string(widest) + "; load this model as bf16");
  MF_CHECK(options.threads >= 0 && options.threads <= 4096,
           "threads: expected 0 to 4096, found " + std::to_string(options.threads));
  MF_CHECK(options.kv_pages >= 1,
           "kvPages: expected at least 1, found " + std::to_string(options.kv_pages));
  MF_CHECK(options.max_rows >= 1 && options.max_rows <= kMostRows,
           "maxRows: expected 1 to " + std::to_string(kMostRows) + ", found " +
               std::to_string(options.max_rows));
  MF_CHECK(options.max_entries >= 1 && options.max_entries <= options.max_rows,
           "maxEntries: expected 1 to maxRows " + std::to_string(options.max_rows) + ", found " +
               std::to_string(options.max_entries));
  const double kv_bytes = 2.0 * sizeof(float) * kPageTokens * options.kv_pages *
                          static_cast<double>(options.model.layers.size()) *
                          options.model.kv_width();
  if (kv_bytes > kMostKvBytes) {
    fail(ErrorCode::kOutOfMemory, "kvPages: " + std::to_string(options.kv_pages) + " pages are " +
                                      std::to_string(kv_bytes) +
                                      " bytes; expected a pool that fits in memory");
  }
}

}  // namespace manyfold
