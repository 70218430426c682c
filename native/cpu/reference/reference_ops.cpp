// See reference_ops.h. Each loop is the definition of its operation; sums are taken in double.
#include "reference_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "../../core/error.h"
#include "../../core/rope.h"
#include "../int8_rows.h"
#include "../q4_rows.h"

namespace manyfold {

namespace {

constexpr std::array<Buffer, 10> kBuffers = {
    Buffer::kResidual, Buffer::kNormed,   Buffer::kQ,    Buffer::kK,  Buffer::kV,
    Buffer::kContext,  Buffer::kBlockOut, Buffer::kGate, Buffer::kUp, Buffer::kFfn};

}  // namespace

ReferenceOps::ReferenceOps(const BackendOptions& options, const ReferenceWeights& weights,
                           const ReferenceTerms& terms, ReferenceKv& kv)
    : model_(options.model), weights_(weights), terms_(terms), kv_(kv) {
  for (const Buffer buffer : kBuffers) {
    buffers_[static_cast<size_t>(buffer)].resize(static_cast<size_t>(options.max_rows) *
                                                 static_cast<size_t>(width(buffer)));
  }
}

int32_t ReferenceOps::width(Buffer buffer) const {
  switch (buffer) {
    case Buffer::kResidual:
    case Buffer::kNormed:
    case Buffer::kBlockOut:
      return model_.hidden;
    case Buffer::kQ:
    case Buffer::kContext:
      return model_.q_width();
    case Buffer::kK:
    case Buffer::kV:
      return model_.kv_width();
    case Buffer::kGate:
    case Buffer::kUp:
    case Buffer::kFfn:
      return model_.ffn;
  }
  return 0;
}

float* ReferenceOps::row(Buffer buffer, int32_t r) {
  return buffers_[static_cast<size_t>(buffer)].data() +
         static_cast<size_t>(r) * static_cast<size_t>(width(buffer));
}

void ReferenceOps::begin(const StepPlan& plan) {
  plan_ = plan;
  all_rows_.resize(static_cast<size_t>(plan.rows()));
  std::iota(all_rows_.begin(), all_rows_.end(), 0);
  row_terms_.clear();
  for (const int32_t set : plan.row_terms) {
    row_terms_.push_back(set < 0 ? nullptr : &terms_.get(plan.term_sets[static_cast<size_t>(set)]));
  }
  sequences_.assign(plan.sequence_base.size(), {});
  for (size_t s = 0; s < sequences_.size(); ++s) {
    Sequence& sequence = sequences_[s];
    sequence.base = plan.sequence_base[s];
    int32_t next_prefix = 0;
    for (int32_t n = plan.sequence_runs[s]; n < plan.sequence_runs[s + 1]; ++n) {
      const size_t run = static_cast<size_t>(n);
      const size_t ref = static_cast<size_t>(plan.run_ref[run]);
      const RunKind kind = static_cast<RunKind>(plan.run_kind[run]);
      if (kind != RunKind::kPages) {
        const UnpackedTerms& terms = terms_.get(plan.term_sets[ref]);
        const bool gated = kind == RunKind::kGatedPrefix;
        sequence.prefixes.push_back({&terms, gated, next_prefix});
        if (!gated) next_prefix += terms.shared_prefix();
        continue;
      }
      const int32_t pages = (plan.run_tokens[run] + kPageTokens - 1) / kPageTokens;
      const auto first = plan.pages.begin() + static_cast<ptrdiff_t>(ref);
      sequence.pages.insert(sequence.pages.end(), first, first + pages);
    }
  }
  ++counters_.steps;
  counters_.rows += plan.rows();
}

const SiteTerms* ReferenceOps::terms_at(int32_t plan_row, SiteRef site) const {
  const UnpackedTerms* set = row_terms_[static_cast<size_t>(plan_row)];
  return set == nullptr ? nullptr : set->find(site);
}

const float* ReferenceOps::gate_of(int32_t plan_row) const {
  const int32_t gate = plan_.row_gate[static_cast<size_t>(plan_row)];
  return gate < 0 ? nullptr
                  : plan_.rank_gates.data() +
                        static_cast<size_t>(gate) * static_cast<size_t>(plan_.gate_width);
}

// Each (set, site) pair counts as read once for all rows of the set.
void ReferenceOps::count_terms(SiteRef site, std::span<const int32_t> plan_rows) {
  std::set<const SiteTerms*> seen;
  for (const int32_t r : plan_rows) seen.insert(terms_at(r, site));
  add_reads(seen);
}

void ReferenceOps::count_prefixes(SiteRef site) {
  std::set<const SiteTerms*> seen;
  for (const Sequence& sequence : sequences_) {
    for (const PrefixRun& run : sequence.prefixes) seen.insert(run.terms->find(site));
  }
  add_reads(seen);
}

void ReferenceOps::add_reads(const std::set<const SiteTerms*>& sites) {
  for (const SiteTerms* terms : sites) {
    if (terms == nullptr) continue;
    ++counters_.term_reads;
    counters_.term_bytes_read += static_cast<int64_t>(terms->bytes);
  }
}

void ReferenceOps::embed() {
  count_terms({-1, Site::kEmbedding}, all_rows_);
  for (const int32_t r : all_rows_) embed_row(r);
}

void ReferenceOps::embed_row(int32_t r) {
  const int32_t token = plan_.row_token[static_cast<size_t>(r)];
  float* out = row(Buffer::kResidual, r);
  if (token < 0) {
    std::copy_n(plan_.embeddings.begin() + static_cast<ptrdiff_t>(-1 - token) * model_.hidden,
                model_.hidden, out);
    return;
  }
  const SiteRef site{-1, Site::kEmbedding};
  const SiteTerms* terms = terms_at(r, site);
  const float* from = nullptr;
  if (terms != nullptr && terms->override_rows)
    from = terms->override_rows->find(static_cast<uint32_t>(token));
  if (from == nullptr)
    from = weights_.matrix(site) + static_cast<size_t>(token) * static_cast<size_t>(model_.hidden);
  std::copy_n(from, model_.hidden, out);
  if (terms != nullptr) {
    for (const LowRankValues& term : terms->lowrank) {
      scratch_.resize(2 * static_cast<size_t>(term.rank));
      lowrank_one_hot(term.view(), token, gate_of(r), plan_.gate_width, scratch_.data(), out);
    }
  }
  for (int32_t i = 0; i < model_.hidden; ++i) out[i] *= model_.embed_scale;
}

const float* ReferenceOps::norm_weight(int32_t plan_row, SiteRef site) const {
  const SiteTerms* terms = terms_at(plan_row, site);
  return terms != nullptr && terms->override_rows ? terms->override_rows->values.data()
                                                  : weights_.matrix(site);
}

void ReferenceOps::norm(SiteRef site, Buffer in, Buffer out) {
  count_terms(site, all_rows_);
  for (const int32_t r : all_rows_) {
    rms_norm_row(row(in, r), norm_weight(r, site), model_.hidden, model_.norm_eps, row(out, r));
  }
}

void ReferenceOps::linear(std::span<const LinearOut> outs, Buffer in) {
  for (const LinearOut& out : outs)
    apply_linear({out.site, all_rows_, row(in, 0), row(out.out, 0)});
}

// out = W M (h ⊙ x), each weight row read once for all rows of the batch.
void ReferenceOps::base_products(const LinearCall& call, WeightShape shape) {
  const size_t cols = static_cast<size_t>(shape.cols);
  inputs_.assign(call.in, call.in + call.plan_rows.size() * cols);
  for (size_t i = 0; i < call.plan_rows.size(); ++i) {
    const SiteTerms* terms = terms_at(call.plan_rows[i], call.site);
    if (terms == nullptr) continue;
    float* u = inputs_.data() + i * cols;
    if (terms->diag && !terms->diag->h.empty()) {
      multiply_row(terms->diag->h.data(), u, shape.cols, u);
    }
    if (terms->pre) terms->pre->replace(u, scratch(terms->pre->scratch_floats()));
  }
  const Int8Matrix* int8 = weights_.int8_matrix(call.site);
  if (int8 != nullptr) {
    int8_products(*int8, static_cast<int32_t>(call.plan_rows.size()), shape, call.out);
  } else if (const Q4Matrix* q4 = weights_.q4_matrix(call.site); q4 != nullptr) {
    q4_products(*q4, static_cast<int32_t>(call.plan_rows.size()), shape, call.out);
  } else {
    const float* w = weights_.matrix(call.site);
    for (int32_t o = 0; o < shape.rows; ++o) {
      for (size_t i = 0; i < call.plan_rows.size(); ++i) {
        call.out[i * static_cast<size_t>(shape.rows) + static_cast<size_t>(o)] =
            dot_row(w + static_cast<size_t>(o) * cols, inputs_.data() + i * cols, shape.cols);
      }
    }
  }
  ++counters_.base_linear_reads;
  counters_.base_bytes_read +=
      static_cast<int64_t>(shape.rows) * shape.cols * static_cast<int64_t>(sizeof(float));
  ++(call.plan_rows.size() == 1 ? counters_.single_row_tiles : counters_.multi_row_tiles);
}

// out = W u for `rows` rows of inputs_, W and u in int8.
void ReferenceOps::int8_products(const Int8Matrix& matrix, int32_t rows, WeightShape shape,
                                 float* out) {
  const auto cols = static_cast<size_t>(shape.cols);
  std::vector<int8_t> x(cols);
  for (int32_t i = 0; i < rows; ++i) {
    float* u = scratch(shape.cols);
    std::copy_n(inputs_.data() + static_cast<size_t>(i) * cols, cols, u);
    const float scale = quantize_input(u, shape.cols, x.data());
    for (int32_t o = 0; o < shape.rows; ++o) {
      const int8_t* w = matrix.values.data() + static_cast<size_t>(o) * cols;
      int32_t sum = 0;
      for (size_t k = 0; k < cols; ++k) sum += w[k] * x[k];
      out[int64_t{i} * shape.rows + o] =
          static_cast<float>(sum) * (scale * matrix.scales[static_cast<size_t>(o)]);
    }
  }
}

// Likewise, W in 4 bits.
void ReferenceOps::q4_products(const Q4Matrix& matrix, int32_t rows, WeightShape shape,
                               float* out) {
  const int32_t groups = q4_groups(shape.cols);
  std::vector<Q4Inputs> x(static_cast<size_t>(groups));
  for (int32_t i = 0; i < rows; ++i) {
    quantize_q4_input(inputs_.data() + int64_t{i} * shape.cols, shape.cols, x.data());
    for (int32_t o = 0; o < shape.rows; ++o) {
      const uint8_t* codes = matrix.codes(o);
      float total = 0.0f;
      for (int32_t g = 0; g < groups; ++g) {
        const Q4Inputs& of = x[static_cast<size_t>(g)];
        const int32_t count = std::min(kQ4Group, shape.cols - g * kQ4Group);
        int32_t sum = 0;
        for (int32_t k = 0; k < count; ++k) sum += codes[g * kQ4Group + k] * of.values[k];
        total = std::fma(static_cast<float>(sum), matrix.d(o, g) * of.scale, total);
        total = std::fma(matrix.m(o, g), of.sum, total);
      }
      out[int64_t{i} * shape.rows + o] = total;
    }
  }
}

void ReferenceOps::apply_linear(const LinearCall& call) {
  const WeightShape shape = weight_shape(model_, call.site.site);
  base_products(call, shape);
  count_terms(call.site, call.plan_rows);
  const float* bias = weights_.bias(call.site);
  for (size_t i = 0; i < call.plan_rows.size(); ++i) {
    const int32_t r = call.plan_rows[i];
    const float* x = call.in + i * static_cast<size_t>(shape.cols);
    float* y = call.out + i * static_cast<size_t>(shape.rows);
    const SiteTerms* terms = terms_at(r, call.site);
    const Diag* diag = terms != nullptr && terms->diag ? &*terms->diag : nullptr;
    if (terms != nullptr && terms->override_rows) {
      const OverrideValues& values = *terms->override_rows;
      const float* u = inputs_.data() + i * static_cast<size_t>(shape.cols);
      override_products(values.rows.data(), static_cast<int32_t>(values.rows.size()),
                        values.values.data(), shape.cols, u, y);
    }
    if (diag != nullptr && !diag->g.empty()) multiply_row(diag->g.data(), y, shape.rows, y);
    if (terms != nullptr) {
      if (terms->post) terms->post->replace(y, scratch(terms->post->scratch_floats()));
      add_differences(*terms, gate_of(r), x, shape.rows, y);
    }
    if (bias != nullptr) add_row(bias, shape.rows, y);
    if (diag != nullptr && !diag->c.empty()) add_row(diag->c.data(), shape.rows, y);
  }
}

// y += Σ Δ(x), in the order of core/terms.
void ReferenceOps::add_differences(const SiteTerms& terms, const float* gate, const float* x,
                                   int32_t out, float* y) {
  for (const LowRankValues& term : terms.lowrank) {
    lowrank_row(term.view(), x, gate, plan_.gate_width, scratch(2 * term.rank), y);
  }
  for (const RowColValues& term : terms.rowcol) rowcol_row(term.view(), x, 0, out, y);
  for (const SparseValues& term : terms.sparse) sparse_row(term.view(), x, 0, out, y);
  for (const BlockChain& chain : terms.additive) {
    const float* last_input = x;
    if (chain.inner_width() > 0) {
      float* inner = scratch(chain.scratch_floats() + chain.inner_width());
      chain.run_inner(x, inner + chain.inner_width(), inner);
      last_input = inner;
    }
    chain.add_outputs(last_input, 0, out, y);
  }
}

void ReferenceOps::rotate_heads(float* heads, int32_t count, const float* cos,
                                const float* sin) const {
  const int32_t half = model_.head_dim / 2;
  for (int32_t h = 0; h < count; ++h) {
    float* x = heads + static_cast<size_t>(h) * static_cast<size_t>(model_.head_dim);
    for (int32_t i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half];
      x[i] = a * cos[i] - b * sin[i];
      x[i + half] = b * cos[i] + a * sin[i];
    }
  }
}

