// Products of base weights: out[r, o] = Σ_k input[r, k] · weight[o, k] in float32 (kernels.h).
//
// bf16 and f16 run on tensor cores with weights as the operand of 16 rows and inputs as that of 8
// columns, so that a decode batch of few rows wastes little. Columns are cut into chunks of 32 and
// chunks into kRanges ranges, both by the number of columns alone. Every kernel here sums a range
// chunk by chunk with the same instructions in the same order and then adds the ranges in order, so
// a row's bits depend neither on the kernel nor on the tile nor on the rows beside it: what
// GemmArgs::batch_invariant asks for holds always, and the flag changes nothing.
//
// Within a chunk a lane takes 8 neighbouring columns of a row (one 16-byte word of shared memory)
// for two steps of 16 columns. That permutes the columns of both operands alike, which a sum over
// columns does not see, and replaces ldmatrix: a warp reads 512 bytes in a row, free of conflicts.
//
// Not yet measured on a GPU.
#include "../../core/error.h"
#include "../device/tensor_core.cuh"
#include "../handles.h"
#include "../kernels.h"

namespace manyfold::cuda {
namespace {

constexpr int kChunk = 32;  // columns
constexpr int kRanges = 8;
constexpr int kWarps = kRanges;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kPieces = kChunk / 8;  // pieces of 16 bytes of a row of a chunk

MF_DEVICE int live_rows(const GemmArgs& args) {
  return args.live == nullptr ? args.rows : min(args.rows, *args.live);
}

MF_DEVICE int chunk_count(int cols) {
  return (cols + kChunk - 1) / kChunk;
}
MF_DEVICE int range_chunks(int cols) {
  return (chunk_count(cols) + kRanges - 1) / kRanges;
}

// Rows of a matrix from the first one of a tile on.
template <class T>
struct TileRows {
  const T* data;
  int count, stride, cols;
};

// Starts the copy of chunk `chunk` of kRows rows to tile [kRows][kChunk], by kCopiers threads of
// which the caller is `copier`. Zeros outside the matrix.
template <int kRows, int kCopiers, class T>
MF_DEVICE void copy_chunk(T* tile, const TileRows<T>& rows, int chunk, int copier) {
  constexpr int kStep = kCopiers / kPieces;  // rows between a thread's pieces
  const int row = copier / kPieces, k = chunk * kChunk + copier % kPieces * 8;
  const T* from = rows.data + static_cast<size_t>(row) * rows.stride + k;
  MF_UNROLL
  for (int i = 0; i < kRows / kStep; ++i) {
    const bool valid = row + i * kStep < rows.count && k < rows.cols;
    copy_async_16(tile + (copier + i * kCopiers) * 8, from, valid);
    from += kStep * rows.stride;
  }
}

template <class T>
MF_DEVICE uint4 piece_of(const T* tile, int row, int piece) {
  return *reinterpret_cast<const uint4*>(tile + (row * kPieces + piece) * 8);
}

// sums [16 kM, 8 kN] += weights [16 kM, kChunk] inputs [8 kN, kChunk]ᵀ of one warp.
template <class T, int kM, int kN>
MF_DEVICE void multiply_chunk(float (&sums)[kM][kN][4], const T* weights, const T* inputs,
                              int lane) {
  const int group = lane / 4, piece = lane % 4;
  uint4 top[kM], bottom[kM];
  MF_UNROLL
  for (int m = 0; m < kM; ++m) {
    top[m] = piece_of(weights, 16 * m + group, piece);
    bottom[m] = piece_of(weights, 16 * m + 8 + group, piece);
  }
  MF_UNROLL
  for (int n = 0; n < kN; ++n) {
    const uint4 x = piece_of(inputs, 8 * n + group, piece);
    const uint32_t first[2] = {x.x, x.y}, second[2] = {x.z, x.w};
    MF_UNROLL
    for (int m = 0; m < kM; ++m) {
      const uint32_t w[4] = {top[m].x, bottom[m].x, top[m].y, bottom[m].y};
      mma_16x8x16<T>(sums[m][n], w, first);
    }
    MF_UNROLL
    for (int m = 0; m < kM; ++m) {
      const uint32_t w[4] = {top[m].z, bottom[m].z, top[m].w, bottom[m].w};
      mma_16x8x16<T>(sums[m][n], w, second);
    }
  }
}

template <int kM, int kN>
MF_DEVICE void clear(float (&sums)[kM][kN][4]) {
  MF_UNROLL
  for (int m = 0; m < kM; ++m) {
    MF_UNROLL
    for (int n = 0; n < kN; ++n) {
      MF_UNROLL
      for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
    }
  }
}

// ---- Few rows: bound by the bytes of the weights ----

constexpr int kSkinnyOuts = 32;
// Row stride of partial sums in shared memory: lanes of a store fall on 32 banks.
constexpr int kPartialStride = kSkinnyOuts + 4;

template <int kN, int kStages>
constexpr size_t skinny_bytes() {
  const size_t ring = size_t{kWarps} * kStages * (kSkinnyOuts + 8 * kN) * kChunk * 2;
  const size_t partials = size_t{kWarps} * 8 * kN * kPartialStride * sizeof(float);
  return ring > partials ? ring : partials;
}

// Adds the warps' sums in order and writes them. partials: shared memory that nobody uses.
template <int kN>
MF_DEVICE void write_skinny(const GemmArgs& args, const float (&sums)[2][kN][4], float* partials,
                            int first_out, int rows) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize, warp = thread / kWarpSize;
  MF_UNROLL
  for (int m = 0; m < 2; ++m) {
    MF_UNROLL
    for (int n = 0; n < kN; ++n) {
      MF_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int out = 16 * m + lane / 4 + 8 * (i / 2), row = 8 * n + 2 * (lane % 4) + i % 2;
        partials[(warp * 8 * kN + row) * kPartialStride + out] = sums[m][n][i];
      }
    }
  }
  __syncthreads();
  for (int i = thread; i < 8 * kN * kSkinnyOuts; i += kThreads) {
    const int row = i / kSkinnyOuts, out = i % kSkinnyOuts;
    float total = 0.0f;
    MF_UNROLL
    for (int w = 0; w < kWarps; ++w) total += partials[(w * 8 * kN + row) * kPartialStride + out];
    if (row < rows && first_out + out < args.outs)
      args.out[static_cast<size_t>(row) * args.out_stride + first_out + out] = total;
  }
}

