// See reference_stores.h.
#include "reference_stores.h"

#include <algorithm>
#include <limits>

#include "../../core/check_terms.h"
#include "../../core/error.h"
#include "../int8_kv.h"
#include "../int8_rows.h"

namespace manyfold {

namespace {

void round_to_bf16(std::vector<float>& values) {
  for (float& v : values) v = bf16_to_f32(f32_to_bf16(v));
}

}  // namespace

ReferenceWeights::ReferenceWeights(const ModelConfig& model, Dtype dtype, WeightFormat format,
                                   std::span<const WeightFormat> formats)
    : model_(model),
      dtype_(dtype),
      formats_(formats.begin(), formats.end()),
      weights_((model.layers.size() + 1) * kSiteCount),
      biases_(weights_.size()),
      int8_(weights_.size()) {
  for (size_t i = formats_.size(); i < weights_.size(); ++i) {
    formats_.push_back(matrix_format(format, static_cast<Site>(i % kSiteCount)));
  }
}

// Room for a weight or bias.
std::vector<float>& ReferenceWeights::start(SiteRef site, WeightPart part, int32_t rows,
                                            int32_t cols) {
  std::vector<float>& values =
      (part == WeightPart::kBias ? biases_ : weights_)[static_cast<size_t>(site_index(site))];
  MF_CHECK(values.empty(), site_label(site) + ": its weight was given twice");
  values.resize(static_cast<size_t>(rows) * static_cast<size_t>(cols));
  bytes_ += values.size() * sizeof(float);
  return values;
}

void ReferenceWeights::add_weight(SiteRef site, WeightPart part, int32_t rows, int32_t cols,
                                  const RowReader& read) {
  std::vector<float>& values = start(site, part, rows, cols);
  read(0, rows, values.data());
  if (part == WeightPart::kBias || is_norm_site(site.site)) return;
  const size_t index = weight_index(site);
  if (is_q4(formats_[index])) {
    Q4Matrix matrix(rows, cols);
    for (int32_t row = 0; row < rows; ++row) {
      quantize_q4_weight(values.data() + int64_t{row} * cols, cols, matrix.from(row));
    }
    keep_q4(index, std::move(matrix), values, cols);
  } else if (formats_[index] == WeightFormat::kInt8) {
    quantize(int8_[index], values, rows, cols);
  } else if (dtype_ == Dtype::kBf16) {
    round_to_bf16(values);
  }
}

void ReferenceWeights::add_q4_weight(SiteRef site, int32_t rows, int32_t cols,
                                     const Q4Reader& read) {
  MF_ASSERT(holds_q4(site));
  std::vector<float>& values = start(site, WeightPart::kWeight, rows, cols);
  Q4Matrix matrix(rows, cols);
  read(0, rows, matrix.from(0));
  keep_q4(weight_index(site), std::move(matrix), values, cols);
}

// values become those that the matrix stands for.
void ReferenceWeights::keep_q4(size_t index, Q4Matrix&& matrix, std::vector<float>& values,
                               int32_t cols) {
  const auto rows = static_cast<int32_t>(values.size() / static_cast<size_t>(cols));
  for (int32_t row = 0; row < rows; ++row) {
    dequantize_q4_weight(matrix.from(row), cols, values.data() + int64_t{row} * cols);
  }
  bytes_ += matrix.bytes();
  q4_.emplace(index, std::move(matrix));
}

// values become those that the matrix stands for.
void ReferenceWeights::quantize(Int8Matrix& matrix, std::vector<float>& values, int32_t rows,
                                int32_t cols) {
  matrix.values.resize(values.size());
  for (int32_t row = 0; row < rows; ++row) {
    float* from = values.data() + int64_t{row} * cols;
    int8_t* to = matrix.values.data() + int64_t{row} * cols;
    matrix.scales.push_back(quantize_weight(from, cols, to));
    dequantize_weight(to, matrix.scales.back(), cols, from);
  }
  bytes_ += matrix.values.size() + matrix.scales.size() * sizeof(float);
}

size_t ReferenceWeights::weight_index(SiteRef site) const {
  if (site.site == Site::kHead && model_.tied_head) site.site = Site::kEmbedding;
  return static_cast<size_t>(site_index(site));
}

const std::vector<float>* ReferenceWeights::find(SiteRef site, WeightPart part) const {
  const std::vector<float>& values = part == WeightPart::kBias
                                         ? biases_[static_cast<size_t>(site_index(site))]
                                         : weights_[weight_index(site)];
  return values.empty() ? nullptr : &values;
}

bool ReferenceWeights::has_weight(SiteRef site, WeightPart part) const {
  return has_site(model_, site) && find(site, part) != nullptr;
}

void ReferenceWeights::read_weight(SiteRef site, WeightPart part, int32_t row0, int32_t count,
                                   float* out) const {
  const std::vector<float>* values = has_site(model_, site) ? find(site, part) : nullptr;
  MF_CHECK(values != nullptr, site_label(site) + ": the model has no " +
                                  (part == WeightPart::kBias ? "bias" : "weight") + " there");
  const size_t cols = part == WeightPart::kBias
                          ? values->size()
                          : static_cast<size_t>(weight_shape(model_, site.site).cols);
  const int64_t rows = static_cast<int64_t>(values->size() / cols);
  MF_CHECK(row0 >= 0 && count >= 0 && static_cast<int64_t>(row0) + count <= rows,
           site_label(site) + ": expected rows within 0 to " + std::to_string(rows) + ", found " +
               std::to_string(count) + " from " + std::to_string(row0));
  std::copy_n(values->begin() + static_cast<ptrdiff_t>(static_cast<size_t>(row0) * cols),
              static_cast<size_t>(count) * cols, out);
}

const float* ReferenceWeights::matrix(SiteRef site) const {
  const std::vector<float>* values = find(site, WeightPart::kWeight);
  MF_ASSERT(values != nullptr);
  return values->data();
}

const Int8Matrix* ReferenceWeights::int8_matrix(SiteRef site) const {
  return format_of(site) == WeightFormat::kInt8 ? &int8_[weight_index(site)] : nullptr;
}

const Q4Matrix* ReferenceWeights::q4_matrix(SiteRef site) const {
  const auto place = q4_.find(weight_index(site));
  return place == q4_.end() ? nullptr : &place->second;
}

const float* ReferenceWeights::bias(SiteRef site) const {
  const std::vector<float>* values = find(site, WeightPart::kBias);
  return values == nullptr ? nullptr : values->data();
}

TermHandle ReferenceTerms::load_terms(TermSet&& terms) {
  check_terms(model_, terms);
  MF_ASSERT(last_ < std::numeric_limits<TermHandle>::max());
  UnpackedTerms unpacked(model_, terms);
  bytes_ += unpacked.bytes();
  sets_.emplace(++last_, std::move(unpacked));
  return last_;
}

void ReferenceTerms::free_terms(TermHandle handle) {
  const auto place = sets_.find(handle);
  MF_CHECK(place != sets_.end(), "free_terms: handle " + std::to_string(handle) + " is not loaded");
  bytes_ -= place->second.bytes();
  sets_.erase(place);
}

const UnpackedTerms& ReferenceTerms::get(TermHandle handle) const {
  const auto place = sets_.find(handle);
  MF_ASSERT(place != sets_.end());
  return place->second;
}

ReferenceKv::ReferenceKv(const ModelConfig& model, Dtype dtype, KvFormat format, int32_t pages)
    : pages_(pages),
      kv_heads_(model.kv_heads),
      head_dim_(model.head_dim),
      round_(dtype == Dtype::kBf16),
      int8_(format == KvFormat::kInt8),
      values_(model.layers.size() * static_cast<size_t>(pages) * 2 *
              static_cast<size_t>(model.kv_width()) * kPageTokens) {}

float* ReferenceKv::at(int32_t layer, int32_t page, int32_t part, int32_t head, int32_t token) {
  const size_t index =
      static_cast<size_t>((static_cast<int64_t>(layer) * pages_ + page) * 2 + part);
  return values_.data() +
         ((index * static_cast<size_t>(kv_heads_) + static_cast<size_t>(head)) * kPageTokens +
          static_cast<size_t>(token)) *
             static_cast<size_t>(head_dim_);
}

void ReferenceKv::store(const float* from, float* to) const {
  if (int8_) {
    const float scale = int8_kv_scale(from, head_dim_), inverse = int8_kv_inverse(scale);
    for (int32_t d = 0; d < head_dim_; ++d)
      to[d] = static_cast<float>(int8_kv(from[d], inverse)) * scale;
    return;
  }
  for (int32_t d = 0; d < head_dim_; ++d)
    to[d] = round_ ? bf16_to_f32(f32_to_bf16(from[d])) : from[d];
}

}  // namespace manyfold
