// See check_terms.h.
#include "check_terms.h"

#include <cmath>
#include <limits>
#include <string>

#include "error.h"

namespace manyfold {

namespace {

constexpr int32_t kAny = -1;  // a dimension that the term itself chooses (rank, rows), at least 1

std::string shape_text(const std::vector<int32_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += shape[i] == kAny ? "any" : std::to_string(shape[i]);
  }
  return text + "]";
}

bool finite_values(const TermTensor& tensor) {
  const size_t n = tensor.bytes.size() / (tensor.dtype == Dtype::kF32 ? 4 : 2);
  bool finite = true;
  for (size_t i = 0; i < n; ++i) finite &= std::isfinite(tensor.at(i));
  return finite;
}

bool finite_values(const std::vector<float>& values) {
  for (const float v : values) {
    if (!std::isfinite(v)) return false;
  }
  return true;
}

// Checks the terms of one site in turn; `where` starts every message.
class TermChecker {
 public:
  TermChecker(const ModelConfig& model, SiteRef site, std::string where)
      : model_(model),
        site_(site),
        shape_(weight_shape(model, site.site)),
        where_(std::move(where)) {}

  void operator()(const LowRank& term) const {
    const bool embedding = site_.site == Site::kEmbedding;
    require(is_linear_site(site_.site) || embedding,
            "lowrank: expected a linear, the embedding or the head");
    // The embedding's input is a one-hot of the vocabulary, so its rows are the inputs.
    const int32_t in = embedding ? shape_.rows : shape_.cols;
    const int32_t out = embedding ? shape_.cols : shape_.rows;
    tensor("lowrank A", term.a, {kAny, in});
    tensor("lowrank B", term.b, {out, term.a.shape[0]});
    vector("lowrank mid", term.mid, term.a.shape[0]);
    vector("lowrank out diagonal", term.out_diag, out);
    number("lowrank scale", term.scale);
  }

  void operator()(const Diag& term) const {
    require(is_linear_site(site_.site), "diag: expected a linear or the head");
    vector("diag h", term.h, shape_.cols);
    vector("diag g", term.g, shape_.rows);
    vector("diag c", term.c, shape_.rows);
  }

  void operator()(const Override& term) const {
    if (is_norm_site(site_.site)) {
      require(term.rows.empty(),
              "override: a norm is replaced as a whole, expected no rows, found " +
                  std::to_string(term.rows.size()));
      tensor("override values", term.values, {1, shape_.cols});
      return;
    }
    require(site_.site == Site::kEmbedding || site_.site == Site::kHead,
            "override: expected a norm, the embedding or the head");
    require(!term.rows.empty(), "override: expected at least one row id, found none");
    require(term.rows.size() <= static_cast<size_t>(model_.vocab),
            "override: more rows than the vocabulary has");
    for (size_t i = 0; i < term.rows.size(); ++i) {
      require(term.rows[i] < static_cast<uint32_t>(model_.vocab),
              "override rows: expected ids below " + std::to_string(model_.vocab) + ", found " +
                  std::to_string(term.rows[i]));
      require(i == 0 || term.rows[i - 1] < term.rows[i],
              "override rows: expected unique ascending ids, found " +
                  std::to_string(term.rows[i]) + " after its equal or greater");
    }
    tensor("override values", term.values, {static_cast<int32_t>(term.rows.size()), model_.hidden});
  }

  void operator()(const Prefix& term) const {
    require(site_.site == Site::kAttention, "prefix: expected the attention site of a layer");
    tensor("prefix k", term.k, {kAny, model_.kv_heads, model_.head_dim});
    tensor("prefix v", term.v, {term.k.shape[0], model_.kv_heads, model_.head_dim});
    if (term.gate.has_value()) number("prefix gate", *term.gate);
  }

  void operator()(const Bottleneck& term) const {
    require(site_.site == Site::kResidualAttn || site_.site == Site::kResidualMlp,
            "bottleneck: expected residualAttn or residualMlp");
    tensor("bottleneck down", term.down, {kAny, model_.hidden});
    tensor("bottleneck up", term.up, {model_.hidden, term.down.shape[0]});
    vector("bottleneck down bias", term.down_bias, term.down.shape[0]);
    vector("bottleneck up bias", term.up_bias, model_.hidden);
    number("bottleneck scale", term.scale);
  }

  void require(bool condition, const std::string& message) const {
    if (!condition) fail(ErrorCode::kInvalidArgument, where_ + message);
  }