// Up to 8 kN rows. A block takes kSkinnyOuts outs; warp w takes range w of their columns through a
// ring of kStages chunks of its own, so that no barrier stands between weights and their use.
// Bytes of an item: kSkinnyOuts · cols weights once, 8 kN · cols inputs from L2.
template <class T, int kN, int kStages>
MF_KERNEL void __launch_bounds__(kThreads, 2) skinny_kernel(GemmArgs args) {
  MF_DYNAMIC_SHARED(unsigned char, shared);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int first_out = static_cast<int>(blockIdx.x) * kSkinnyOuts;
  const int rows = live_rows(args);
  if (rows <= 0) return;
  const TileRows<T> weights = {
      static_cast<const T*>(args.weight) + static_cast<size_t>(first_out) * args.weight_stride,
      args.outs - first_out, args.weight_stride, args.cols};
  const TileRows<T> inputs = {static_cast<const T*>(args.input), rows, args.input_stride,
                              args.cols};
  const int begin = warp * range_chunks(args.cols);
  const int end = min(begin + range_chunks(args.cols), chunk_count(args.cols));
  constexpr int kWeights = kSkinnyOuts * kChunk, kStage = kWeights + 8 * kN * kChunk;
  T* ring = reinterpret_cast<T*>(shared) + warp * kStages * kStage;
  const auto fetch = [&](int chunk) {
    if (chunk < end) {
      T* stage = ring + (chunk - begin) % kStages * kStage;
      copy_chunk<kSkinnyOuts, kWarpSize>(stage, weights, chunk, lane);
      copy_chunk<8 * kN, kWarpSize>(stage + kWeights, inputs, chunk, lane);
    }
    copy_commit();
  };
  float sums[2][kN][4];
  clear(sums);
  for (int i = 0; i < kStages - 1; ++i) fetch(begin + i);
  for (int chunk = begin; chunk < end; ++chunk) {
    copy_wait<kStages - 2>();
    __syncwarp();  // the chunk has arrived for all lanes, and all have used the one before it
    fetch(chunk + kStages - 1);
    const T* stage = ring + (chunk - begin) % kStages * kStage;
    multiply_chunk<T>(sums, stage, stage + kWeights, lane);
  }
  copy_wait<0>();
  __syncthreads();
  write_skinny(args, sums, reinterpret_cast<float*>(shared), first_out, rows);
}

