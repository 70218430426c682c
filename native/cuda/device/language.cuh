// One source, two compilers: nvcc for the device, and g++ over native/test/simt for tests. Kernels
// are written with these words and CUDA's own; everything that only one of the two compilers can
// read stands in this folder.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#if defined(__CUDACC__)

#define MF_KERNEL __global__
#define MF_DEVICE __device__ __forceinline__
// An array that the threads of a block share.
#define MF_SHARED(type, name, count) __shared__ type name[count]
// The shared memory whose size the launch gives; 128-byte aligned.
#define MF_DYNAMIC_SHARED(type, name)                              \
  extern __shared__ __align__(128) unsigned char mf_dynamic_raw[]; \
  type* const name = reinterpret_cast<type*>(mf_dynamic_raw)
// A kernel with template arguments goes in parentheses.
#define MF_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
#define MF_UNROLL _Pragma("unroll")

#else

#define MF_KERNEL
#define MF_DEVICE inline
// The lambda's own static marks the place: one array for each place and block.
#define MF_SHARED(type, name, count)                        \
  type* const name = static_cast<type*>(simt::shared_piece( \
      [] {                                                  \
        static const char place = 0;                        \
        return static_cast<const void*>(&place);            \
      }(),                                                  \
      sizeof(type) * static_cast<size_t>(count)))
#define MF_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(simt::dynamic_shared())
#define MF_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  simt::launch(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)
#define MF_UNROLL

#endif

namespace manyfold::cuda {

inline constexpr unsigned kFullWarp = 0xffffffffu;
inline constexpr int kWarpSize = 32;

// Sum over the warp, the same bits in every lane: a butterfly, whose order is fixed.
MF_DEVICE float warp_sum(float value) {
  MF_UNROLL
  for (int other = kWarpSize / 2; other > 0; other /= 2)
    value += __shfl_xor_sync(kFullWarp, value, other);
  return value;
}

MF_DEVICE float warp_max(float value) {
  MF_UNROLL
  for (int other = kWarpSize / 2; other > 0; other /= 2)
    value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, other));
  return value;
}

// Sum over the block in every thread. partial: shared, one float a warp; blocks of whole warps.
// Ends with a barrier, so that partial may be used again.
MF_DEVICE float block_sum(float value, float* partial) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  value = warp_sum(value);
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < warps; ++i) sum += partial[i];
  __syncthreads();
  return sum;
}

MF_DEVICE float block_max(float value, float* partial) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  value = warp_max(value);
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  float result = partial[0];
  for (int i = 1; i < warps; ++i) result = fmaxf(result, partial[i]);
  __syncthreads();
  return result;
}

}  // namespace manyfold::cuda