void ReferenceOps::rope_append(int32_t layer) {
  const SiteRef q_norm{layer, Site::kQNorm}, k_norm{layer, Site::kKNorm};
  const int32_t head_dim = model_.head_dim;
  const RopeTable& table =
      model_.ropes[static_cast<size_t>(model_.layers[static_cast<size_t>(layer)].rope)];
  std::vector<float> cos(static_cast<size_t>(head_dim / 2)), sin(cos.size());
  if (model_.qk_norm) {
    count_terms(q_norm, all_rows_);
    count_terms(k_norm, all_rows_);
  }
  for (const int32_t r : all_rows_) {
    float* q = row(Buffer::kQ, r);
    float* k = row(Buffer::kK, r);
    const float* v = row(Buffer::kV, r);
    if (model_.qk_norm) {
      const float* q_weight = norm_weight(r, q_norm);
      const float* k_weight = norm_weight(r, k_norm);
      for (int32_t h = 0; h < model_.heads; ++h) {
        rms_norm_row(q + h * head_dim, q_weight, head_dim, model_.norm_eps, q + h * head_dim);
      }
      for (int32_t h = 0; h < model_.kv_heads; ++h) {
        rms_norm_row(k + h * head_dim, k_weight, head_dim, model_.norm_eps, k + h * head_dim);
      }
    }
    const int32_t position = plan_.row_position[static_cast<size_t>(r)];
    rope_angles(table, position, cos.data(), sin.data());
    rotate_heads(q, model_.heads, cos.data(), sin.data());
    rotate_heads(k, model_.kv_heads, cos.data(), sin.data());
    const Sequence& sequence =
        sequences_[static_cast<size_t>(plan_.row_sequence[static_cast<size_t>(r)])];
    const int32_t slot = position - sequence.base;
    const int32_t page = sequence.pages[static_cast<size_t>(slot / kPageTokens)];
    for (int32_t h = 0; h < model_.kv_heads; ++h) {
      kv_.store(k + h * head_dim, kv_.key(layer, page, h, slot % kPageTokens));
      kv_.store(v + h * head_dim, kv_.value(layer, page, h, slot % kPageTokens));
    }
  }
}

