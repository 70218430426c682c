// The operations of a step on the fast CPU backend. begin() sorts the plan into what kernels want:
// rows by term set, rotary angles, and attention's work items; the rest runs kernels over them.
// Nothing is allocated in a step once the largest plan and adapter have been met.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "../core/sampler.h"
#include "fast_linear.h"
#include "kv_pool.h"

namespace manyfold {

class FastOps final : public StepOps {
 public:
  // References are kept.
  FastOps(const BackendOptions& options, const Kernels& kernels, ThreadPool& pool,
          const FastWeights& weights, const FastTerms& terms, KvPool& kv);

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
  // The least work that is worth handing to another thread: a few microseconds.
  static constexpr int64_t kItemFloats = 8192;

  struct PrefixRun {
    const FastTermSet* set;
    bool gated;
    int32_t position;  // of its first key, for a shared prefix
  };
  struct Sequence {
    int32_t base = 0;
    int32_t first_page = 0;  // of page_numbers_; slot s lies in page s / kPageTokens of these
    int32_t tokens = 0;      // in pages, after this step
    int32_t first_prefix = 0, prefixes = 0;  // of prefix_runs_
  };
  // Some consecutive rows of one sequence and one kv head.
  struct AttentionItem {
    int32_t sequence, row0, rows, kv_head;
    int64_t cost;  // keys times rows
  };
  // Some rows of one set at a residual site.
  struct BottleneckItem {
    const PackedSite* site;
    const RowGroup* group;
    int32_t row0, count;
  };
  // What one thread needs for itself.
  struct alignas(64) Workspace {
    HugeBuffer attention;
    std::vector<float> scratch;  // bottlenecks and the embedding's lowrank terms
    std::vector<KeySegment> shared, gated;
    std::vector<float> gates;
    Sampler sampler;
  };

  int32_t width(Buffer buffer) const;
  float* row(Buffer buffer, int32_t r);
  void lay_out_buffers();
  void reserve_scratch();

  void read_sequences();
  void make_attention_items();
  void make_angles();
  void embed_row(int32_t r, Workspace& workspace);
  void rope_append_row(int32_t layer, int32_t r);
  void attend(int32_t layer, const AttentionItem& item, Workspace& workspace);
  void collect_segments(int32_t layer, const AttentionItem& item, Workspace& workspace);
  void finish_entries(int32_t entry0, int32_t count, StepResult& result);

  const float* norm_weight(int32_t r, SiteRef site) const;
  const SiteTerms* rare(int32_t r, SiteRef site) const;
  // Each (set, site) pair is read once for all rows of the set.
  void count_terms(SiteRef site, const RowGroups& groups);

  // Calls fn(row, thread) for all rows; on several threads when rows · floats is worth it.
  template <class Fn>
  void for_rows(int32_t rows, int64_t floats, const Fn& fn) {
    const int64_t items =
        std::min({int64_t{rows}, rows * floats / kItemFloats, int64_t{pool_.threads()} * 4});
    if (items < 2) {
      for (int32_t r = 0; r < rows; ++r) fn(r, 0);
      return;
    }
    pool_.run_items(static_cast<int32_t>(items), [&](int32_t item, int32_t thread) {
      const auto end = static_cast<int32_t>(int64_t{rows} * (item + 1) / items);
      for (auto r = static_cast<int32_t>(int64_t{rows} * item / items); r < end; ++r) fn(r, thread);
    });
  }

  const ModelConfig& model_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  const FastWeights& weights_;
  const FastTerms& terms_;
  KvPool& kv_;
  const int32_t max_rows_;
  FastLinear linear_;
  std::optional<ThreadPool::Session> session_;  // from begin to finish

  HugeBuffer buffers_;
  std::array<float*, 10> rows_{};      // by Buffer
  std::array<int64_t, 10> strides_{};  // by Buffer
  int32_t entry_block_;                // entries whose logits are held at once
  int64_t logits_stride_;
  HugeBuffer logits_, entry_rows_;     // [entry_block, …]
  std::vector<Workspace> workspaces_;  // by thread

  StepPlan plan_;
  std::vector<const FastTermSet*> row_sets_, entry_sets_;  // null for the base
  RowGroups groups_, entry_groups_;
  std::vector<int32_t> entry_gates_;
  std::vector<Sequence> sequences_;
  std::vector<int32_t> page_numbers_;
  std::vector<PrefixRun> prefix_runs_;
  std::vector<AttentionItem> attention_items_;
  std::vector<BottleneckItem> bottleneck_items_;
  std::vector<float> angles_;  // [ropes][rows][cos, sin][head_dim / 2]
  Counters counters_;
};

}  // namespace manyfold
