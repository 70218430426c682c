// Chains of block-diagonal maps, stage by stage over tiles of rows: one launch puts the inputs into
// scratch as float32, one for each stage goes from one half of scratch to the other, one writes the
// result. A stage's item is (tile, 64 outputs): 8 lanes take one row of a block, for all rows of
// the tile at once, so a stage's blocks are read once for each tile. Not yet measured on a GPU.
#include "chains.h"

#include <algorithm>

#include "adapter_common.cuh"

namespace manyfold::cuda {

namespace {

constexpr int kOctet = 8;
constexpr int kStageOutputs = 64;
constexpr int kMostTileBlocks = 512;

// The chain that the arguments name, or null where the tile's set lacks it.
MF_DEVICE const DeviceChain* find_chain(const ChainArgs& p, int32_t set) {
  const DeviceSite* site = site_of(p.tables, set, p.site);
  if (site == nullptr) return nullptr;
  if (p.placement == BlockPlacement::kPre) return site->pre;
  if (p.placement == BlockPlacement::kPost) return site->post;
  return p.index < site->additives ? site->additive + p.index : nullptr;
}

MF_DEVICE float* half_of(const ChainArgs& p, int32_t row, int32_t half) {
  return p.scratch + (static_cast<int64_t>(row) * 2 + half) * p.scratch_width;
}

MF_KERNEL void __launch_bounds__(kAdapterThreads) begin_kernel(ChainArgs p) {
  const int tiles = tile_count(p.tables, p.by_entry);
  const bool post = p.placement == BlockPlacement::kPost;
  const int i = static_cast<int>(blockIdx.x) * kAdapterThreads + static_cast<int>(threadIdx.x);
  for (int t = static_cast<int>(blockIdx.y); t < tiles; t += static_cast<int>(gridDim.y)) {
    const TileRows tile = tile_rows(p.tables, p.by_entry, t);
    if (find_chain(p, tile.set) == nullptr || i >= (post ? p.outs : p.cols)) continue;
    const float* g = post ? site_of(p.tables, tile.set, p.site)->g : nullptr;
    for (int r = 0; r < tile.count; ++r) {
      const int64_t row = tile.rows[r];
      const float value = post ? (g == nullptr ? 1.0f : g[i]) * p.y[row * p.y_stride + i]
                               : input_at(p.x, p.dtype, row * p.x_stride + i);
      half_of(p, tile.rows[r], 0)[i] = value;
    }
  }
}

// sums[r] = the lane's part of output i for every row of the tile.
MF_DEVICE void stage_sums(const ChainArgs& p, const TileRows& tile, const DeviceStage& stage, int i,
                          int half, float (&sums)[kTileRows]) {
  const int64_t block0 = static_cast<int64_t>(i / stage.p) * stage.q;
  const float* weights = stage.blocks + static_cast<int64_t>(i) * stage.q;
  for (int j = static_cast<int>(threadIdx.x) % kOctet; j < stage.q; j += kOctet) {
    const int64_t from = stage.gather == nullptr ? block0 + j : stage.gather[block0 + j];
    const float weight = weights[j];
    MF_UNROLL
    for (int r = 0; r < kTileRows; ++r) {
      if (r < tile.count) sums[r] = fmaf(weight, half_of(p, tile.rows[r], half)[from], sums[r]);
    }
  }
}

MF_KERNEL void __launch_bounds__(kAdapterThreads) stage_kernel(ChainArgs p, int32_t s) {
  const int tiles = tile_count(p.tables, p.by_entry);
  for (int t = static_cast<int>(blockIdx.y); t < tiles; t += static_cast<int>(gridDim.y)) {
    const TileRows tile = tile_rows(p.tables, p.by_entry, t);
    const DeviceChain* chain = find_chain(p, tile.set);
    if (chain == nullptr || s >= chain->stage_count) continue;
    const DeviceStage stage = chain->stages[s];
    const int outputs = stage.count * stage.p;
    const int first = static_cast<int>(blockIdx.x) * kStageOutputs;
    const int last = min(first + kStageOutputs, outputs);
    for (int base = first; base < last; base += kAdapterThreads / kOctet) {
      const int i = base + static_cast<int>(threadIdx.x) / kOctet;
      float sums[kTileRows] = {};
      if (i < last) stage_sums(p, tile, stage, i, s % 2, sums);
      MF_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        if (r >= tile.count) continue;
        const float sum = octet_sum(sums[r]);
        if (i < last && threadIdx.x % kOctet == 0) half_of(p, tile.rows[r], (s + 1) % 2)[i] = sum;
      }
    }
  }
}

MF_DEVICE void write_result(const ChainArgs& p, const DeviceSite& site, const DeviceChain& chain,
                            int32_t row, int i) {
  const int from = chain.output == nullptr ? i : static_cast<int>(chain.output[i]);
  const float value = half_of(p, row, chain.stage_count % 2)[from];
  if (p.placement == BlockPlacement::kPre) {
    store_input(p.u, p.dtype, static_cast<int64_t>(row) * p.x_stride + i, value);
    return;
  }
  float* y = p.y + static_cast<int64_t>(row) * p.y_stride + i;
  if (p.placement == BlockPlacement::kPost) {
    *y = value;
    return;
  }
  float sum = fmaf(chain.scale, value, *y);
  if (p.index == site.additives - 1 && site.c != nullptr) sum += site.c[i];
  *y = sum;
}

MF_KERNEL void __launch_bounds__(kAdapterThreads) end_kernel(ChainArgs p) {
  const int tiles = tile_count(p.tables, p.by_entry);
  const int i = static_cast<int>(blockIdx.x) * kAdapterThreads + static_cast<int>(threadIdx.x);
  for (int t = static_cast<int>(blockIdx.y); t < tiles; t += static_cast<int>(gridDim.y)) {
    const TileRows tile = tile_rows(p.tables, p.by_entry, t);
    const DeviceChain* chain = find_chain(p, tile.set);
    if (chain == nullptr || i >= chain->out) continue;
    const DeviceSite* site = site_of(p.tables, tile.set, p.site);
    for (int r = 0; r < tile.count; ++r) write_result(p, *site, *chain, tile.rows[r], i);
  }
}

unsigned pieces(int32_t width, int32_t piece) {
  return static_cast<unsigned>((width + piece - 1) / piece);
}

}  // namespace

void launch_chain(const ChainArgs& args, cudaStream_t stream) {
  // A step has no more tiles than rows.
  const auto tiles = static_cast<unsigned>(std::clamp(args.rows, 1, kMostTileBlocks));
  const int32_t width = std::max(args.cols, args.outs);
  if (args.placement != BlockPlacement::kPre) {
    MF_LAUNCH(begin_kernel, dim3(pieces(width, kAdapterThreads), tiles), kAdapterThreads, 0, stream,
              args);
    MF_CUDA(cudaGetLastError());
  }
  const dim3 grid(pieces(args.scratch_width, kStageOutputs), tiles);
  for (int32_t s = 0; s < args.stages; ++s) {
    MF_LAUNCH(stage_kernel, grid, kAdapterThreads, 0, stream, args, s);
    MF_CUDA(cudaGetLastError());
  }
  MF_LAUNCH(end_kernel, dim3(pieces(width, kAdapterThreads), tiles), kAdapterThreads, 0, stream,
            args);
  MF_CUDA(cudaGetLastError());
}

}  // namespace manyfold::cuda
