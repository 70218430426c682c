// What the reference backend holds between steps: base weights, adapters' terms and the KV pool,
// all as float32.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "../../core/backend.h"
#include "../q4_rows.h"
#include "unpacked_terms.h"

namespace manyfold {

// An int8 matrix: row o is values[o] with scales[o] (int8_rows.h).
struct Int8Matrix {
  std::vector<int8_t> values;  // [rows, cols]
  std::vector<float> scales;   // [rows]
};

// Matrices are rounded to 4 bits, int8 or bf16 when format and dtype say so (the values the fast
// backend multiplies with); norm weights and biases stay float32, as everywhere.
class ReferenceWeights final : public WeightStore {
 public:
  // formats: by site_index; none: matrix_format(format, site).
  ReferenceWeights(const ModelConfig& model, Dtype dtype, WeightFormat format,
                   std::span<const WeightFormat> formats);
  void add_weight(SiteRef site, WeightPart part, int32_t rows, int32_t cols,
                  const RowReader& read) override;
  bool holds_q4(SiteRef site) const override { return is_q4(format_of(site)); }
  void add_q4_weight(SiteRef site, int32_t rows, int32_t cols, const Q4Reader& read) override;
  void read_weight(SiteRef site, WeightPart part, int32_t row0, int32_t count,
                   float* out) const override;
  bool has_weight(SiteRef site, WeightPart part) const override;
  size_t weight_bytes() const override { return bytes_; }

  // [rows, cols]; a tied head is the embedding. The site must have been added.
  const float* matrix(SiteRef site) const;
  // The same matrix in int8 or 4 bits, or null where it is held otherwise.
  const Int8Matrix* int8_matrix(SiteRef site) const;
  const Q4Matrix* q4_matrix(SiteRef site) const;
  // [out], or null when the linear has none.
  const float* bias(SiteRef site) const;

 private:
  const std::vector<float>* find(SiteRef site, WeightPart part) const;
  size_t weight_index(SiteRef site) const;
  WeightFormat format_of(SiteRef site) const { return formats_[weight_index(site)]; }
  std::vector<float>& start(SiteRef site, WeightPart part, int32_t rows, int32_t cols);
  void quantize(Int8Matrix& matrix, std::vector<float>& values, int32_t rows, int32_t cols);
  void keep_q4(size_t index, Q4Matrix&& matrix, std::vector<float>& values, int32_t cols);

  const ModelConfig& model_;
  Dtype dtype_;
  std::vector<WeightFormat> formats_;  // by site_index, as all below
  std::vector<std::vector<float>> weights_, biases_;
  std::vector<Int8Matrix> int8_;
  std::map<size_t, Q4Matrix> q4_;
  size_t bytes_ = 0;
};

class ReferenceTerms final : public TermStore {
 public:
  explicit ReferenceTerms(const ModelConfig& model) : model_(model) {}
  TermHandle load_terms(TermSet&& terms) override;
  void free_terms(TermHandle handle) override;
  size_t term_bytes() const override { return bytes_; }
  int32_t term_sets() const override { return static_cast<int32_t>(sets_.size()); }

  const UnpackedTerms& get(TermHandle handle) const;

 private:
  const ModelConfig& model_;
  std::map<TermHandle, UnpackedTerms> sets_;
  TermHandle last_ =
      0;  // handles are never used twice, so that a stale one cannot name another set
  size_t bytes_ = 0;
};

// [layer][page][key or value][kv head][token of the page][head_dim].
class ReferenceKv {
 public:
  ReferenceKv(const ModelConfig& model, Dtype dtype, KvFormat format, int32_t pages);
  float* key(int32_t layer, int32_t page, int32_t head, int32_t token) {
    return at(layer, page, 0, head, token);
  }
  float* value(int32_t layer, int32_t page, int32_t head, int32_t token) {
    return at(layer, page, 1, head, token);
  }
  // Copies [head_dim] in, rounded to what the pool holds.
  void store(const float* from, float* to) const;
  size_t bytes() const { return values_.size() * sizeof(float); }

 private:
  float* at(int32_t layer, int32_t page, int32_t part, int32_t head, int32_t token);

  int32_t pages_, kv_heads_, head_dim_;
  bool round_, int8_;
  std::vector<float> values_;
};

}  // namespace manyfold
