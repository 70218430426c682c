// From the tensors of weight files to a backend's WeightStore. Called by the addon while an engine
// is made.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "../core/backend.h"

namespace manyfold {

// One tensor of a file; field by field WeightEntry of src/native/binding-types.ts.
struct WeightSource {
  int32_t file = 0;
  uint64_t offset = 0, byte_length = 0;
  Dtype dtype = Dtype::kF32;
  int32_t rows = 0, cols = 0;
  SiteRef site{-1, Site::kEmbedding};
  WeightPart part = WeightPart::kWeight;
  int32_t permuted_heads = 0;
  float add = 0.0f;
};

// The format of each matrix, by site_index, of a backend that holds them as `format`. Under 4 bits
// a file that has 4-bit tensors is taken as it is: those keep their codes (Q4_K in kQ4Wide), every
// other matrix is held in int8. A file without any is rounded, see matrix_format.
std::vector<WeightFormat> weight_formats(const ModelConfig& model,
                                         const std::vector<WeightSource>& sources,
                                         WeightFormat format);

// Bytes of the files done, and in all; called after each tensor. What it throws ends the loading.
using LoadProgress = std::function<void(uint64_t done, uint64_t total)>;

// Reads and packs every tensor. Throws kInvalidArgument for a tensor that does not fit the model,
// is missing, or comes twice, and for values that are not finite; kIo for a file that cannot be
// read; each names file and site.
void load_weights(const ModelConfig& model, const std::vector<std::string>& files,
                  const std::vector<WeightSource>& sources, WeightStore& store,
                  const LoadProgress& progress);

}  // namespace manyfold
