// Base weights in device memory: matrices in the model's dtype, rows padded with zeros; norm
// weights and biases in float32. Linears that share an input (q, k, v; gate, up) lie one after
// another, so that one product serves them.
#pragma once

#include <vector>

#include "../core/backend.h"
#include "handles.h"

namespace manyfold::cuda {

// Columns as kernels read them: a multiple of 16 (32 bytes of 16-bit values).
constexpr int32_t padded_columns(int32_t cols) {
  return (cols + 15) / 16 * 16;
}

class CudaWeights final : public WeightStore {
 public:
  // dtype: f32, f16 or bf16. Throws kUnavailable for another weight format.
  CudaWeights(const ModelConfig& model, Dtype dtype, WeightFormat format);
  void add_weight(SiteRef site, WeightPart part, int32_t rows, int32_t cols,
                  const RowReader& read) override;
  bool holds_q4(SiteRef) const override { return false; }
  [[noreturn]] void add_q4_weight(SiteRef site, int32_t rows, int32_t cols,
                                  const Q4Reader& read) override;
  void read_weight(SiteRef site, WeightPart part, int32_t row0, int32_t count,
                   float* out) const override;
  bool has_weight(SiteRef site, WeightPart part) const override;
  size_t weight_bytes() const override { return bytes_; }

  // [rows, padded_columns(cols)]; a tied head is the embedding. k and v follow q, up follows gate.
  const void* matrix(SiteRef site) const;
  // Norm weights; null where the model has none.
  const float* vector(SiteRef site) const;
  const float* bias(SiteRef site) const;

 private:
  struct Piece {
    void* data = nullptr;  // null: not given
    int32_t rows = 0, cols = 0;
  };
  void* place_of(SiteRef site, WeightShape shape);
  const Piece& piece(SiteRef site, WeightPart part) const;

  const ModelConfig& model_;
  Dtype dtype_;
  std::vector<Piece> weights_, biases_;  // by site_index
  std::vector<void*> groups_;            // by site_index of a group's first site
  std::vector<DeviceMemory> memory_;
  size_t bytes_ = 0;
};

}  // namespace manyfold::cuda
