// The terms of the linears that share one input (q, k, v; gate, up) which go through inner values:
// lowrank and rowcol. One pass over the input makes the inner values v of all of them, then each
// linear adds its own outputs. Sparse terms, which need no inner values, stand beside them.
#pragma once

#include <optional>
#include <vector>

#include "../core/terms.h"
#include "packed_memory.h"
#include "sliced_rows.h"

namespace manyfold {

// A run of inner values that one kernel makes.
struct StackPart {
  enum class Kind : uint8_t { kFactor, kSliced, kGather };
  Kind kind = Kind::kFactor;
  FactorType dtype = FactorType::kF32;
  const std::byte* a = nullptr;     // kFactor
  SlicedRows sliced;                // kSliced
  const uint32_t* index = nullptr;  // kGather, padded to whole vectors
  bool scaled = true;               // kGather: some factor is not 1
  int32_t first = 0, ranks = 0;     // of v; first is a multiple of lanes
};

// What one term adds to the outputs of its linear.
struct PackedSpread {
  enum class Kind : uint8_t {
    kFactor,   // y += e ⊙ B v
    kSliced,   // the same, B in slices
    kScatter,  // y[index] += v
    kSparse,   // y += slices of x
  };
  Kind kind = Kind::kFactor;
  SiteRef site{};
  FactorType dtype = FactorType::kF32;
  const std::byte* b = nullptr;          // kFactor
  const float* out_diag = nullptr;       // kFactor; padded to kRowPad; null: 1
  SlicedRows sliced;                     // kSliced, kSparse
  const uint32_t* index = nullptr;       // kScatter, ascending
  int32_t first = 0, rank = 0, out = 0;  // inner values of v
};

struct PackedStack {
  int32_t cols = 0;
  int32_t width = 0;  // inner values of one row, with padding
  std::vector<StackPart> parts;
  std::vector<float> factor;        // of each inner value: scale · mid, and the scales of codecs
  std::vector<int32_t> gate_index;  // its index within its own term; -1: no gate acts on it
  std::vector<PackedSpread> spreads;
};

// Fills one stack. Terms are kept by address until the memory is laid out; the stack must not move
// from finish() on.
class StackPacker {
 public:
  explicit StackPacker(const Kernels& kernels) : kernels_(kernels) {}

  void add(SiteRef site, const LowRank& term);
  void add(SiteRef site, const RowCol& term);
  void add(SiteRef site, const Sparse& term);
  // Calls read(site, bytes) with what a step reads for each term.
  void finish(PackedStack* stack, PackedMemory& memory,
              const std::function<void(SiteRef, size_t)>& read);

 private:
  // What makes the inner values of one term.
  struct Source {
    SiteRef site{};
    const TermTensor* tensor = nullptr;  // A, or V of a rowcol term's outputs
    const TermTensor* mid_matrix = nullptr;
    const std::vector<uint32_t>* gather = nullptr;  // instead of a tensor
    FactorType dtype = FactorType::kF32;
    std::optional<SliceCutter> slices;
    std::vector<float> factor;  // of each rank
    bool gated = false, shared = false;
    int32_t ranks = 0, first = -1;
  };
  // What becomes of them.
  struct Use {
    PackedSpread spread;
    int32_t source = -1;                 // none: the term reads x
    const TermTensor* tensor = nullptr;  // B, or V of a rowcol term's inputs
    const Sparse* sparse = nullptr;
    const std::vector<uint32_t>* scatter = nullptr;
    std::optional<SliceCutter> slices;
    std::vector<float> out_diag;
  };

  void add_factor(Source source);
  void add_outputs(SiteRef site, const TermTensor& b, const std::vector<float>& out_diag);
  void place_factors(FactorType dtype, bool shared, PackedStack* stack);
  void pack_parts(PackedStack* stack, PackedMemory& memory);
  void pack_factors(StackPart* part, const std::vector<int32_t>& members, int32_t cols,
                    PackedMemory& memory);
  void pack_uses(PackedStack* stack, PackedMemory& memory,
                 const std::function<void(SiteRef, size_t)>& read);
  void pack_sparse(Use& use, PackedSpread* spread, PackedMemory& memory);
  size_t source_bytes(const Source& source) const;

  const Kernels& kernels_;
  std::vector<Source> sources_;
  std::vector<Use> uses_;
  std::vector<std::vector<int32_t>> members_;  // by part: its sources
};

// The type that holds a tensor's codec; plain values take the narrowest that rounds none of them.
FactorType factor_type(const TermTensor& tensor);
// Values without their codec's scales: signed bytes, signs, or plain values.
std::vector<float> unscaled_values(const TermTensor& tensor);
// D A [ranks, cols] as float32: γ acts on D A x, so D belongs to A.
std::vector<float> folded_factor(const TermTensor& d, std::vector<float> a, size_t cols);
// Padded with zeros to kRowPad.
std::vector<float> padded(std::vector<float> values);

}  // namespace manyfold
