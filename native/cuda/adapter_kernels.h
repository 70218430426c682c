// Launches of adapters' kernels (kernels/adapter_*.cu), over the tiles of StepTables: each tile is
// up to kTileRows rows of one set. Grids are persistent: their size does not depend on how many
// adapters a step has. All sums have a fixed order and nothing is added atomically.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstdint>

#include "../core/dtype.h"
#include "step_tables.h"

namespace manyfold::cuda {

inline constexpr int32_t kMostGroupSites = 3;
// Inputs that one item of a REDUCE sums; fixes the order of sums.
inline constexpr int32_t kReduceSpan = 512;

// One linear of a group that shares its input (q, k, v; gate, up; o; down; head).
struct AdapterSite {
  SiteRef site;
  float* y = nullptr;  // [rows, y_stride]
  int32_t outs = 0;
};

struct AdapterArgs {
  StepTables tables;
  std::array<AdapterSite, kMostGroupSites> sites;
  int32_t site_count = 0;
  bool by_entry = false;  // tiles of entries instead of rows (the head)
  Dtype dtype = Dtype::kBf16;
  const void* x = nullptr;  // [rows, x_stride] of dtype
  int32_t cols = 0, x_stride = 0, y_stride = 0;
  // [⌈cols / kReduceSpan⌉][plane_rows][plane_width] sums of REDUCE; ranks of the group's lowrank
  // terms lie at their v0.
  float* planes = nullptr;
  int32_t plane_rows = 0, plane_width = 0;
  int32_t multiprocessors = 1;
  // 0: no set that a step under this graph can have has rowcol or sparse terms (SetFacts::others),
  // which saves a launch of SPREAD.
  int32_t others = 1;
  // For sets with additive chains (SetFacts::additives): scratch [rows, 2, scratch_width], most
  // such chains at one site and stages of the longest chain, of any set that a step under this
  // graph can have; 0 and null: none has any. Negative counts are refused, so that none is
  // forgotten.
  float* scratch = nullptr;
  int32_t scratch_width = 0, additives = -1, chain_stages = -1;
};

// REDUCE: planes = partial sums of A x of every lowrank term of the group's sites.
void launch_adapter_reduce(const AdapterArgs& args, cudaStream_t stream);
// SPREAD and everything else of a linear in the order of core/terms: y = g ⊙ y, then lowrank,
// rowcol, sparse and additive blockdiag differences, then + c. Overrides (of the head) and post
// chains have been applied.
void launch_adapter_spread(const AdapterArgs& args, cudaStream_t stream);

// u = M (h ⊙ x) for rows whose set changes the site's inputs; other rows of u are copies of x.
struct AdapterInputArgs {
  StepTables tables;
  SiteRef site = {0, Site::kQ};
  bool by_entry = false;
  Dtype dtype = Dtype::kBf16;
  const void* x = nullptr;
  void* u = nullptr;  // [rows, x_stride]
  int32_t rows = 0, cols = 0, x_stride = 0;
  float* scratch = nullptr;  // [rows, 2, scratch_width] of chains
  int32_t scratch_width = 0;
  int32_t chain_stages = -1;  // as AdapterArgs
};
void launch_adapter_inputs(const AdapterInputArgs& args, cudaStream_t stream);

// y[id] = override row · u for overridden ids of the head (before g), then y = Q(g ⊙ y) where the
// set has a post chain (and then g is not applied again by SPREAD).
struct AdapterOutputArgs {
  StepTables tables;
  AdapterSite site;
  bool by_entry = false;
  Dtype dtype = Dtype::kBf16;
  const void* u = nullptr;  // [rows, u_stride]
  int32_t rows = 0, cols = 0, u_stride = 0, y_stride = 0;
  float* scratch = nullptr;  // as AdapterInputArgs
  int32_t scratch_width = 0;
  int32_t chain_stages = -1;
};
void launch_adapter_outputs(const AdapterOutputArgs& args, cudaStream_t stream);

// block_out[r] = bottleneck terms of the residual site applied, in order.
struct BottleneckArgs {
  StepTables tables;
  SiteRef site = {0, Site::kResidualAttn};
  Dtype dtype = Dtype::kBf16;
  const void* normed = nullptr;     // [rows, normed_stride] the sub-block's input
  const float* residual = nullptr;  // [rows, hidden]
  float* block_out = nullptr;       // [rows, hidden]
  int32_t rows = 0, hidden = 0, normed_stride = 0;
  float* scratch = nullptr;  // [rows, scratch_width], scratch_width >= middle + hidden
  int32_t scratch_width = 0;
  int32_t most_terms = -1;  // at one site, of any such set (SetFacts::bottlenecks)
};
void launch_bottlenecks(const BottleneckArgs& args, cudaStream_t stream);

}  // namespace manyfold::cuda
