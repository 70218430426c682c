// REDUCE: v = A x of every lowrank term of a group of sites, as partial sums.
//
// Item: (tile, span of kReduceSpan inputs), one block of 8 warps. The tile's inputs of the span lie
// in shared memory as float32 (16 KiB at 8 rows); each warp takes two rank rows at a time, lanes
// along the inputs, 16 bytes a load, and sums its lanes once at the end. An item of one bf16 LoRA
// of rank 16 reads 16 KiB of A; with q, k and v 48 KiB. Nothing is added in memory: each item
// writes its own plane. Not yet measured on a GPU.
#include "adapter_common.cuh"

namespace manyfold::cuda {

namespace {

// Blocks that fit a multiprocessor at once; the grid is persistent.
constexpr int kBlocksEach = 4;

struct ReduceParams {
  StepTables tables;
  SiteRef sites[kMostGroupSites];
  int32_t site_count, by_entry;
  Dtype dtype;
  const void* x;
  int32_t cols, x_stride;
  float* planes;
  int32_t plane_rows, plane_width, spans;
};

// Sums over the lanes of one rank row for rows of the tile from `first` on; lane 0 writes them.
MF_DEVICE void write_sums(const ReduceParams& p, const TileRows& tile, int first, int span, int at,
                          float scale, const float (&sums)[kHalfTile]) {
  MF_UNROLL
  for (int r = 0; r < kHalfTile; ++r) {
    if (first + r >= tile.count) continue;
    const float sum = warp_sum(sums[r]);
    if (threadIdx.x % kWarpSize != 0) continue;
    const int64_t row = static_cast<int64_t>(span) * p.plane_rows + tile.rows[first + r];
    p.planes[row * p.plane_width + at] = scale * sum;
  }
}

MF_DEVICE void reduce_term(const ReduceParams& p, const TileRows& tile, int span,
                           const DeviceLowRank& term, const float* x) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  for (int rank = 2 * warp; rank < term.rank; rank += 2 * kAdapterWarps) {
    const int second = min(rank + 1, term.rank - 1);
    const FactorRow factor[2] = {factor_row(term.a, rank), factor_row(term.a, second)};
    MF_NO_UNROLL
    for (int first = 0; first < tile.count; first += kHalfTile) {
      float sums[2][kHalfTile] = {};
      dot_lanes_of(term.a, factor, span * kReduceSpan, x + first * kReduceSpan, tile.count - first,
                   sums);
      write_sums(p, tile, first, span, term.v0 + rank, factor_scale(term.a, rank), sums[0]);
      if (second != rank)
        write_sums(p, tile, first, span, term.v0 + second, factor_scale(term.a, second), sums[1]);
    }
  }
}

MF_DEVICE bool has_lowrank(const ReduceParams& p, int32_t set) {
  for (int s = 0; s < p.site_count; ++s) {
    const DeviceSite* site = site_of(p.tables, set, p.sites[s]);
    if (site != nullptr && site->lowranks > 0) return true;
  }
  return false;
}

MF_KERNEL void __launch_bounds__(kAdapterThreads, kBlocksEach) reduce_kernel(ReduceParams p) {
  MF_SHARED(float4, quads, kTileRows * kReduceSpan / 4);
  float* x = reinterpret_cast<float*>(quads);
  const int items = tile_count(p.tables, p.by_entry != 0) * p.spans;
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    const TileRows tile = tile_rows(p.tables, p.by_entry != 0, item / p.spans);
    const int span = item % p.spans;
    if (!has_lowrank(p, tile.set)) continue;
    stage_inputs(p.x, p.dtype, p.x_stride, span * kReduceSpan, p.cols, tile, x);
    __syncthreads();
    for (int s = 0; s < p.site_count; ++s) {
      const DeviceSite* site = site_of(p.tables, tile.set, p.sites[s]);
      const int terms = site == nullptr ? 0 : site->lowranks;
      for (int t = 0; t < terms; ++t) reduce_term(p, tile, span, site->lowrank[t], x);
    }
    __syncthreads();
  }
}

}  // namespace

void launch_adapter_reduce(const AdapterArgs& args, cudaStream_t stream) {
  ReduceParams p = {};
  p.tables = args.tables;
  for (int32_t s = 0; s < args.site_count; ++s)
    p.sites[s] = args.sites[static_cast<size_t>(s)].site;
  p.site_count = args.site_count;
  p.by_entry = args.by_entry ? 1 : 0;
  p.dtype = args.dtype;
  p.x = args.x;
  p.cols = args.cols;
  p.x_stride = args.x_stride;
  p.planes = args.planes;
  p.plane_rows = args.plane_rows;
  p.plane_width = args.plane_width;
  p.spans = (args.cols + kReduceSpan - 1) / kReduceSpan;
  const auto blocks = static_cast<unsigned>(args.multiprocessors * kBlocksEach);
  MF_LAUNCH(reduce_kernel, blocks, kAdapterThreads, 0, stream, p);
  MF_CUDA(cudaGetLastError());
}

}  // namespace manyfold::cuda
