// What adapters do before and behind a base product: u = M (h ⊙ x) in front of it, overridden rows
// of the head and y = Q (g ⊙ y) behind it. Callers launch these only for steps with such a set.
#include <algorithm>

#include "../../core/error.h"
#include "adapter_common.cuh"
#include "chains.h"

namespace manyfold::cuda {

namespace {

constexpr int kMostRowBlocks = 1024;
constexpr int kOverrideRows = 2 * kAdapterWarps;  // of one item
constexpr int kMostOverrideBlocks = 64;

MF_DEVICE int32_t set_of(const StepTables& tables, bool by_entry, int32_t row) {
  return tables.row_set[by_entry ? tables.entry_row[row] : row];
}

// u = h ⊙ x, or x, with zeros behind the columns; where a pre chain follows, h ⊙ x goes to scratch
// as float32. A thread takes one column of a row.
MF_KERNEL void __launch_bounds__(kAdapterThreads) inputs_kernel(AdapterInputArgs p) {
  const int rows = p.by_entry ? p.tables.counts->entries : p.tables.counts->rows;
  const int k = static_cast<int>(blockIdx.x) * kAdapterThreads + static_cast<int>(threadIdx.x);
  for (int row = static_cast<int>(blockIdx.y); row < rows; row += static_cast<int>(gridDim.y)) {
    if (k >= p.x_stride) continue;
    const DeviceSite* site = site_of(p.tables, set_of(p.tables, p.by_entry, row), p.site);
    const int64_t at = static_cast<int64_t>(row) * p.x_stride + k;
    float value = k < p.cols ? input_at(p.x, p.dtype, at) : 0.0f;
    if (site != nullptr && site->h != nullptr && k < p.cols) value *= site->h[k];
    if (site != nullptr && site->pre != nullptr && k < p.cols) {
      p.scratch[static_cast<int64_t>(row) * 2 * p.scratch_width + k] = value;
    } else {
      store_input(p.u, p.dtype, at, value);
    }
  }
}

// Products of two overridden rows of the head by one warp, over all inputs in spans.
MF_DEVICE void override_pair(const AdapterOutputArgs& p, const TileRows& tile,
                             const DeviceSite& site, int first, float* x) {
  const int i = first + 2 * (static_cast<int>(threadIdx.x) / kWarpSize);
  float sums[2][kTileRows] = {};
  for (int from = 0; from < p.cols; from += kReduceSpan) {
    stage_inputs(p.u, p.dtype, p.u_stride, from, p.cols, tile, x);
    __syncthreads();
    for (int k = static_cast<int>(threadIdx.x) % kWarpSize; k < min(kReduceSpan, p.cols - from);
         k += kWarpSize) {
      MF_UNROLL
      for (int f = 0; f < 2; ++f) {
        if (i + f >= site.overrides) continue;
        const float w = site.override_values[static_cast<int64_t>(i + f) * p.cols + from + k];
        MF_UNROLL
        for (int r = 0; r < kTileRows; ++r) {
          if (r >= tile.count) continue;
          const float in = x[r * kReduceSpan + 4 * swizzled_quad(k / 4) + k % 4];
          sums[f][r] = fmaf(w, in, sums[f][r]);
        }
      }
    }
    __syncthreads();
  }
  MF_UNROLL
  for (int f = 0; f < 2; ++f) {
    MF_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      if (r >= tile.count) continue;
      const float sum = warp_sum(sums[f][r]);
      if (threadIdx.x % kWarpSize == 0 && i + f < site.overrides)
        p.site.y[static_cast<int64_t>(tile.rows[r]) * p.y_stride + site.override_ids[i + f]] = sum;
    }
  }
}

// Item: (tile, kOverrideRows overridden rows); a warp takes two of them, lanes along the inputs.
MF_KERNEL void __launch_bounds__(kAdapterThreads, 4) overrides_kernel(AdapterOutputArgs p) {
  MF_SHARED(float4, quads, kTileRows * kReduceSpan / 4);
  const int tiles = tile_count(p.tables, p.by_entry);
  for (int t = static_cast<int>(blockIdx.y); t < tiles; t += static_cast<int>(gridDim.y)) {
    const TileRows tile = tile_rows(p.tables, p.by_entry, t);
    const DeviceSite* site = site_of(p.tables, tile.set, p.site.site);
    const int count = site == nullptr ? 0 : site->overrides;
    for (int first = static_cast<int>(blockIdx.x) * kOverrideRows; first < count;
         first += static_cast<int>(gridDim.x) * kOverrideRows) {
      override_pair(p, tile, *site, first, reinterpret_cast<float*>(quads));
    }
  }
}

}  // namespace

void launch_adapter_inputs(const AdapterInputArgs& args, cudaStream_t stream) {
  MF_ASSERT(args.chain_stages >= 0);
  const auto columns =
      static_cast<unsigned>((args.x_stride + kAdapterThreads - 1) / kAdapterThreads);
  const auto rows = static_cast<unsigned>(std::clamp(args.rows, 1, kMostRowBlocks));
  MF_LAUNCH(inputs_kernel, dim3(columns, rows), kAdapterThreads, 0, stream, args);
  MF_CUDA(cudaGetLastError());
  if (args.chain_stages == 0) return;
  ChainArgs chain;
  chain.tables = args.tables;
  chain.site = args.site;
  chain.placement = BlockPlacement::kPre;
  chain.by_entry = args.by_entry;
  chain.dtype = args.dtype;
  chain.u = args.u;
  chain.rows = args.rows;
  chain.cols = chain.outs = args.cols;
  chain.x_stride = args.x_stride;
  chain.scratch = args.scratch;
  chain.scratch_width = args.scratch_width;
  chain.stages = args.chain_stages;
  launch_chain(chain, stream);
}

void launch_adapter_outputs(const AdapterOutputArgs& args, cudaStream_t stream) {
  MF_ASSERT(args.chain_stages >= 0);
  if (args.site.site.site == Site::kHead) {
    const auto tiles = static_cast<unsigned>(std::clamp(args.rows, 1, kMostOverrideBlocks));
    MF_LAUNCH(overrides_kernel, dim3(kMostOverrideBlocks, tiles), kAdapterThreads, 0, stream, args);
    MF_CUDA(cudaGetLastError());
  }
  if (args.chain_stages == 0) return;
  ChainArgs chain;
  chain.tables = args.tables;
  chain.site = args.site.site;
  chain.placement = BlockPlacement::kPost;
  chain.by_entry = args.by_entry;
  chain.dtype = args.dtype;
  chain.y = args.site.y;
  chain.rows = args.rows;
  chain.outs = args.site.outs;
  chain.y_stride = args.y_stride;
  chain.scratch = args.scratch;
  chain.scratch_width = args.scratch_width;
  chain.stages = args.chain_stages;
  launch_chain(chain, stream);
}

}  // namespace manyfold::cuda
