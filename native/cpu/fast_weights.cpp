// See fast_weights.h.
#include "fast_weights.h"

#include <algorithm>
#include <string>

#include "../core/check_terms.h"
#include "../core/error.h"
#include "int8_rows.h"
#include "q4_rows.h"

namespace manyfold {
namespace {

std::string shape_text(int64_t rows, int64_t cols) {
  return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
}

bool is_matrix(Site site) {
  return is_linear_site(site) || site == Site::kEmbedding;
}

// In the order that a step reads them.
std::vector<SiteRef> matrix_sites(const ModelConfig& model) {
  std::vector<SiteRef> sites{{-1, Site::kEmbedding}};
  for (int32_t layer = 0; layer < static_cast<int32_t>(model.layers.size()); ++layer) {
    for (const Site site :
         {Site::kQ, Site::kK, Site::kV, Site::kO, Site::kGate, Site::kUp, Site::kDown}) {
      sites.push_back({layer, site});
    }
  }
  if (!model.tied_head) sites.push_back({-1, Site::kHead});
  return sites;
}

}  // namespace

FastWeights::FastWeights(const ModelConfig& model, Dtype dtype, const Kernels& kernels,
                         ThreadPool& pool, WeightFormat format,
                         std::span<const WeightFormat> formats)
    : model_(model),
      dtype_(dtype),
      format_(format),
      kernels_(kernels),
      pool_(pool),
      weights_((model.layers.size() + 1) * kSiteCount),
      biases_(weights_.size()) {
  lay_out(format, formats);
}

// How a matrix's format is laid out in panels.
void FastWeights::set_panels(PackedMatrix& matrix) const {
  switch (matrix.format) {
    case WeightFormat::kPlain:
      matrix.panel_rows = kernels_.panel_rows(matrix.dtype);
      matrix.panel_bytes = kernels_.panel_bytes(matrix.dtype, matrix.cols);
      break;
    case WeightFormat::kInt8:
      matrix.panel_rows = kernels_.int8.panel_rows;
      matrix.panel_bytes = kernels_.int8.panel_bytes(matrix.cols);
      break;
    case WeightFormat::kQ4:
    case WeightFormat::kQ4Wide:
      matrix.panel_rows = kernels_.q4.panel_rows;
      matrix.panel_bytes = kernels_.q4.panel_bytes(matrix.cols, matrix.wide());
      break;
  }
}

void FastWeights::lay_out(WeightFormat format, std::span<const WeightFormat> formats) {
  const std::vector<SiteRef> sites = matrix_sites(model_);
  size_t total = 0;
  for (const SiteRef site : sites) {
    const WeightShape shape = weight_shape(model_, site.site);
    PackedMatrix& matrix = weights_[static_cast<size_t>(site_index(site))].matrix;
    matrix.dtype = dtype_;
    matrix.format = formats.empty() ? matrix_format(format, site.site)
                                    : formats[static_cast<size_t>(site_index(site))];
    matrix.rows = shape.rows;
    matrix.cols = shape.cols;
    set_panels(matrix);
    total += static_cast<size_t>(round_up(static_cast<int64_t>(matrix.bytes()), 64));
  }
  memory_ = HugeBuffer(total, "the base weights");
  size_t offset = 0;
  for (const SiteRef site : sites) {
    PackedMatrix& matrix = weights_[static_cast<size_t>(site_index(site))].matrix;
    matrix.panels = memory_.data() + offset;
    offset += static_cast<size_t>(round_up(static_cast<int64_t>(matrix.bytes()), 64));
  }
}

FastWeights::Slot& FastWeights::slot(SiteRef site, WeightPart part) {
  MF_CHECK(has_site(model_, site), site_label(site) + ": the model has no such site");
  const bool tied = site.site == Site::kHead && model_.tied_head && part == WeightPart::kWeight;
  MF_CHECK(!tied, "head: expected no weight of its own in a model with a tied head");
  MF_CHECK(part == WeightPart::kWeight || is_linear_site(site.site),
           site_label(site) + ": expected no bias there");
  return (part == WeightPart::kBias ? biases_ : weights_)[static_cast<size_t>(site_index(site))];
}

// The empty place of a weight, its shape checked.
FastWeights::Slot& FastWeights::start(SiteRef site, WeightPart part, int32_t rows, int32_t cols) {
  Slot& place = slot(site, part);
  const WeightShape shape = weight_shape(model_, site.site);
  const int32_t expected_rows = part == WeightPart::kBias ? 1 : shape.rows;
  const int32_t expected_cols = part == WeightPart::kBias ? shape.rows : shape.cols;
  MF_CHECK(expected_cols > 0, site_label(site) + ": the site holds no weight");
  MF_CHECK(rows == expected_rows && cols == expected_cols,
           site_label(site) + ": expected shape " + shape_text(expected_rows, expected_cols) +
               ", found " + shape_text(rows, cols));
  MF_CHECK(!place.packed, site_label(site) + ": its weight was given twice");
  return place;
}

void FastWeights::add_weight(SiteRef site, WeightPart part, int32_t rows, int32_t cols,
                             const RowReader& read) {
  Slot& place = start(site, part, rows, cols);
  if (part == WeightPart::kWeight && is_matrix(site.site)) {
    pack(place.matrix, read);
    bytes_ += place.matrix.bytes();
  } else {
    place.width = cols;
    place.values.assign(static_cast<size_t>(round_up(cols, kRowPad)), 0.0f);
    read(0, 1, place.values.data());
    bytes_ += place.values.size() * sizeof(float);
  }
  place.packed = true;
}

bool FastWeights::holds_q4(SiteRef site) const {
  return has_site(model_, site) && is_matrix(site.site) &&
         is_q4(weights_[static_cast<size_t>(site_index(site))].matrix.format);
}

void FastWeights::add_q4_weight(SiteRef site, int32_t rows, int32_t cols, const Q4Reader& read) {
  Slot& place = start(site, WeightPart::kWeight, rows, cols);
  MF_ASSERT(holds_q4(site));
  const PackedMatrix& matrix = place.matrix;
  for_panels(matrix, [&](int32_t first, int32_t count, std::byte* panel, int32_t) {
    Q4Matrix packed(count, cols);
    read(first, count, packed.from(0));
    MF_CHECK(matrix.wide() || packed.fits_half(),
             site_label(site) +
                 ": expected scales below 8188, found larger ones; load this model "
                 "as bf16");
    kernels_.q4.pack(packed.from(0), count, cols, matrix.wide(), panel);
  });
  bytes_ += matrix.bytes();
  place.packed = true;
}

// Calls pack(first row, rows, panel, thread) for every panel, on all threads.
void FastWeights::for_panels(
    const PackedMatrix& matrix,
    const std::function<void(int32_t, int32_t, std::byte*, int32_t)>& pack) {
  std::byte* panels = memory_.data() + (matrix.panels - memory_.data());
  pool_.run_items(matrix.panel_count(), [&](int32_t panel, int32_t thread) {
    const int32_t first = panel * matrix.panel_rows;
    pack(first, std::min(matrix.panel_rows, matrix.rows - first),
         panels + static_cast<size_t>(panel) * matrix.panel_bytes, thread);
  });
}

void FastWeights::pack(const PackedMatrix& matrix, const RowReader& read) {
  std::vector<std::vector<float>> scratch(static_cast<size_t>(pool_.threads()));
  for_panels(matrix, [&](int32_t first, int32_t count, std::byte* panel, int32_t thread) {
    std::vector<float>& rows = scratch[static_cast<size_t>(thread)];
    rows.resize(static_cast<size_t>(matrix.panel_rows) * static_cast<size_t>(matrix.cols));
    read(first, count, rows.data());
    pack_panel(matrix, rows.data(), count, panel);
  });
}

// rows is overwritten.
void FastWeights::pack_panel(const PackedMatrix& matrix, float* rows, int32_t count,
                             std::byte* panel) const {
  if (matrix.format == WeightFormat::kPlain) {
    kernels_.pack_panel(matrix.dtype, rows, count, matrix.cols, panel);
    return;
  }
  if (is_q4(matrix.format)) {
    Q4Matrix packed(count, matrix.cols);
    for (int32_t i = 0; i < count; ++i) {
      quantize_q4_weight(rows + int64_t{i} * matrix.cols, matrix.cols, packed.from(i));
    }
    kernels_.q4.pack(packed.from(0), count, matrix.cols, matrix.wide(), panel);
    return;
  }
  std::vector<int8_t> values(static_cast<size_t>(count) * static_cast<size_t>(matrix.cols));
  std::vector<float> scales(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) {
    const int64_t first = int64_t{i} * matrix.cols;
    scales[static_cast<size_t>(i)] =
        quantize_weight(rows + first, matrix.cols, values.data() + first);
  }
  kernels_.int8.pack(values.data(), scales.data(), count, matrix.cols, panel);
}

void FastWeights::unpack_row(const PackedMatrix& matrix, int32_t row, float* out) const {
  const std::byte* panel =
      matrix.panels + static_cast<size_t>(row / matrix.panel_rows) * matrix.panel_bytes;
  const int32_t place = row % matrix.panel_rows;
  if (matrix.format == WeightFormat::kPlain) {
    kernels_.unpack_row(matrix.dtype, panel, place, matrix.cols, out);
    return;
  }
  if (is_q4(matrix.format)) {
    Q4Matrix packed(1, matrix.cols);
    kernels_.q4.unpack_row(panel, place, matrix.cols, matrix.wide(), packed.from(0));
    dequantize_q4_weight(packed.from(0), matrix.cols, out);
    return;
  }
  // The bytes go to the last quarter of out: widened from the front, each is read before its place
  // is written.
  int8_t* values = reinterpret_cast<int8_t*>(out) + 3 * static_cast<size_t>(matrix.cols);
  const float scale = kernels_.int8.unpack_row(panel, place, matrix.cols, values);
  dequantize_weight(values, scale, matrix.cols, out);
}

const FastWeights::Slot* FastWeights::find(SiteRef site, WeightPart part) const {
  if (!has_site(model_, site)) return nullptr;
  if (part == WeightPart::kWeight && site.site == Site::kHead && model_.tied_head) {
    site.site = Site::kEmbedding;
  }
  const Slot& place =
      (part == WeightPart::kBias ? biases_ : weights_)[static_cast<size_t>(site_index(site))];
  return place.packed ? &place : nullptr;
}

bool FastWeights::has_weight(SiteRef site, WeightPart part) const {
  return find(site, part) != nullptr;
}

void FastWeights::read_weight(SiteRef site, WeightPart part, int32_t row0, int32_t count,
                              float* out) const {
  const Slot* place = find(site, part);
  MF_CHECK(place != nullptr, site_label(site) + ": the model has no " +
                                 (part == WeightPart::kBias ? "bias" : "weight") + " there");
  const bool plain = !place->values.empty();
  const int64_t rows = plain ? 1 : place->matrix.rows;
  MF_CHECK(row0 >= 0 && count >= 0 && int64_t{row0} + count <= rows,
           site_label(site) + ": expected rows within 0 to " + std::to_string(rows) + ", found " +
               std::to_string(count) + " from " + std::to_string(row0));
  if (plain) {
    std::copy_n(place->values.data(), count * place->width, out);
    return;
  }
  const PackedMatrix& matrix = place->matrix;
  for (int32_t i = 0; i < count; ++i) {
    unpack_row(matrix, row0 + i, out + int64_t{i} * matrix.cols);
  }
}

const PackedMatrix& FastWeights::matrix(SiteRef site) const {
  const Slot* place = find(site, WeightPart::kWeight);
  MF_ASSERT(place != nullptr);
  return place->matrix;
}

const float* FastWeights::bias(SiteRef site) const {
  const Slot* place = find(site, WeightPart::kBias);
  return place == nullptr ? nullptr : place->values.data();
}

const float* FastWeights::norm(SiteRef site) const {
  const Slot* place = find(site, WeightPart::kWeight);
  MF_ASSERT(place != nullptr);
  return place->values.data();
}

void FastWeights::embedding_row(int32_t token, float* out) const {
  read_weight({-1, Site::kEmbedding}, WeightPart::kWeight, token, 1, out);
}

}  // namespace manyfold
