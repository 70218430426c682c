// CUDA's handles with owners, and its errors as ours. The only place that knows error codes of the
// runtime.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>
#include <utility>

namespace manyfold::cuda {

// Throws kOutOfMemory, kUnavailable (no device, driver too old, device lost) or kBug with what was
// tried, CUDA's own name of the error and the mend. `call`: the words of the call.
void check(cudaError_t error, const char* call);

#define MF_CUDA(call) ::manyfold::cuda::check((call), #call)

// Owns one handle; Destroy is the runtime's function.
template <class Handle, cudaError_t (*Destroy)(Handle)>
class Owned {
 public:
  Owned() = default;
  explicit Owned(Handle handle) : handle_(handle) {}
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    if (this != &other) {
      reset();
      handle_ = std::exchange(other.handle_, nullptr);
    }
    return *this;
  }
  ~Owned() { reset(); }
  Handle get() const { return handle_; }
  void reset() {
    if (handle_ != nullptr) static_cast<void>(Destroy(std::exchange(handle_, nullptr)));
  }

 private:
  Handle handle_ = nullptr;
};

using Stream = Owned<cudaStream_t, cudaStreamDestroy>;
using Event = Owned<cudaEvent_t, cudaEventDestroy>;
using GraphExec = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;
using DeviceMemory = Owned<void*, cudaFree>;
using PinnedMemory = Owned<void*, cudaFreeHost>;

Stream make_stream();
Event make_event();
// kOutOfMemory names `what` and the bytes. 0 bytes give an empty owner.
DeviceMemory allocate_device(size_t bytes, const std::string& what);
PinnedMemory allocate_pinned(size_t bytes, const std::string& what);

}  // namespace manyfold::cuda
