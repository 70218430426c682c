// The rules that an adapter's terms must keep for a model, in one place for all backends:
// TermStore::load_terms calls check_terms first, so that packing and kernels never meet a wrong
// shape.
#pragma once

#include "model_config.h"
#include "terms.h"

namespace manyfold {

// What a step plan's runs must know of a loaded set.
struct TermFacts {
  int32_t shared_prefix =
      0;  // keys without tokens before position 0; the same in every layer that has them
  bool gated_prefix = false;
  bool operator==(const TermFacts&) const = default;
};

// Throws kInvalidArgument naming the term's place in the list, layer and site, with expected and
// found shape. Also refused: sites the model lacks, a second diag, override, prefix, pre or post
// blockdiag on one site, indices out of range or order, planes that overlap, values not finite, and
// shared prefixes of different lengths.
void check_terms(const ModelConfig& model, const TermSet& terms);

// Of a set that check_terms accepted.
TermFacts term_facts(const TermSet& terms);

// Whether the model has this site with this layer number (q/k norms and post-norms depend on the
// config).
bool has_site(const ModelConfig& model, SiteRef ref);

}  // namespace manyfold
