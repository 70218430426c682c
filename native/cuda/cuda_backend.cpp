// Joins stores and operations to the CUDA backend, after asking whether the machine can run it.
#include "../core/backend.h"
#include "../core/error.h"
#include "cuda_ops.h"

namespace manyfold {

namespace {

using namespace cuda;

constexpr int kLeastMajor = 8;

// The first device, or kUnavailable with what is missing.
cudaDeviceProp open_device() {
  int count = -1;
  const cudaError_t found = cudaGetDeviceCount(&count);
  static_cast<void>(cudaGetLastError());
  check(found, "cudaGetDeviceCount");
  if (count < 1) check(cudaErrorNoDevice, "cudaGetDeviceCount");
  MF_CUDA(cudaSetDevice(0));
  cudaDeviceProp properties;
  MF_CUDA(cudaGetDeviceProperties(&properties, 0));
  if (properties.major < kLeastMajor) {
    fail(ErrorCode::kUnavailable,
         std::string("cuda: ") + properties.name + " has compute capability " +
             std::to_string(properties.major) + "." + std::to_string(properties.minor) +
             "; expected 8.0 or later: use another GPU, or choose the cpu backend");
  }
  return properties;
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(const BackendOptions& options, const cudaDeviceProp& device)
      : options_(options),
        isa_("sm_" + std::to_string(device.major) + std::to_string(device.minor)),
        stream_(make_stream()),
        weights_(options_.model, options_.dtype, options_.format),
        terms_(options_.model, stream_.get()),
        kv_(options_),
        ops_(options_, weights_, terms_, kv_, stream_.get()) {}
  // What still runs must end before its memory goes.
  ~CudaBackend() override { static_cast<void>(cudaStreamSynchronize(stream_.get())); }

  WeightStore& weights() override { return weights_; }
  TermStore& terms() override { return terms_; }
  StepOps& ops() override { return ops_; }
  Counters counters() const override { return ops_.counters(); }
  BackendInfo info() const override {
    return {"cuda", isa_, 1, kv_.bytes, kv_.bytes / static_cast<size_t>(options_.kv_pages)};
  }

 private:
  const BackendOptions options_;  // first: the stores keep references into its model
  std::string isa_;
  Stream stream_;
  CudaWeights weights_;
  CudaTerms terms_;
  CudaKv kv_;
  CudaOps ops_;
};

}  // namespace

bool has_cuda_backend() {
  return true;
}

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  if (options.kv_format != KvFormat::kPlain) {
    fail(ErrorCode::kUnavailable,
         "cuda: int8 keys and values are not built for this backend; expected the type of the "
         "weights: leave --kv-cache-dtype out, or choose the cpu backend");
  }
  return std::make_unique<CudaBackend>(options, open_device());
}

}  // namespace manyfold