 private:
  void tensor(const char* name, const TermTensor& tensor,
              const std::vector<int32_t>& expected) const {
    require(
        tensor.dtype == Dtype::kF32 || tensor.dtype == Dtype::kF16 || tensor.dtype == Dtype::kBf16,
        std::string(name) + ": expected dtype f32, f16 or bf16");
    bool fits = tensor.shape.size() == expected.size();
    uint64_t count = 1;
    for (size_t i = 0; fits && i < expected.size(); ++i) {
      fits = tensor.shape[i] > 0 && (expected[i] == kAny || tensor.shape[i] == expected[i]);
      if (fits) count *= static_cast<uint64_t>(tensor.shape[i]);
      fits = fits && count <= static_cast<uint64_t>(std::numeric_limits<int32_t>::max());
    }
    require(fits, std::string(name) + ": expected shape " + shape_text(expected) + ", found " +
                      shape_text(tensor.shape));
    const uint64_t bytes = count * (tensor.dtype == Dtype::kF32 ? 4 : 2);
    require(tensor.bytes.size() == bytes,
            std::string(name) + ": expected " + std::to_string(bytes) + " bytes for shape " +
                shape_text(tensor.shape) + ", found " + std::to_string(tensor.bytes.size()));
    require(finite_values(tensor),
            std::string(name) + ": expected finite values, found NaN or infinity");
  }

  void vector(const char* name, const std::vector<float>& values, int32_t expected) const {
    if (values.empty()) return;
    require(values.size() == static_cast<size_t>(expected),
            std::string(name) + ": expected " + std::to_string(expected) + " values, found " +
                std::to_string(values.size()));
    require(finite_values(values),
            std::string(name) + ": expected finite values, found NaN or infinity");
  }

  void number(const char* name, float value) const {
    require(std::isfinite(value),
            std::string(name) + ": expected a finite number, found " + std::to_string(value));
  }

  const ModelConfig& model_;
  SiteRef site_;
  WeightShape shape_;
  std::string where_;
};

const Prefix* shared_prefix(const Term& term) {
  const Prefix* prefix = std::get_if<Prefix>(&term.op);
  return prefix != nullptr && !prefix->gate.has_value() ? prefix : nullptr;
}

}  // namespace

bool has_site(const ModelConfig& model, SiteRef ref) {
  const int32_t number = static_cast<int32_t>(ref.site);
  if (number < 0 || number >= kSiteCount) return false;
  if (is_model_site(ref.site)) return ref.layer == -1;
  if (ref.layer < 0 || ref.layer >= static_cast<int32_t>(model.layers.size())) return false;
  switch (ref.site) {
    case Site::kQNorm:
    case Site::kKNorm:
      return model.qk_norm;
    case Site::kPostAttnNorm:
    case Site::kPostMlpNorm:
      return model.post_norms;
    default:
      return true;
  }
}

void check_terms(const ModelConfig& model, const TermSet& terms) {
  // Kinds beside lowrank may stand once on a site: a bit for each kind.
  std::vector<uint8_t> seen((model.layers.size() + 1) * kSiteCount, 0);
  int32_t prefix_length = 0;
  for (size_t i = 0; i < terms.size(); ++i) {
    const Term& term = terms[i];
    const std::string where = "term " + std::to_string(i) + " at " + site_label(term.site) + ": ";
    if (!has_site(model, term.site)) {
      fail(ErrorCode::kInvalidArgument,
           where + "the model has no such site (layers 0 to " +
               std::to_string(static_cast<int32_t>(model.layers.size()) - 1) +
               ", layer -1 for embedding, finalNorm and head; found layer " +
               std::to_string(term.site.layer) + ", site " +
               std::to_string(static_cast<int32_t>(term.site.site)) + ")");
    }
    const TermChecker checker(model, term.site, where);
    std::visit(checker, term.op);
    if (!std::holds_alternative<LowRank>(term.op)) {
      const uint8_t bit = static_cast<uint8_t>(1u << term.op.index());
      uint8_t& kinds = seen[static_cast<size_t>(site_index(term.site))];
      checker.require((kinds & bit) == 0,
                      "expected at most one diag, override, prefix or bottleneck of each kind");
      kinds |= bit;
    }
    if (const Prefix* prefix = shared_prefix(term)) {
      const int32_t length = prefix->k.shape[0];
      checker.require(prefix_length == 0 || prefix_length == length,
                      "prefix k: expected the same number of keys in every layer, found " +
                          std::to_string(length) + " after " + std::to_string(prefix_length));
      prefix_length = length;
    }
  }
}

TermFacts term_facts(const TermSet& terms) {
  TermFacts facts;
  for (const Term& term : terms) {
    if (const Prefix* prefix = shared_prefix(term)) {
      facts.shared_prefix = prefix->k.shape[0];
    } else if (std::holds_alternative<Prefix>(term.op)) {
      facts.gated_prefix = true;
    }
  }
  return facts;
}

}  // namespace manyfold
