// Stands for CUDA's own header when kernels are compiled by a plain C++ compiler: the language of
// device code over fibers, and the part of the runtime API that native/cuda calls. One fiber is one
// CUDA thread; the fibers of a block take turns in an order that a seed decides, so that a missing
// barrier shows. Host memory is device memory, so the address sanitizer watches kernels too.
//
// What it cannot show: races between blocks, occupancy, speed. Warps must be whole (blocks are
// multiples of 32 threads), masks of warp functions full, and no thread may end before a barrier
// that others wait at; whatever breaks this ends the program with a sentence.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int32_t x, y;
};
struct alignas(16) int4 {
  int32_t x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) {
  return {x, y};
}
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  return {x, y, z, w};
}
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

// ---- The runtime API -------------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorDevicesUnavailable = 46,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorECCUncorrectable = 214,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureUnjoined = 904,
  cudaErrorSymbolNotFound = 500,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventDisableTiming = 2;
inline constexpr unsigned cudaHostAllocDefault = 0;

struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  int major, minor, multiProcessorCount;
};

using cudaStream_t = struct SimtStream*;
using cudaEvent_t = struct SimtEvent*;
using cudaGraph_t = struct SimtGraph*;
using cudaGraphExec_t = struct SimtGraph*;

cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaGetLastError();
cudaError_t cudaDeviceSynchronize();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);

cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream);
cudaError_t cudaMemset(void* memory, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

// ---- What the emulation itself offers to tests and to native/cuda/device ------------------------

namespace simt {

// Decides the order in which fibers take turns; 1 at the start.
void set_seed(uint64_t seed);
// The call after `after` further ones of cudaMalloc, cudaHostAlloc (kAllocation) or of launches and
// synchronisations (kLaunch) fails with `error`; kLaunch errors stay, as a lost device does.
enum class Fault { kAllocation, kLaunch };
void plan_fault(Fault kind, int after, cudaError_t error);
void clear_faults();
// Bytes of cudaMalloc and cudaHostAlloc that were not freed; launches so far (graph nodes too).
size_t device_bytes();
size_t pinned_bytes();
uint64_t launches();
// Devices that cudaGetDeviceCount finds (1), and the driver's version (13000).
void set_devices(int count);
void set_driver_version(int version);
void set_compute_capability(int major, int minor);

struct ThreadIndex {
  dim3 thread, block, block_dim, grid_dim;
};
const ThreadIndex& index();

void barrier();
// All lanes of the warp give `bytes` (<= 64) and read what `lanes[i]` gave: 32 slots of 64 bytes,
// valid until leave_warp().
const unsigned char* meet_warp(const void* mine, size_t bytes);
void leave_warp();
unsigned lane();
[[noreturn]] void broken(const char* rule);

// Poisoned memory of the running block: one piece for each place in the source, and the launch's
// dynamic piece.
void* shared_piece(const void* place, size_t bytes);
void* dynamic_shared();

// cp.async: the bytes arrive when they are waited for, not before. valid false writes zeros.
void copy_async(void* to, const void* from, size_t bytes, bool valid);
void copy_commit();
void copy_wait(int groups_left);

void run_kernel(dim3 grid, dim3 block, size_t dynamic_bytes, cudaStream_t stream,
                const void* kernel, std::function<void()> body);
void set_kernel_shared(const void* kernel, size_t bytes);

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_bytes, cudaStream_t stream,
            A... arguments) {
  run_kernel(grid, block, dynamic_bytes, stream, reinterpret_cast<const void*>(kernel),
             [kernel, values = std::tuple<std::remove_cv_t<P>...>(arguments...)] {
               std::apply(kernel, values);
             });
}

}  // namespace simt

template <class F>
cudaError_t cudaFuncSetAttribute(F* kernel, cudaFuncAttribute, int bytes) {
  simt::set_kernel_shared(reinterpret_cast<const void*>(kernel), static_cast<size_t>(bytes));
  return cudaSuccess;
}

// ---- The language of device code
// -----------------------------------------------------------------

#define threadIdx (simt::index().thread)
#define blockIdx (simt::index().block)
#define blockDim (simt::index().block_dim)
#define gridDim (simt::index().grid_dim)

inline void __syncthreads() {
  simt::barrier();
}

namespace simt {

inline void check_mask(unsigned mask) {
  if (mask != 0xffffffffu) broken("masks of warp functions must be full");
}
// What lane `from` gave.
template <class T>
T exchange(unsigned mask, T value, unsigned from) {
  static_assert(sizeof(T) <= 64);
  check_mask(mask);
  const unsigned char* slots = meet_warp(&value, sizeof(T));
  T result;
  std::memcpy(&result, slots + 64 * (from & 31u), sizeof(T));
  leave_warp();
  return result;
}

}  // namespace simt

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  simt::exchange(mask, 0, 0);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
  return simt::exchange(mask, value, static_cast<unsigned>(from));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int other) {
  return simt::exchange(mask, value, simt::lane() ^ static_cast<unsigned>(other));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  const unsigned from = simt::lane() + delta;
  return simt::exchange(mask, value, from < 32 ? from : simt::lane());
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  return simt::exchange(mask, value, simt::lane() >= delta ? simt::lane() - delta : simt::lane());
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  simt::check_mask(mask);
  const int mine = predicate != 0 ? 1 : 0;
  const unsigned char* slots = simt::meet_warp(&mine, sizeof(mine));
  unsigned result = 0;
  for (unsigned i = 0; i < 32; ++i) result |= (slots[64 * i] != 0 ? 1u : 0u) << i;
  simt::leave_warp();
  return result;
}
inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == 0xffffffffu;
}

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline int __float_as_int(float value) {
  return static_cast<int>(__float_as_uint(value));
}
template <class T>
T __ldg(const T* from) {
  return *from;
}
inline int __popc(unsigned bits) {
  return __builtin_popcount(bits);
}
inline int __ffs(int bits) {
  return __builtin_ffs(bits);
}
inline int __clz(int bits) {
  return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits));
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((uint64_t{a} * b) >> 32);
}
inline float __expf(float x) {
  return std::exp(x);
}
inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
using std::max;
using std::min;
template <class T>
T atomicAdd(T* place, T value) {
  const T old = *place;
  *place += value;
  return old;
}
template <class T>
T atomicMax(T* place, T value) {
  const T old = *place;
  *place = old > value ? old : value;
  return old;
}
inline void __threadfence() {}