// ---- Many rows: bound by arithmetic ----

constexpr int kWarpsAlongOuts = 2, kWarpsAlongRows = kWarps / kWarpsAlongOuts;
constexpr int kTiledStages = 4;

template <int kM, int kN>
constexpr size_t tiled_bytes() {
  return size_t{kTiledStages} * (kWarpsAlongOuts * 16 * kM + kWarpsAlongRows * 8 * kN) * kChunk * 2;
}

// sums of a finished range go to totals.
template <int kM, int kN>
MF_DEVICE void close_range(float (&totals)[kM][kN][4], float (&sums)[kM][kN][4]) {
  MF_UNROLL
  for (int m = 0; m < kM; ++m) {
    MF_UNROLL
    for (int n = 0; n < kN; ++n) {
      MF_UNROLL
      for (int i = 0; i < 4; ++i) totals[m][n][i] += sums[m][n][i];
    }
  }
  clear(sums);
}

// totals of the warp whose tile begins at (first_out, first_row). Eight lanes write 32 bytes in a
// row.
template <int kM, int kN>
MF_DEVICE void write_tiled(const GemmArgs& args, const float (&totals)[kM][kN][4], int first_out,
                           int first_row, int rows) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  MF_UNROLL
  for (int m = 0; m < kM; ++m) {
    MF_UNROLL
    for (int n = 0; n < kN; ++n) {
      MF_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int out = first_out + 16 * m + lane / 4 + 8 * (i / 2);
        const int row = first_row + 8 * n + 2 * (lane % 4) + i % 2;
        if (row < rows && out < args.outs)
          args.out[static_cast<size_t>(row) * args.out_stride + out] = totals[m][n][i];
      }
    }
  }
}

// A block takes 32 kM outs of 32 kN rows, each of its 2 × 4 warps 16 kM of 8 kN; neighbouring
// blocks share the weights. Bytes of an item: 32 (kM + kN) · cols inputs and weights, mostly from
// L2.
template <class T, int kM, int kN>
MF_KERNEL void __launch_bounds__(kThreads) tiled_kernel(GemmArgs args) {
  MF_DYNAMIC_SHARED(T, ring);
  constexpr int kOuts = kWarpsAlongOuts * 16 * kM, kRows = kWarpsAlongRows * 8 * kN;
  constexpr int kWeights = kOuts * kChunk, kStage = kWeights + kRows * kChunk;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize, warp = thread / kWarpSize;
  const int first_row = static_cast<int>(blockIdx.x) * kRows;
  const int first_out = static_cast<int>(blockIdx.y) * kOuts;
  const int rows = live_rows(args);
  if (first_row >= rows) return;
  const TileRows<T> weights = {
      static_cast<const T*>(args.weight) + static_cast<size_t>(first_out) * args.weight_stride,
      args.outs - first_out, args.weight_stride, args.cols};
  const TileRows<T> inputs = {
      static_cast<const T*>(args.input) + static_cast<size_t>(first_row) * args.input_stride,
      rows - first_row, args.input_stride, args.cols};
  const int chunks = chunk_count(args.cols), range = range_chunks(args.cols);
  const auto fetch = [&](int chunk) {
    if (chunk < chunks) {
      T* stage = ring + chunk % kTiledStages * kStage;
      copy_chunk<kOuts, kThreads>(stage, weights, chunk, thread);
      copy_chunk<kRows, kThreads>(stage + kWeights, inputs, chunk, thread);
    }
    copy_commit();
  };
  const int warp_out = warp / kWarpsAlongRows * 16 * kM, warp_row = warp % kWarpsAlongRows * 8 * kN;
  float totals[kM][kN][4], sums[kM][kN][4];
  clear(totals);
  clear(sums);
  for (int i = 0; i < kTiledStages - 1; ++i) fetch(i);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    copy_wait<kTiledStages - 2>();
    __syncthreads();  // as in skinny_kernel, for all warps
    fetch(chunk + kTiledStages - 1);
    const T* stage = ring + chunk % kTiledStages * kStage;
    multiply_chunk<T>(sums, stage + warp_out * kChunk, stage + kWeights + warp_row * kChunk, lane);
    if ((chunk + 1) % range == 0 || chunk + 1 == chunks) close_range(totals, sums);
  }
  copy_wait<0>();
  write_tiled(args, totals, first_out + warp_out, first_row + warp_row, rows);
}

