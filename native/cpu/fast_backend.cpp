// See fast_backend.h.
#include "fast_backend.h"

#include "cpu_backend.h"
#include "dispatch.h"
#include "fast_ops.h"

namespace manyfold {
namespace {

class FastBackend final : public Backend {
 public:
  FastBackend(const Kernels& kernels, const BackendOptions& options)
      : options_(options),
        kernels_(kernels),
        pool_(options.threads > 0 ? options.threads : usable_cores()),
        weights_(options_.model, options_.dtype, kernels, pool_, options_.format, options_.formats),
        terms_(options_.model, kernels),
        kv_(options_.model,
            options_.kv_format == KvFormat::kInt8 ? KvType::kInt8 : kv_type(options_.dtype),
            options_.kv_pages),
        ops_(options_, kernels, pool_, weights_, terms_, kv_) {}

  WeightStore& weights() override { return weights_; }
  TermStore& terms() override { return terms_; }
  StepOps& ops() override { return ops_; }
  Counters counters() const override { return ops_.counters(); }
  BackendInfo info() const override {
    return {"cpu", kernels_.isa, pool_.threads(), kv_.bytes(), kv_.page_bytes()};
  }

 private:
  const BackendOptions options_;  // first: the others keep references into its model
  const Kernels& kernels_;
  ThreadPool pool_;
  FastWeights weights_;
  FastTerms terms_;
  KvPool kv_;
  FastOps ops_;
};

}  // namespace

std::unique_ptr<Backend> make_backend_with(const Kernels& kernels, const BackendOptions& options) {
  return std::make_unique<FastBackend>(kernels, options);
}

std::unique_ptr<Backend> make_fast_cpu_backend(const BackendOptions& options) {
  return make_backend_with(kernels_for(options.isa), options);
}

}  // namespace manyfold