void ReferenceOps::attention(int32_t layer) {
  count_prefixes({layer, Site::kAttention});
  for (const int32_t r : all_rows_) {
    for (int32_t h = 0; h < model_.heads; ++h) attend_head(layer, r, h);
  }
}

// Keys are met by absolute position: the shared prefixes hold 0 .. base - 1, the pages base ..
// position. A tile is kAttentionTile positions from a multiple of it on, whatever lies there.
void ReferenceOps::attend_head(int32_t layer, int32_t r, int32_t head) {
  const Sequence& sequence =
      sequences_[static_cast<size_t>(plan_.row_sequence[static_cast<size_t>(r)])];
  const int32_t position = plan_.row_position[static_cast<size_t>(r)];
  const int32_t window = model_.layers[static_cast<size_t>(layer)].window;
  const int32_t head_dim = model_.head_dim, stride = model_.kv_width();
  const int32_t kv_head = head / (model_.heads / model_.kv_heads);
  const float* q = row(Buffer::kQ, r) + head * head_dim;
  float* out = row(Buffer::kContext, r) + head * head_dim;
  const SiteRef site{layer, Site::kAttention};

  // Key and value of each position of the shared prefixes; a layer without the term leaves its
  // positions empty.
  std::vector<std::pair<const float*, const float*>> shared(static_cast<size_t>(sequence.base),
                                                            {nullptr, nullptr});
  for (const PrefixRun& run : sequence.prefixes) {
    const SiteTerms* terms = run.terms->find(site);
    if (run.gated || terms == nullptr || !terms->prefix || terms->prefix->gate.has_value())
      continue;
    for (int32_t i = 0; i < terms->prefix->n; ++i) {
      const size_t at = static_cast<size_t>(i) * static_cast<size_t>(stride) +
                        static_cast<size_t>(kv_head * head_dim);
      shared[static_cast<size_t>(run.first + i)] = {terms->prefix->k.data() + at,
                                                    terms->prefix->v.data() + at};
    }
  }

  const int32_t first = window > 0 ? std::max(0, position - window + 1) : 0;
  std::fill(out, out + head_dim, 0.0f);
  SoftmaxPart total{-std::numeric_limits<float>::infinity(), 0.0f};
  scratch_.resize(static_cast<size_t>(head_dim) * 2);
  for (int32_t tile = first / kAttentionTile * kAttentionTile; tile <= position;
       tile += kAttentionTile) {
    const float* keys[kAttentionTile];
    const float* values[kAttentionTile];
    int32_t count = 0;
    for (int32_t p = std::max(tile, first); p <= std::min(position, tile + kAttentionTile - 1);
         ++p) {
      const int32_t slot = p - sequence.base;
      if (slot < 0) {
        keys[count] = shared[static_cast<size_t>(p)].first;
        values[count] = shared[static_cast<size_t>(p)].second;
        count += keys[count] != nullptr ? 1 : 0;
        continue;
      }
      const int32_t page = sequence.pages[static_cast<size_t>(slot / kPageTokens)];
      keys[count] = kv_.key(layer, page, kv_head, slot % kPageTokens);
      values[count++] = kv_.value(layer, page, kv_head, slot % kPageTokens);
    }
    const SoftmaxPart part =
        attend_tile(q, keys, values, count, head_dim, model_.attn_scale, scratch_.data());
    merge_softmax(total, out, part, scratch_.data(), head_dim);
  }
  for (int32_t d = 0; d < head_dim; ++d) out[d] /= total.sum;

  for (const PrefixRun& run : sequence.prefixes) {
    const SiteTerms* terms = run.terms->find(site);
    if (!run.gated || terms == nullptr || !terms->prefix || !terms->prefix->gate.has_value())
      continue;
    const PrefixValues& prefix = *terms->prefix;
    gated_prefix_head(q, prefix.k.data() + kv_head * head_dim, prefix.v.data() + kv_head * head_dim,
                      prefix.n, stride, head_dim, model_.attn_scale, *prefix.gate, scratch_.data(),
                      out);
  }
}

