// The reference backend: isa 'scalar'. Its stores and operations are in the files beside it.
#include "../cpu_backend.h"
#include "reference_ops.h"

namespace manyfold {

namespace {

class ReferenceBackend final : public Backend {
 public:
  explicit ReferenceBackend(const BackendOptions& options)
      : options_(options),
        weights_(options_.model, options_.dtype, options_.format, options_.formats),
        terms_(options_.model),
        kv_(options_.model, options_.dtype, options_.kv_format, options_.kv_pages),
        ops_(options_, weights_, terms_, kv_) {}

  WeightStore& weights() override { return weights_; }
  TermStore& terms() override { return terms_; }
  StepOps& ops() override { return ops_; }
  Counters counters() const override { return ops_.counters(); }
  BackendInfo info() const override {
    return {"cpu", "scalar", 1, kv_.bytes(), kv_.bytes() / static_cast<size_t>(options_.kv_pages)};
  }

 private:
  const BackendOptions options_;  // first: the stores keep references into its model
  ReferenceWeights weights_;
  ReferenceTerms terms_;
  ReferenceKv kv_;
  ReferenceOps ops_;
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend(const BackendOptions& options) {
  return std::make_unique<ReferenceBackend>(options);
}

}  // namespace manyfold
