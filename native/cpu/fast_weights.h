// Base weights of the fast CPU backend, packed in panels once at load. A tied head and the
// embedding are one matrix: embedding rows are picked out of the panels.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "../core/backend.h"
#include "huge_memory.h"
#include "kernels/kernels.h"
#include "thread_pool.h"

namespace manyfold {

struct PackedMatrix {
  const std::byte* panels = nullptr;
  Dtype dtype = Dtype::kF32;
  WeightFormat format = WeightFormat::kPlain;
  int32_t rows = 0, cols = 0;
  int32_t panel_rows = 0;
  size_t panel_bytes = 0;

  bool wide() const { return format == WeightFormat::kQ4Wide; }
  int32_t panel_count() const { return (rows + panel_rows - 1) / panel_rows; }
  size_t bytes() const { return static_cast<size_t>(panel_count()) * panel_bytes; }
};

class FastWeights final : public WeightStore {
 public:
  // Keeps references; reserves the memory of all matrices of the model. formats: by site_index;
  // none: matrix_format(format, site).
  FastWeights(const ModelConfig& model, Dtype dtype, const Kernels& kernels, ThreadPool& pool,
              WeightFormat format = WeightFormat::kPlain,
              std::span<const WeightFormat> formats = {});

  void add_weight(SiteRef site, WeightPart part, int32_t rows, int32_t cols,
                  const RowReader& read) override;
  bool holds_q4(SiteRef site) const override;
  void add_q4_weight(SiteRef site, int32_t rows, int32_t cols, const Q4Reader& read) override;
  void read_weight(SiteRef site, WeightPart part, int32_t row0, int32_t count,
                   float* out) const override;
  bool has_weight(SiteRef site, WeightPart part) const override;
  size_t weight_bytes() const override { return bytes_; }
  WeightFormat format() const { return format_; }

  // Of a linear site or the embedding; a tied head is the embedding. Throws kBug for one that was
  // never added.
  const PackedMatrix& matrix(SiteRef site) const;
  // [out, padded with zeros to kRowPad], or null when the linear has none.
  const float* bias(SiteRef site) const;
  // [n] of a norm site.
  const float* norm(SiteRef site) const;
  // Row of the embedding [hidden].
  void embedding_row(int32_t token, float* out) const;

 private:
  struct Slot {
    PackedMatrix matrix;  // laid out by the constructor
    bool packed = false;
    int32_t width = 0;
    std::vector<float> values;  // norm weight or bias
  };

  void lay_out(WeightFormat format, std::span<const WeightFormat> formats);
  void set_panels(PackedMatrix& matrix) const;
  Slot& slot(SiteRef site, WeightPart part);
  Slot& start(SiteRef site, WeightPart part, int32_t rows, int32_t cols);
  const Slot* find(SiteRef site, WeightPart part) const;
  void for_panels(const PackedMatrix& matrix,
                  const std::function<void(int32_t first, int32_t count, std::byte* panel,
                                           int32_t thread)>& pack);
  void pack(const PackedMatrix& matrix, const RowReader& read);
  void pack_panel(const PackedMatrix& matrix, float* rows, int32_t count, std::byte* panel) const;
  void unpack_row(const PackedMatrix& matrix, int32_t row, float* out) const;

  const ModelConfig& model_;
  const Dtype dtype_;
  const WeightFormat format_;  // asked for; each matrix has its own
  const Kernels& kernels_;
  ThreadPool& pool_;
  HugeBuffer memory_;
  std::vector<Slot> weights_, biases_;  // by site_index
  size_t bytes_ = 0;
};

}  // namespace manyfold
