// Linears of the fast CPU backend: base products of all rows and the terms of each, for linears
// that share one input. Used by FastOps for the layers' linears and for the head.
#pragma once

#include <span>
#include <vector>

#include "base_product.h"
#include "fast_terms.h"
#include "fast_weights.h"
#include "row_groups.h"
#include "thread_pool.h"

namespace manyfold {

// Distance of two rows in floats: padded for whole panels, and never a multiple of 4 KiB, at which
// rows of a tile would fight for the same lines of the cache.
inline int64_t row_stride(int32_t width) {
  const int64_t stride = round_up(width, kRowPad);
  return stride % 1024 == 0 ? stride + kRowPad : stride;
}

// γ of a row, or null: ranks from `width` on count as 1.
struct GateTable {
  std::span<const float> values;
  int32_t width = 0;
  std::span<const int32_t> row_gate;  // by row of the job

  const float* of(int32_t row) const {
    const int32_t gate = row_gate[static_cast<size_t>(row)];
    return gate < 0 ? nullptr : values.data() + static_cast<int64_t>(gate) * width;
  }
};

struct LinearTarget {
  SiteRef site;
  float* y = nullptr;
  int64_t y_stride = 0;
};

// y = Q (g ⊙ W M (h ⊙ x)) + Σ Δ(x) + b + c for every target; rows i of x and y belong together.
struct LinearJob {
  std::span<const LinearTarget> targets;  // at most kMaxTargets
  const float* x = nullptr;
  int64_t x_stride = 0;
  int32_t rows = 0;
  const RowGroups* groups = nullptr;
  GateTable gates;
  bool terms_only = false;  // y in place of W u, for native/bench: what adapters alone take
};

class FastLinear {
 public:
  static constexpr int32_t kMaxTargets = 3;

  // References are kept. widest_input: most columns of any linear.
  FastLinear(const Kernels& kernels, ThreadPool& pool, const FastWeights& weights, Dtype dtype,
             int32_t max_rows, int32_t widest_input);

  // Makes room for any set loaded so far; before the first run of a step.
  void reserve(const TermLimits& limits);
  void run(const LinearJob& job, Counters& counters);

 private:
  // One linear of the running job.
  struct Member {
    SiteRef site;
    const PackedMatrix* matrix;
    const float* bias;
    const float* u;  // input of the base product, float32: x, or M (h ⊙ x) where rows have it
    InputForm form;
    const void* input;     // what the product reads: u, or u rounded
    int64_t input_stride;  // elements; bytes of kQ4
    float* input_scale;    // by row, of kInt8
    float* y;
    int64_t y_stride;
    bool scaled;         // some row's input is changed
    int32_t first_unit;  // of all members' outputs, in units
  };
  // Some vectors of a stack's part, for some rows of a group.
  struct ReduceItem {
    const PackedStack* stack;
    const StackPart* part;
    const RowGroup* group;
    float* v;  // of the group's first row
    int64_t v_stride;
    int32_t row0, count, vector0, vector1;
  };
  // Outputs out0 .. out1 - 1, and the set that is next to add to them; null: none.
  struct Outputs {
    int32_t out0, out1;
    const FastTermSet* next;
  };
  // A chain for some rows of a group, at most kRareRows. result: of an additive chain.
  struct ChainItem {
    const PackedChain* chain;
    const RowGroup* group;
    const Member* member;
    float* result;  // of the group's first row
    int64_t stride;
    int32_t row0, count;
  };
  // Which half of a linear's work a pass over the outputs does.
  enum class Part { kAll, kBase, kTerms };
  struct alignas(64) ThreadState {
    TileCounts tiles;
    std::vector<float> scratch;  // of chains
    std::vector<float> rotated;  // a row, for int8 inputs
  };

  void plan_members(const LinearJob& job);
  void plan_reduces(const LinearJob& job);
  void plan_chains(const LinearJob& job);
  void add_reduce(const LinearJob& job, const RowGroup& group, const PackedStack& stack,
                  const StackPart& part, float* v);
  void add_chain(std::vector<ChainItem>& items, ChainItem item);
  void prepare_inputs(const LinearJob& job, int32_t row0, int32_t count, ThreadState& thread);
  void round_inputs(const Member& member, const float* from, int64_t stride, int32_t row0,
                    int32_t count, ThreadState& thread);
  void place_input(Member& member, size_t target);
  void change_inputs(const LinearJob& job, const Member& member, int32_t row0, int32_t count,
                     float* scratch);
  void run_outputs_in_chunks(const LinearJob& job, Part part);
  void reduce(const LinearJob& job, const ReduceItem& item);
  void multiply_gates(const LinearJob& job, const ReduceItem& item, std::span<const int32_t> rows);
  void run_chain(const LinearJob& job, const ChainItem& item, float* scratch);
  void mix_outputs(const LinearJob& job);
  void run_chunk(const LinearJob& job, Part part, int32_t unit0, int32_t unit1, TileCounts& counts);
  void run_base(const LinearJob& job, const Member& member, int32_t out0, int32_t out1,
                TileCounts& counts);
  void scale_outputs(const LinearJob& job, const Member& member, int32_t out0, int32_t out1);
  void spread_outputs(const LinearJob& job, const Member& member, int32_t out0, int32_t out1);
  void spread(const LinearJob& job, const Member& member, const RowGroup& group,
              const PackedSpread& spread, const float* v, int64_t v_stride, const Outputs& outputs);
  std::span<const std::byte> read_next(const Member& member, const Outputs& outputs) const;
  void add_chains(const LinearJob& job, const Member& member, int32_t out0, int32_t out1);
  void shift_outputs(const LinearJob& job, const Member& member, int32_t out0, int32_t out1);
  void count(const LinearJob& job, Counters& counters);

  const Kernels& kernels_;
  ThreadPool& pool_;
  const FastWeights& weights_;
  const bool rounds_bf16_;  // products with plain weights read bf16 inputs
  const int32_t max_rows_;
  const int64_t input_stride_;  // of scaled and rounded copies
  int32_t unit_;                // outputs that panels of base and of adapters have in common
  const size_t shared_forms_;   // forms that x itself is rounded to: 2 where 4-bit matrices stand
                                // beside int8 ones
  HugeBuffer rounded_;  // [shared_forms + kMaxTargets][max_rows, input_stride] of two bytes, which
                        // every form fits in; the first for x itself
  std::vector<float> input_scales_;  // [shared_forms + kMaxTargets][max_rows] of int8 inputs
  HugeBuffer scaled_;                // [kMaxTargets][max_rows, input_stride]
  HugeBuffer reduced_;               // v of all groups
  int64_t reduced_stride_ = 0;
  HugeBuffer chain_results_;  // of all groups' additive chains
  int64_t chain_floats_ = 0;
  bool scales_ = false;

  std::vector<Member> members_;
  std::vector<ReduceItem> reduces_;
  std::vector<std::pair<const RowGroup*, float*>> group_v_;
  std::vector<ChainItem> chains_, mixes_;
  std::vector<ThreadState> threads_;
};

}  // namespace manyfold