// ---- float32 ----

constexpr int kFloatTile = 64, kFloatColumns = 16, kFloatStride = kFloatTile + 4;
// Columns whose products are summed apart, which keeps the rounding of long sums small.
constexpr int kFloatRange = 256;

// Columns k0 .. k0 + 15 of the tile's rows to tile [column][row], zeros outside.
MF_DEVICE void load_float_tile(float* tile, const TileRows<float>& rows, int k0) {
  const int row = static_cast<int>(threadIdx.x) / 4, k = static_cast<int>(threadIdx.x) % 4 * 4;
  float4 values = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (row < rows.count)
    values = *reinterpret_cast<const float4*>(rows.data + static_cast<size_t>(row) * rows.stride +
                                              k0 + k);
  tile[k * kFloatStride + row] = values.x;
  tile[(k + 1) * kFloatStride + row] = values.y;
  tile[(k + 2) * kFloatStride + row] = values.z;
  tile[(k + 3) * kFloatStride + row] = values.w;
}

// For exactness, not for speed: a block takes 64 outs of 64 rows, a thread 4 of 4.
MF_KERNEL void __launch_bounds__(kThreads) float_kernel(GemmArgs args) {
  MF_SHARED(float, weight_tile, kFloatColumns* kFloatStride);
  MF_SHARED(float, input_tile, kFloatColumns* kFloatStride);
  const int first_row = static_cast<int>(blockIdx.x) * kFloatTile;
  const int first_out = static_cast<int>(blockIdx.y) * kFloatTile;
  const int rows = live_rows(args);
  if (first_row >= rows) return;
  const TileRows<float> weights = {
      static_cast<const float*>(args.weight) + static_cast<size_t>(first_out) * args.weight_stride,
      args.outs - first_out, args.weight_stride, args.cols};
  const TileRows<float> inputs = {
      static_cast<const float*>(args.input) + static_cast<size_t>(first_row) * args.input_stride,
      rows - first_row, args.input_stride, args.cols};
  const int my_out = static_cast<int>(threadIdx.x) % 16 * 4;
  const int my_row = static_cast<int>(threadIdx.x) / 16 * 4;
  float totals[1][4][4], sums[1][4][4];
  clear(totals);
  clear(sums);
  for (int k0 = 0; k0 < args.cols; k0 += kFloatColumns) {
    __syncthreads();
    load_float_tile(weight_tile, weights, k0);
    load_float_tile(input_tile, inputs, k0);
    __syncthreads();
    MF_UNROLL
    for (int k = 0; k < kFloatColumns; ++k) {
      MF_UNROLL
      for (int i = 0; i < 4; ++i) {
        MF_UNROLL
        for (int j = 0; j < 4; ++j)
          sums[0][i][j] += input_tile[k * kFloatStride + my_row + i] *
                           weight_tile[k * kFloatStride + my_out + j];
      }
    }
    if ((k0 + kFloatColumns) % kFloatRange == 0) close_range(totals, sums);
  }
  close_range(totals, sums);
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int row = first_row + my_row + i, out = first_out + my_out + j;
      if (row < rows && out < args.outs)
        args.out[static_cast<size_t>(row) * args.out_stride + out] = totals[0][i][j];
    }
  }
}

