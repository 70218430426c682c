// The operations of a step as plain loops: the oracle that the fast kernels are compared with. One
// thread.
#pragma once

#include <array>
#include <set>
#include <vector>

#include "../../core/sampler.h"
#include "reference_stores.h"

namespace manyfold {

class ReferenceOps final : public StepOps {
 public:
  ReferenceOps(const BackendOptions& options, const ReferenceWeights& weights,
               const ReferenceTerms& terms, ReferenceKv& kv);
  void begin(const StepPlan& plan) override;
  void embed() override;
  void norm(SiteRef site, Buffer in, Buffer out) override;
  void linear(std::span<const LinearOut> outs, Buffer in) override;
  void rope_append(int32_t layer) override;
  void attention(int32_t layer) override;
  void activate() override;
  void add(SiteRef residual_site) override;
  void finish(StepResult& result) override;

  const Counters& counters() const { return counters_; }

 private:
  // A run of keys without tokens that a sequence's rows attend.
  struct PrefixRun {
    const UnpackedTerms* terms;
    bool gated;
    int32_t first;  // position of its first key; unused when gated
  };
  struct Sequence {
    int32_t base = 0;
    std::vector<int32_t> pages;  // slot s lies in pages[s / kPageTokens]
    std::vector<PrefixRun> prefixes;
  };
  // Row i of in [rows, in width] and out [rows, out width] belongs to plan row plan_rows[i].
  struct LinearCall {
    SiteRef site;
    std::span<const int32_t> plan_rows;
    const float* in;
    float* out;
  };

  float* row(Buffer buffer, int32_t r);
  float* scratch(int32_t floats) {
    scratch_.resize(static_cast<size_t>(floats));
    return scratch_.data();
  }
  int32_t width(Buffer buffer) const;
  const SiteTerms* terms_at(int32_t plan_row, SiteRef site) const;
  const float* gate_of(int32_t plan_row) const;
  const float* norm_weight(int32_t plan_row, SiteRef site) const;
  void count_terms(SiteRef site, std::span<const int32_t> plan_rows);
  void count_prefixes(SiteRef site);
  void add_reads(const std::set<const SiteTerms*>& sites);
  void base_products(const LinearCall& call, WeightShape shape);
  void int8_products(const Int8Matrix& matrix, int32_t rows, WeightShape shape, float* out);
  void q4_products(const Q4Matrix& matrix, int32_t rows, WeightShape shape, float* out);
  void apply_linear(const LinearCall& call);
  void add_differences(const SiteTerms& terms, const float* gate, const float* x, int32_t out,
                       float* y);
  void embed_row(int32_t r);
  void rotate_heads(float* heads, int32_t count, const float* cos, const float* sin) const;
  void attend_head(int32_t layer, int32_t r, int32_t head);

  const ModelConfig& model_;
  const ReferenceWeights& weights_;
  const ReferenceTerms& terms_;
  ReferenceKv& kv_;
  std::array<std::vector<float>, 10> buffers_;  // by Buffer
  std::vector<float> logits_, inputs_, scratch_;
  StepPlan plan_;
  std::vector<int32_t> all_rows_;                // 0 .. rows - 1
  std::vector<const UnpackedTerms*> row_terms_;  // [rows], null for the base
  std::vector<Sequence> sequences_;
  Counters counters_;
  Sampler sampler_;
};

}  // namespace manyfold
