// The runtime API over host memory: streams run what they are given at once, a captured graph is a
// list of jobs. See cuda_runtime.h beside it.
#include "runtime.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <vector>

struct SimtGraph {
  std::vector<std::function<void()>> jobs;
  int streams = 0;  // capturing into it
};
struct SimtStream {
  SimtGraph* capture = nullptr;
  bool origin = false;
};
struct SimtEvent {
  SimtGraph* capture = nullptr;
  std::chrono::steady_clock::time_point time;
};

namespace {

struct State {
  std::map<void*, size_t> device, pinned;
  std::map<const void*, size_t> kernel_shared;
  size_t device_bytes = 0, pinned_bytes = 0;
  uint64_t launches = 0;
  int devices = 1, driver = 13000, major = 9, minor = 0;
  int allocation_fault = -1, launch_fault = -1;  // calls left before it
  cudaError_t allocation_error = cudaSuccess, launch_error = cudaSuccess;
  cudaError_t last = cudaSuccess;
  cudaError_t lost = cudaSuccess;  // stays once set
};
State state;

constexpr size_t kPlainSharedBytes = 48 * 1024, kMostSharedBytes = 227 * 1024;

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) state.last = error;
  return error;
}

// Counts one call towards the planned fault of its kind.
bool falls(int& left) {
  if (left < 0) return false;
  return left-- == 0;
}

cudaError_t device_state() {
  if (falls(state.launch_fault)) state.lost = state.launch_error;
  return note(state.lost);
}

// Now, or when the graph is launched.
cudaError_t submit(cudaStream_t stream, std::function<void()> job) {
  if (stream != nullptr && stream->capture != nullptr) {
    stream->capture->jobs.push_back(std::move(job));
    return cudaSuccess;
  }
  if (const cudaError_t error = device_state(); error != cudaSuccess) return error;
  job();
  return cudaSuccess;
}

cudaError_t allocate(std::map<void*, size_t>& owner, size_t& total, void** memory, size_t bytes) {
  *memory = nullptr;
  if (state.lost != cudaSuccess) return note(state.lost);
  if (falls(state.allocation_fault)) return note(state.allocation_error);
  if (bytes == 0) return cudaSuccess;
  void* place = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
  if (place == nullptr) return note(cudaErrorMemoryAllocation);
  std::memset(place, 0xcb, (bytes + 511) / 512 * 512);
  owner.emplace(place, bytes);
  total += bytes;
  *memory = place;
  return cudaSuccess;
}

cudaError_t release(std::map<void*, size_t>& owner, size_t& total, void* memory) {
  if (memory == nullptr) return cudaSuccess;
  const auto found = owner.find(memory);
  if (found == owner.end()) return note(cudaErrorInvalidValue);
  total -= found->second;
  owner.erase(found);
  std::free(memory);
  return cudaSuccess;
}

}  // namespace

namespace simt {

void plan_fault(Fault kind, int after, cudaError_t error) {
  (kind == Fault::kAllocation ? state.allocation_fault : state.launch_fault) = after;
  (kind == Fault::kAllocation ? state.allocation_error : state.launch_error) = error;
}
void clear_faults() {
  state.allocation_fault = state.launch_fault = -1;
  state.last = state.lost = cudaSuccess;
}
size_t device_bytes() {
  return state.device_bytes;
}
size_t pinned_bytes() {
  return state.pinned_bytes;
}
uint64_t launches() {
  return state.launches;
}
void set_devices(int count) {
  state.devices = count;
}
void set_driver_version(int version) {
  state.driver = version;
}
void set_compute_capability(int major, int minor) {
  state.major = major;
  state.minor = minor;
}
void set_kernel_shared(const void* kernel, size_t bytes) {
  state.kernel_shared[kernel] = bytes;
}

void run_kernel(dim3 grid, dim3 block, size_t dynamic_bytes, cudaStream_t stream,
                const void* kernel, std::function<void()> body) {
  const auto allowed = state.kernel_shared.find(kernel);
  const size_t most = allowed == state.kernel_shared.end() ? kPlainSharedBytes : allowed->second;
  if (dynamic_bytes > most || dynamic_bytes > kMostSharedBytes || grid.x == 0 || grid.y == 0 ||
      grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    note(cudaErrorInvalidValue);
    return;
  }
  submit(stream, [=, body = std::move(body)] {
    ++state.launches;
    run_grid(grid, block, dynamic_bytes, body);
  });
}

}  // namespace simt

cudaError_t cudaGetDeviceCount(int* count) {
  if (state.devices == 0) return note(cudaErrorNoDevice);  // the count is left as it was
  if (state.driver == 0) return note(cudaErrorInsufficientDriver);
  *count = state.devices;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return note(device >= 0 && device < state.devices ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::snprintf(properties->name, sizeof(properties->name), "simt");
  properties->totalGlobalMem = size_t{1} << 34;
  properties->major = state.major;
  properties->minor = state.minor;
  properties->multiProcessorCount = 4;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = state.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = state.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(kMostSharedBytes);
      return cudaSuccess;
  }
  return note(cudaErrorInvalidValue);
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = state.driver;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = size_t{1} << 34;
  *free = *total - state.device_bytes;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = state.last;
  state.last = state.lost;
  return error;
}
cudaError_t cudaDeviceSynchronize() {
  return device_state();
}
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorECCUncorrectable:
      return "cudaErrorECCUncorrectable";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    default:
      return "cudaErrorUnknown";
  }
}
const char* cudaGetErrorString(cudaError_t error) {
  return cudaGetErrorName(error);
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  return allocate(state.device, state.device_bytes, memory, bytes);
}
cudaError_t cudaFree(void* memory) {
  return release(state.device, state.device_bytes, memory);
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  return allocate(state.pinned, state.pinned_bytes, memory, bytes);
}
cudaError_t cudaFreeHost(void* memory) {
  return release(state.pinned, state.pinned_bytes, memory);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return submit(nullptr, [=] { std::memcpy(to, from, bytes); });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  return submit(stream, [=] { std::memcpy(to, from, bytes); });
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
  return submit(stream, [=] {
    for (size_t i = 0; i < height; ++i) {
      std::memcpy(static_cast<char*>(to) + i * to_pitch,
                  static_cast<const char*>(from) + i * from_pitch, width);
    }
  });
}
cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  return submit(nullptr, [=] { std::memset(memory, value, bytes); });
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  return submit(stream, [=] { std::memset(memory, value, bytes); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new SimtStream;
  return note(state.lost);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return device_state();
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event->capture != nullptr && stream->capture == nullptr) {
    stream->capture = event->capture;
    ++event->capture->streams;
  } else if (event->capture != nullptr && stream->origin) {
    --event->capture->streams;  // the fork that recorded it has joined
  }
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new SimtEvent;
  return note(state.lost);
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, 0);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->capture = stream != nullptr ? stream->capture : nullptr;
  if (event->capture != nullptr && !stream->origin) stream->capture = nullptr;
  event->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return device_state();
}
cudaError_t cudaEventQuery(cudaEvent_t) {
  return note(state.lost);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream->capture != nullptr) return note(cudaErrorStreamCaptureUnsupported);
  stream->capture = new SimtGraph;
  stream->origin = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->capture;
  stream->capture = nullptr;
  stream->origin = false;
  if (*graph == nullptr) return note(cudaErrorInvalidValue);
  if ((*graph)->streams > 0) {
    delete *graph;
    *graph = nullptr;
    return note(cudaErrorStreamCaptureUnjoined);
  }
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new SimtGraph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return submit(stream, [exec] {
    for (const auto& job : exec->jobs) job();
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
