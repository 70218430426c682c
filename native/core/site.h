// Every place of the model that an adapter can touch. Numbers are those of SITES in
// src/core/model-config.ts.
#pragma once

#include <cstdint>
#include <string>

namespace manyfold {

enum class Site : int32_t {
  kEmbedding = 0,
  kAttnNorm = 1,
  kQ = 2,
  kK = 3,
  kV = 4,
  kQNorm = 5,
  kKNorm = 6,
  kAttention = 7,
  kO = 8,
  kPostAttnNorm = 9,
  kResidualAttn = 10,
  kMlpNorm = 11,
  kGate = 12,
  kUp = 13,
  kDown = 14,
  kPostMlpNorm = 15,
  kResidualMlp = 16,
  kFinalNorm = 17,
  kHead = 18,
};
inline constexpr int32_t kSiteCount = 19;

// layer is -1 for embedding, final norm and head.
struct SiteRef {
  int32_t layer;
  Site site;
  bool operator==(const SiteRef&) const = default;
};

// Dense index of a site of a model with any number of layers: 0 .. (layers + 1) * kSiteCount - 1.
inline int32_t site_index(SiteRef ref) {
  return (ref.layer + 1) * kSiteCount + static_cast<int32_t>(ref.site);
}

// Name as in SITES of src/core/model-config.ts.
inline const char* site_name(Site site) {
  static constexpr const char* kNames[kSiteCount] = {
      "embedding",    "attnNorm",    "q",         "k",   "v",
      "qNorm",        "kNorm",       "attention", "o",   "postAttnNorm",
      "residualAttn", "mlpNorm",     "gate",      "up",  "down",
      "postMlpNorm",  "residualMlp", "finalNorm", "head"};
  const int32_t index = static_cast<int32_t>(site);
  return index >= 0 && index < kSiteCount ? kNames[index] : "unknown site";
}

// For messages: "layer 3 gate", "head".
inline std::string site_label(SiteRef ref) {
  return ref.layer < 0 ? site_name(ref.site)
                       : "layer " + std::to_string(ref.layer) + " " + site_name(ref.site);
}

// Sites that the model has once: their layer is -1.
inline bool is_model_site(Site site) {
  return site == Site::kEmbedding || site == Site::kFinalNorm || site == Site::kHead;
}

// Sites that are matrix products y = W x (the embedding is a look-up, not a product).
inline bool is_linear_site(Site site) {
  switch (site) {
    case Site::kQ:
    case Site::kK:
    case Site::kV:
    case Site::kO:
    case Site::kGate:
    case Site::kUp:
    case Site::kDown:
    case Site::kHead:
      return true;
    default:
      return false;
  }
}

inline bool is_norm_site(Site site) {
  switch (site) {
    case Site::kAttnNorm:
    case Site::kQNorm:
    case Site::kKNorm:
    case Site::kPostAttnNorm:
    case Site::kMlpNorm:
    case Site::kPostMlpNorm:
    case Site::kFinalNorm:
      return true;
    default:
      return false;
  }
}

}  // namespace manyfold