void ReferenceOps::activate() {
  const BottleneckActivation activation = model_.activation == Activation::kSilu
                                              ? BottleneckActivation::kSilu
                                              : BottleneckActivation::kGeluTanh;
  for (const int32_t r : all_rows_) {
    const float* gate = row(Buffer::kGate, r);
    const float* up = row(Buffer::kUp, r);
    float* out = row(Buffer::kFfn, r);
    for (int32_t i = 0; i < model_.ffn; ++i)
      out[i] = bottleneck_activation(activation, gate[i]) * up[i];
  }
}

void ReferenceOps::add(SiteRef residual_site) {
  count_terms(residual_site, all_rows_);
  for (const int32_t r : all_rows_) {
    float* t = row(Buffer::kBlockOut, r);
    const SiteTerms* terms = terms_at(r, residual_site);
    if (terms != nullptr) {
      for (const BottleneckValues& term : terms->bottlenecks) {
        bottleneck_row(term.view(), row(Buffer::kNormed, r), row(Buffer::kResidual, r),
                       scratch(term.scratch_floats()), t);
      }
    }
    add_row(t, model_.hidden, row(Buffer::kResidual, r));
  }
}

void ReferenceOps::finish(StepResult& result) {
  prepare_result(plan_, model_.vocab, result);
  if (plan_.entries() == 0) return;
  const SiteRef final_norm{-1, Site::kFinalNorm};
  const size_t hidden = static_cast<size_t>(model_.hidden),
               vocab = static_cast<size_t>(model_.vocab);
  std::vector<float> normed(plan_.entry_row.size() * hidden);
  count_terms(final_norm, plan_.entry_row);
  for (size_t e = 0; e < plan_.entry_row.size(); ++e) {
    const int32_t r = plan_.entry_row[e];
    rms_norm_row(row(Buffer::kResidual, r), norm_weight(r, final_norm), model_.hidden,
                 model_.norm_eps, normed.data() + e * hidden);
  }
  logits_.resize(plan_.entry_row.size() * vocab);
  apply_linear({{-1, Site::kHead}, plan_.entry_row, normed.data(), logits_.data()});
  for (int32_t e = 0; e < plan_.entries(); ++e) {
    sampler_.sample(plan_, e,
                    std::span<const float>(logits_).subspan(static_cast<size_t>(e) * vocab, vocab),
                    result);
  }
}

}  // namespace manyfold
