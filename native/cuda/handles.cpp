// See handles.h.
#include "handles.h"

#include "../core/error.h"

namespace manyfold::cuda {

namespace {

ErrorCode code_of(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return ErrorCode::kOutOfMemory;
    case cudaErrorInvalidValue:
      return ErrorCode::kBug;
    default:
      return ErrorCode::kUnavailable;
  }
}

const char* mend_of(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "free memory of the device, or ask for fewer KV pages";
    case cudaErrorNoDevice:
      return "run on a machine with an NVIDIA GPU, or choose the cpu backend";
    case cudaErrorInsufficientDriver:
      return "install an NVIDIA driver that supports CUDA 13, or choose the cpu backend";
    case cudaErrorNoKernelImageForDevice:
      return "use a GPU of compute capability 8.0 or later, or choose the cpu backend";
    case cudaErrorInvalidValue:
      return "this is a bug of the CUDA backend; please report it with this message";
    default:
      return "the device cannot be used any more in this process: start the engine again";
  }
}

}  // namespace

void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  fail(code_of(error), std::string("cuda: ") + call + " gave " + cudaGetErrorName(error) + " (" +
                           cudaGetErrorString(error) + "); " + mend_of(error));
}

Stream make_stream() {
  cudaStream_t stream = nullptr;
  MF_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return Stream(stream);
}

Event make_event() {
  cudaEvent_t event = nullptr;
  MF_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return Event(event);
}

namespace {

void check_allocation(cudaError_t error, size_t bytes, const std::string& what) {
  if (error == cudaErrorMemoryAllocation) {
    fail(ErrorCode::kOutOfMemory, "cuda: " + what + " needs " + std::to_string(bytes) +
                                      " bytes, which could not be had; " + mend_of(error));
  }
  check(error, "an allocation");
}

}  // namespace

DeviceMemory allocate_device(size_t bytes, const std::string& what) {
  void* memory = nullptr;
  if (bytes > 0) check_allocation(cudaMalloc(&memory, bytes), bytes, what);
  return DeviceMemory(memory);
}

PinnedMemory allocate_pinned(size_t bytes, const std::string& what) {
  void* memory = nullptr;
  if (bytes > 0) check_allocation(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), bytes, what);
  return PinnedMemory(memory);
}

}  // namespace manyfold::cuda