// ---- The choice of a kernel: by shapes alone, for speed alone ----

unsigned tiles(int32_t count, int32_t tile) {
  return static_cast<unsigned>((count + tile - 1) / tile);
}

template <class T, int kN, int kStages>
void launch_skinny(const GemmArgs& args, cudaStream_t stream) {
  constexpr size_t bytes = skinny_bytes<kN, kStages>();
  MF_CUDA(cudaFuncSetAttribute(skinny_kernel<T, kN, kStages>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)));
  MF_LAUNCH((skinny_kernel<T, kN, kStages>), tiles(args.outs, kSkinnyOuts), kThreads, bytes, stream,
            args);
}

template <class T, int kM, int kN>
void launch_tiled(const GemmArgs& args, cudaStream_t stream) {
  constexpr size_t bytes = tiled_bytes<kM, kN>();
  const dim3 grid(tiles(args.rows, kWarpsAlongRows * 8 * kN),
                  tiles(args.outs, kWarpsAlongOuts * 16 * kM));
  MF_CUDA(cudaFuncSetAttribute(tiled_kernel<T, kM, kN>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)));
  MF_LAUNCH((tiled_kernel<T, kM, kN>), grid, kThreads, bytes, stream, args);
}

// Blocks of 128 × 128 below which smaller ones fill a GPU better.
constexpr unsigned kEnoughBlocks = 128;

template <class T>
void launch_tensor(const GemmArgs& args, cudaStream_t stream) {
  // Stages: as many as let two blocks share a multiprocessor of 228 KiB.
  if (args.rows <= 8) return launch_skinny<T, 1, 4>(args, stream);
  if (args.rows <= 16) return launch_skinny<T, 2, 4>(args, stream);
  if (args.rows <= 32) return launch_skinny<T, 4, 3>(args, stream);
  if (args.rows <= 64) return launch_skinny<T, 8, 2>(args, stream);
  if (tiles(args.rows, 128) * tiles(args.outs, 128) < kEnoughBlocks)
    return launch_tiled<T, 2, 2>(args, stream);
  launch_tiled<T, 4, 4>(args, stream);
}

bool aligned(const void* pointer, int32_t stride, size_t element) {
  return reinterpret_cast<uintptr_t>(pointer) % 32 == 0 &&
         static_cast<size_t>(stride) * element % 32 == 0;
}

void check_args(const GemmArgs& args) {
  MF_ASSERT(args.dtype == Dtype::kF32 || args.dtype == Dtype::kBf16 || args.dtype == Dtype::kF16);
  MF_ASSERT(args.weight != nullptr && args.input != nullptr && args.out != nullptr);
  MF_ASSERT(args.rows >= 0 && args.outs > 0);
  MF_ASSERT(args.cols > 0 && args.cols % 16 == 0);
  MF_ASSERT(args.weight_stride >= args.cols && args.input_stride >= args.cols);
  MF_ASSERT(args.out_stride >= args.outs);
  const size_t element = static_cast<size_t>(block_shape(args.dtype).bytes);
  MF_ASSERT(aligned(args.weight, args.weight_stride, element));
  MF_ASSERT(aligned(args.input, args.input_stride, element));
}

}  // namespace

void launch_gemm(const GemmArgs& args, cudaStream_t stream) {
  check_args(args);
  if (args.rows == 0) return;
  if (args.dtype == Dtype::kF32) {
    MF_LAUNCH(float_kernel, dim3(tiles(args.rows, kFloatTile), tiles(args.outs, kFloatTile)),
              kThreads, 0, stream, args);
  } else if (args.dtype == Dtype::kBf16) {
    launch_tensor<Bf16>(args, stream);
  } else {
    launch_tensor<F16>(args, stream);
  }
  MF_CUDA(cudaGetLastError());
}

}  // namespace manyfold::cuda
