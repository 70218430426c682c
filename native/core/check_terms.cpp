// See check_terms.h.
#include "check_terms.h"

#include <algorithm>
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
  const size_t n = tensor.count();
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
    coded("lowrank A", term.a, {kAny, in});
    coded("lowrank B", term.b, {out, term.a.shape[0]});
    if (!term.mid_matrix.shape.empty()) {
      require(term.mid.empty(), "lowrank: expected a mid diagonal or a mid matrix, found both");
      tensor("lowrank mid matrix", term.mid_matrix, {term.a.shape[0], term.a.shape[0]});
    }
    vector("lowrank mid", term.mid, term.a.shape[0]);
    vector("lowrank out diagonal", term.out_diag, out);
    number("lowrank scale", term.scale);
  }

  void operator()(const RowCol& term) const {
    require(is_linear_site(site_.site), "rowcol: expected a linear or the head");
    const bool in = term.side == RowColSide::kIn;
    const auto count = static_cast<int32_t>(
        std::min<size_t>(term.index.size(), std::numeric_limits<int32_t>::max()));
    require(count > 0, "rowcol index: expected at least one, found none");
    ascending("rowcol index", term.index, 0, term.index.size(), in ? shape_.cols : shape_.rows);
    coded("rowcol values", term.values,
          in ? std::vector<int32_t>{shape_.rows, count} : std::vector<int32_t>{count, shape_.cols});
    number("rowcol scale", term.scale);
  }

  void operator()(const Sparse& term) const {
    require(is_linear_site(site_.site), "sparse: expected a linear or the head");
    require(term.values.codec != Codec::kInt8, "sparse values: expected dense or ternary values");
    coded("sparse values", term.values, {1, kAny});
    const auto count = static_cast<size_t>(term.values.shape[1]);
    require(term.columns.size() == count, "sparse columns: expected " + std::to_string(count) +
                                              ", found " + std::to_string(term.columns.size()));
    const size_t rows = static_cast<size_t>(shape_.rows);
    require(term.row_start.size() == rows + 1, "sparse row starts: expected " +
                                                   std::to_string(rows + 1) + ", found " +
                                                   std::to_string(term.row_start.size()));
    require(term.row_start.front() == 0 && term.row_start.back() == count,
            "sparse row starts: expected 0 to " + std::to_string(count) + ", found " +
                std::to_string(term.row_start.front()) + " to " +
                std::to_string(term.row_start.back()));
    for (size_t i = 0; i < rows; ++i) {
      require(term.row_start[i] <= term.row_start[i + 1],
              "sparse row starts: expected no start below the one before, found " +
                  std::to_string(term.row_start[i + 1]) + " after " +
                  std::to_string(term.row_start[i]));
    }
    // All starts ascend to count, so none of these ranges leaves the columns.
    for (size_t i = 0; i < rows; ++i) {
      ascending("sparse columns of a row", term.columns, term.row_start[i], term.row_start[i + 1],
                shape_.cols);
    }
    number("sparse scale", term.scale);
  }

  void operator()(const BlockDiag& term) const {
    require(is_linear_site(site_.site), "blockdiag: expected a linear or the head");
    require(!term.stages.empty(), "blockdiag: expected at least one stage, found none");
    const bool additive = term.placement == BlockPlacement::kAdditive;
    uint64_t length =
        static_cast<uint64_t>(term.placement == BlockPlacement::kPost ? shape_.rows : shape_.cols);
    for (size_t s = 0; s < term.stages.size(); ++s) length = stage(s, term.stages[s], length);
    const auto expected =
        static_cast<uint64_t>(term.placement == BlockPlacement::kPre ? shape_.cols : shape_.rows);
    if (!term.output.empty()) {
      below("blockdiag output", term.output, length);
      length = term.output.size();
    }
    require(length == expected, "blockdiag: expected " + std::to_string(expected) +
                                    " values at the end of the chain, found " +
                                    std::to_string(length));
    number("blockdiag scale", term.scale);
    require(additive || term.scale == 1.0f,
            "blockdiag scale: expected 1 where the chain is not additive, found " +
                std::to_string(term.scale));
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
    if (!term.norm) return;
    require(!term.norm->weight.empty() && !term.norm->bias.empty(),
            "bottleneck norm: expected a weight and a bias");
    vector("bottleneck norm weight", term.norm->weight, model_.hidden);
    vector("bottleneck norm bias", term.norm->bias, model_.hidden);
    number("bottleneck norm eps", term.norm->eps);
    require(term.norm->eps >= 0, "bottleneck norm eps: expected no negative number, found " +
                                     std::to_string(term.norm->eps));
  }

  void require(bool condition, const std::string& message) const {
    if (!condition) fail(ErrorCode::kInvalidArgument, where_ + message);
  }

 private:
  // One stage for an input of `length` values; the number of its outputs.
  uint64_t stage(size_t place, const BlockStage& stage, uint64_t length) const {
    const std::string name = "blockdiag stage " + std::to_string(place);
    tensor((name + " blocks").c_str(), stage.blocks, {kAny, kAny, kAny});
    const auto blocks = static_cast<uint64_t>(stage.blocks.shape[0]);
    const uint64_t inputs = blocks * static_cast<uint64_t>(stage.blocks.shape[2]);
    const std::string found = ": expected " + std::to_string(inputs) + " values, found ";
    if (stage.gather.empty()) {
      require(length == inputs, name + " input" + found + std::to_string(length));
    } else {
      require(stage.gather.size() == inputs,
              name + " gather" + found + std::to_string(stage.gather.size()));
      below((name + " gather").c_str(), stage.gather, length);
    }
    return blocks * static_cast<uint64_t>(stage.blocks.shape[1]);
  }

  void below(const char* name, const std::vector<uint32_t>& values, uint64_t limit) const {
    for (const uint32_t value : values) {
      if (value >= limit) {
        require(false, std::string(name) + ": expected values below " + std::to_string(limit) +
                           ", found " + std::to_string(value));
      }
    }
  }

  void ascending(const char* name, const std::vector<uint32_t>& values, size_t begin, size_t end,
                 int32_t limit) const {
    for (size_t i = begin; i < end; ++i) {
      const bool fits =
          values[i] < static_cast<uint32_t>(limit) && (i == begin || values[i - 1] < values[i]);
      if (fits) continue;
      require(false, std::string(name) + ": expected unique ascending values below " +
                         std::to_string(limit) + ", found " + std::to_string(values[i]) +
                         (i == begin ? "" : " after " + std::to_string(values[i - 1])));
    }
  }

  // A dense tensor.
  void tensor(const char* name, const TermTensor& tensor,
              const std::vector<int32_t>& expected) const {
    require(tensor.codec == Codec::kDense, std::string(name) + ": expected dense values");
    coded(name, tensor, expected);
  }

  // A tensor of any codec.
  void coded(const char* name, const TermTensor& tensor,
             const std::vector<int32_t>& expected) const {
    require(
        tensor.dtype == Dtype::kF32 || tensor.dtype == Dtype::kF16 || tensor.dtype == Dtype::kBf16,
        std::string(name) + ": expected dtype f32, f16 or bf16");
    const uint64_t count = shape(name, tensor, expected);
    switch (tensor.codec) {
      case Codec::kDense:
        bytes(name, tensor, count * (tensor.dtype == Dtype::kF32 ? 4 : 2));
        break;
      case Codec::kInt8:
        bytes(name, tensor, count);
        scales(name, tensor, static_cast<size_t>(tensor.shape[0]));
        break;
      case Codec::kTernary:
        scales(name, tensor, 1);
        planes(name, tensor);
        return;
    }
    require(finite_values(tensor),
            std::string(name) + ": expected finite values, found NaN or infinity");
  }

  // Refuses any other shape; the number of values.
  uint64_t shape(const char* name, const TermTensor& tensor,
                 const std::vector<int32_t>& expected) const {
    bool fits = tensor.shape.size() == expected.size();
    uint64_t count = 1;
    for (size_t i = 0; fits && i < expected.size(); ++i) {
      fits = tensor.shape[i] > 0 && (expected[i] == kAny || tensor.shape[i] == expected[i]);
      if (fits) count *= static_cast<uint64_t>(tensor.shape[i]);
      fits = fits && count <= static_cast<uint64_t>(std::numeric_limits<int32_t>::max());
    }
    require(fits, std::string(name) + ": expected shape " + shape_text(expected) + ", found " +
                      shape_text(tensor.shape));
    return count;
  }

  void bytes(const char* name, const TermTensor& tensor, uint64_t expected) const {
    require(tensor.bytes.size() == expected,
            std::string(name) + ": expected " + std::to_string(expected) + " bytes for shape " +
                shape_text(tensor.shape) + ", found " + std::to_string(tensor.bytes.size()));
  }

  void scales(const char* name, const TermTensor& tensor, size_t expected) const {
    require(tensor.scales.size() == expected, std::string(name) + ": expected " +
                                                  std::to_string(expected) + " scales, found " +
                                                  std::to_string(tensor.scales.size()));
    require(finite_values(tensor.scales), std::string(name) + ": expected finite scales");
  }

  void planes(const char* name, const TermTensor& tensor) const {
    const size_t stride = tensor.plane_stride();
    const size_t words = static_cast<size_t>(tensor.shape[0]) * stride;
    require(tensor.positive.size() == words && tensor.negative.size() == words,
            std::string(name) + ": expected planes of " + std::to_string(words) + " words, found " +
                std::to_string(tensor.positive.size()) + " and " +
                std::to_string(tensor.negative.size()));
    const int32_t tail = tensor.shape[1] % 32;
    const uint32_t past = tail == 0 ? 0 : ~0u << tail;
    bool overlap = false, outside = false;
    for (size_t i = 0; i < words; ++i) {
      overlap |= (tensor.positive[i] & tensor.negative[i]) != 0;
      outside |=
          i % stride == stride - 1 && ((tensor.positive[i] | tensor.negative[i]) & past) != 0;
    }
    require(!overlap, std::string(name) + ": expected no entry in both planes");
    require(!outside, std::string(name) + ": expected no bits past the last column");
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

// The bit of a kind that may stand once on a site; 0 for kinds that may stand more often.
uint8_t single_kind(const Term& term) {
  if (std::holds_alternative<Diag>(term.op)) return 1;
  if (std::holds_alternative<Override>(term.op)) return 2;
  if (std::holds_alternative<Prefix>(term.op)) return 4;
  if (const BlockDiag* op = std::get_if<BlockDiag>(&term.op)) {
    if (op->placement == BlockPlacement::kPre) return 8;
    if (op->placement == BlockPlacement::kPost) return 16;
  }
  return 0;
}

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
  // Kinds that may stand once on a site: a bit for each.
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
    if (const uint8_t bit = single_kind(term)) {
      uint8_t& kinds = seen[static_cast<size_t>(site_index(term.site))];
      checker.require((kinds & bit) == 0,
                      "expected at most one diag, override, prefix, pre and post blockdiag");
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
