// One step's adapters as the adapter kernels' tests see them: sets packed into the emulation's
// device memory, tables of tiles, inputs and outputs, and every term's maths in float64 straight
// from its TermTensor. Used by adapter_test and bottleneck_test.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "../../cuda/adapter_kernels.h"
#include "../../cuda/handles.h"
#include "../../cuda/pack_terms.h"
#include "aligned_data.h"

namespace manyfold::test {

using Doubles = std::vector<double>;

enum class Factor { kF32, kF16, kBf16, kInt8, kTernary };
inline constexpr Factor kFactors[] = {Factor::kF32, Factor::kF16, Factor::kBf16, Factor::kInt8,
                                      Factor::kTernary};

// Random terms of given shapes.
class TermMaker {
 public:
  explicit TermMaker(unsigned seed) : random_(seed) {}

  float value() { return static_cast<float>(normal(random_)); }
  std::vector<float> floats(int32_t count);
  TermTensor tensor(Factor factor, std::vector<int32_t> shape);
  // Ascending numbers below `limit`, each taken with chance 1 / every; at least one.
  std::vector<uint32_t> ascending(int32_t every, int32_t limit);
  std::vector<uint32_t> below(int32_t count, int32_t limit);

  LowRank lowrank(Factor factor, int32_t in, int32_t out, int32_t rank);
  RowCol rowcol(Factor factor, RowColSide side, int32_t in, int32_t out, int32_t every);
  Sparse sparse(Factor factor, int32_t in, int32_t out, int32_t every);
  // Stages with gathers, all but the last of `inner` values in blocks of 2; then an output map.
  BlockDiag chain(BlockPlacement placement, int32_t in, int32_t out, int32_t stages, int32_t inner);

 private:
  TermTensor dense(Factor factor, std::vector<int32_t> shape);
  std::mt19937 random_;
};

// What `set` makes of one row at a site.
Doubles expected_input(const TermSet& set, SiteRef site, Doubles x);
Doubles expected_output(const TermSet& set, SiteRef site, const Doubles& u, Doubles y);
// SPREAD's part; the row's gates may be null.
Doubles expected_spread(const TermSet& set, SiteRef site, const Doubles& x, Doubles y,
                        const float* gates, int32_t gate_width);

struct CaseSite {
  SiteRef site;
  int32_t outs;
};

struct CaseOptions {
  Dtype dtype = Dtype::kBf16;
  int32_t cols = 0;
  std::vector<CaseSite> sites;
  std::vector<int32_t> row_set;  // -1: base
  bool by_entry = false;
  bool zero_y = false;
  int32_t gate_width = 0;  // with it every other row has gates
  unsigned seed = 1;
};

class AdapterCase {
 public:
  AdapterCase(const CaseOptions& options, const std::vector<TermSet>& sets);

  // Tiles of these rows alone, and outputs as they were at first.
  void restart(const std::vector<int32_t>& rows);
  void restart();
  void reduce_and_spread();
  void inputs(size_t site);
  void outputs(size_t site);

  const cuda::SetFacts& facts() const { return facts_; }
  int32_t rows() const { return static_cast<int32_t>(options_.row_set.size()); }
  Doubles input(int32_t row) const { return input_of(x_, row); }
  Doubles changed(int32_t row) const { return input_of(u_, row); }
  const float* output(size_t site, int32_t row) const;
  Doubles output_values(size_t site, int32_t row) const;
  const float* gates(int32_t row) const;
  const cuda::StepTables& tables() const { return tables_; }
  const void* input_data() const { return x_.data(); }
  int32_t input_stride() const { return x_stride_; }

 private:
  void pack(const std::vector<TermSet>& sets);
  void fill();
  Doubles input_of(const AlignedArray<unsigned char>& from, int32_t row) const;
  size_t element() const { return options_.dtype == Dtype::kF32 ? 4 : 2; }
  cuda::AdapterArgs args();

  CaseOptions options_;
  ModelConfig model_;
  cuda::SetFacts facts_;
  std::mt19937 random_;
  int32_t x_stride_, y_stride_, plane_rows_;
  std::vector<cuda::DeviceMemory> memory_;
  std::vector<cuda::DeviceSet> device_sets_;
  std::vector<float> gates_, first_y_;
  std::vector<int32_t> row_set_, row_gate_, entry_row_, tile_rows_;
  std::vector<cuda::AdapterTile> tiles_;
  cuda::StepCounts counts_ = {};
  cuda::StepTables tables_ = {};
  AlignedArray<unsigned char> x_, u_;
  AlignedArray<float> y_, planes_, scratch_;
};

}  // namespace manyfold::test
