// See cuda_weights.h.
#include "cuda_weights.h"

#include <algorithm>
#include <cstring>

#include "../core/error.h"

namespace manyfold::cuda {

namespace {

// Bytes that are converted on the host before one copy.
constexpr size_t kChunkBytes = 8u << 20;

size_t element_bytes(Dtype dtype) {
  return dtype == Dtype::kF32 ? 4 : 2;
}

// Round to nearest even; overflow gives infinity.
uint16_t f32_to_f16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (bits < 0x38800000u) {  // subnormal: adding 0.5 lines the mantissa up with its last bit
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    uint32_t shifted;
    std::memcpy(&shifted, &magnitude, 4);
    return static_cast<uint16_t>(sign | (shifted - 0x3f000000u));
  }
  const uint32_t odd = bits >> 13 & 1u;
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + odd) >> 13));
}

void encode_row(Dtype dtype, const float* from, int32_t cols, std::byte* to) {
  if (dtype == Dtype::kF32) {
    std::memcpy(to, from, static_cast<size_t>(cols) * 4);
    return;
  }
  auto* out = reinterpret_cast<uint16_t*>(to);
  for (int32_t i = 0; i < cols; ++i) {
    out[i] = dtype == Dtype::kBf16 ? f32_to_bf16(from[i]) : f32_to_f16(from[i]);
  }
}

void decode_row(Dtype dtype, const std::byte* from, int32_t cols, float* to) {
  if (dtype == Dtype::kF32) {
    std::memcpy(to, from, static_cast<size_t>(cols) * 4);
    return;
  }
  const auto* in = reinterpret_cast<const uint16_t*>(from);
  for (int32_t i = 0; i < cols; ++i) {
    to[i] = dtype == Dtype::kBf16 ? bf16_to_f32(in[i]) : f16_to_f32(in[i]);
  }
}

// The sites whose matrices lie together with this one, in order.
std::vector<Site> group_of(Site site) {
  switch (site) {
    case Site::kQ:
    case Site::kK:
    case Site::kV:
      return {Site::kQ, Site::kK, Site::kV};
    case Site::kGate:
    case Site::kUp:
      return {Site::kGate, Site::kUp};
    default:
      return {site};
  }
}

bool is_matrix(Site site) {
  return is_linear_site(site) || site == Site::kEmbedding;
}

}  // namespace

CudaWeights::CudaWeights(const ModelConfig& model, Dtype dtype, WeightFormat format)
    : model_(model), dtype_(dtype) {
  if (format != WeightFormat::kPlain || block_shape(dtype).values != 1) {
    fail(
        ErrorCode::kUnavailable,
        "cuda: quantized weights are not built for this backend; expected f32, f16 or bf16: choose "
        "--dtype bf16, or the cpu backend");
  }
  const size_t sites = (model.layers.size() + 1) * kSiteCount;
  weights_.resize(sites);
  biases_.resize(sites);
  groups_.resize(sites, nullptr);
}

void* CudaWeights::place_of(SiteRef site, WeightShape shape) {
  const size_t row_bytes = static_cast<size_t>(padded_columns(shape.cols)) * element_bytes(dtype_);
  size_t before = 0, all = 0;
  const std::vector<Site> group = group_of(site.site);
  for (const Site other : group) {
    if (other == site.site) before = all;
    all += static_cast<size_t>(weight_shape(model_, other).rows) * row_bytes;
  }
  void*& first = groups_[static_cast<size_t>(site_index({site.layer, group.front()}))];
  if (first == nullptr) {
    memory_.push_back(allocate_device(all, "the weights of " + site_label(site)));
    first = memory_.back().get();
  }
  return static_cast<std::byte*>(first) + before;
}

