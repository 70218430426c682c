// An adapter's terms as one block of bytes: its tables of device_terms.h with pointers into the
// block, and its values. Pure: knows no device, so tests read a packed block on the host.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../core/check_terms.h"
#include "device_terms.h"

namespace manyfold::cuda {

// What the host must know of a loaded set to run a step.
struct SetFacts {
  TermFacts prefix;
  bool changes_inputs = false;   // h or a pre chain somewhere
  bool changes_outputs = false;  // a post chain, or overridden rows of the head
  // Most bottleneck terms at one site, and most additive chains; launches for each are counted by
  // them.
  int32_t bottlenecks = 0;
  int32_t additives = 0;
  int32_t chain_stages = 0;   // of the longest chain
  bool linears = false;       // any term of a linear
  bool others = false;        // rowcol or sparse terms
  int32_t plane_width = 0;    // ranks of the widest group
  int32_t scratch_width = 0;  // of chains and bottlenecks; 0: none
  size_t bytes = 0;
};

// Of terms that check_terms accepted.
SetFacts set_facts(const ModelConfig& model, const TermSet& terms);

// Bytes of the block, a multiple of 256.
size_t packed_bytes(const ModelConfig& model, const TermSet& terms);

// Writes the block into `block`, packed_bytes(model, terms) of it, for a place in memory that
// begins at `address` (a multiple of 256); the set's pointers point there. Factors keep their own
// type, rows padded with zeros to 16 bytes; prefixes, overrides, chains and sparse values become
// float32. Ranks of lowrank terms of linears that share an input lie one after another: v0 counts
// over q, k, v or gate, up.
DeviceSet pack_terms(const ModelConfig& model, const TermSet& terms, uintptr_t address,
                     std::byte* block);

}  // namespace manyfold::cuda