void CudaWeights::add_weight(SiteRef site, WeightPart part, int32_t rows, int32_t cols,
                             const RowReader& read) {
  const bool matrix = part == WeightPart::kWeight && is_matrix(site.site);
  const Dtype dtype = matrix ? dtype_ : Dtype::kF32;
  const int32_t stride = matrix ? padded_columns(cols) : cols;
  const size_t row_bytes = static_cast<size_t>(stride) * element_bytes(dtype);
  Piece piece{nullptr, rows, cols};
  if (matrix) {
    piece.data = place_of(site, {rows, cols});
  } else {
    memory_.push_back(allocate_device(row_bytes * static_cast<size_t>(rows),
                                      "the weights of " + site_label(site)));
    piece.data = memory_.back().get();
  }
  const auto chunk = static_cast<int32_t>(
      std::clamp<size_t>(kChunkBytes / row_bytes, 1, static_cast<size_t>(rows)));
  std::vector<float> values(static_cast<size_t>(chunk) * static_cast<size_t>(cols));
  std::vector<std::byte> bytes(static_cast<size_t>(chunk) * row_bytes);
  for (int32_t row = 0; row < rows; row += chunk) {
    const int32_t count = std::min(chunk, rows - row);
    read(row, count, values.data());
    for (int32_t i = 0; i < count; ++i) {
      encode_row(dtype, values.data() + int64_t{i} * cols, cols,
                 bytes.data() + static_cast<size_t>(i) * row_bytes);
    }
    MF_CUDA(cudaMemcpy(static_cast<std::byte*>(piece.data) + static_cast<size_t>(row) * row_bytes,
                       bytes.data(), static_cast<size_t>(count) * row_bytes,
                       cudaMemcpyHostToDevice));
  }
  (part == WeightPart::kWeight ? weights_ : biases_)[static_cast<size_t>(site_index(site))] = piece;
  bytes_ += row_bytes * static_cast<size_t>(rows);
}

void CudaWeights::add_q4_weight(SiteRef, int32_t, int32_t, const Q4Reader&) {
  fail(ErrorCode::kBug, "cuda: 4-bit weights were given, though holds_q4 says that there are none");
}

const CudaWeights::Piece& CudaWeights::piece(SiteRef site, WeightPart part) const {
  if (part == WeightPart::kWeight && site.site == Site::kHead && model_.tied_head) {
    site.site = Site::kEmbedding;
  }
  return (part == WeightPart::kWeight ? weights_ : biases_)[static_cast<size_t>(site_index(site))];
}

bool CudaWeights::has_weight(SiteRef site, WeightPart part) const {
  return piece(site, part).data != nullptr;
}

void CudaWeights::read_weight(SiteRef site, WeightPart part, int32_t row0, int32_t count,
                              float* out) const {
  const Piece& from = piece(site, part);
  MF_CHECK(from.data != nullptr, "weights: the model has none at " + site_label(site));
  MF_CHECK(row0 >= 0 && count >= 0 && row0 + count <= from.rows,
           "weights: expected rows 0 to " + std::to_string(from.rows - 1) + " of " +
               site_label(site) + ", found " + std::to_string(row0) + " and " +
               std::to_string(count) + " more");
  const bool matrix = part == WeightPart::kWeight && is_matrix(site.site);
  const Dtype dtype = matrix ? dtype_ : Dtype::kF32;
  const size_t row_bytes =
      static_cast<size_t>(matrix ? padded_columns(from.cols) : from.cols) * element_bytes(dtype);
  std::vector<std::byte> bytes(static_cast<size_t>(count) * row_bytes);
  MF_CUDA(
      cudaMemcpy(bytes.data(),
                 static_cast<const std::byte*>(from.data) + static_cast<size_t>(row0) * row_bytes,
                 bytes.size(), cudaMemcpyDeviceToHost));
  for (int32_t i = 0; i < count; ++i) {
    decode_row(dtype, bytes.data() + static_cast<size_t>(i) * row_bytes, from.cols,
               out + int64_t{i} * from.cols);
  }
}

const void* CudaWeights::matrix(SiteRef site) const {
  const Piece& found = piece(site, WeightPart::kWeight);
  MF_ASSERT(found.data != nullptr);
  return found.data;
}

const float* CudaWeights::vector(SiteRef site) const {
  return static_cast<const float*>(piece(site, WeightPart::kWeight).data);
}

const float* CudaWeights::bias(SiteRef site) const {
  return static_cast<const float*>(piece(site, WeightPart::kBias).data);
}

}  // namespace manyfold::cuda
