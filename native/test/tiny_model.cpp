// See tiny_model.h.
#include "tiny_model.h"

#include <algorithm>
#include <cmath>

#include "../core/check_terms.h"

namespace manyfold::test {

namespace {

std::vector<float> random_values(size_t count, uint32_t seed, float spread, float mean = 0) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(mean, spread);
  std::vector<float> values(count);
  for (float& v : values) v = normal(generator);
  return values;
}

TermTensor tensor(std::vector<int32_t> shape, uint32_t seed, float spread,
                  Dtype dtype = Dtype::kBf16) {
  TermTensor out{dtype, std::move(shape), {}};
  for (const float v : random_values(out.count(), seed, spread)) {
    const uint16_t half = f32_to_bf16(v);
    const uint8_t* from = dtype == Dtype::kBf16 ? reinterpret_cast<const uint8_t*>(&half)
                                                : reinterpret_cast<const uint8_t*>(&v);
    out.bytes.insert(out.bytes.end(), from, from + (dtype == Dtype::kBf16 ? 2 : 4));
  }
  return out;
}

template <typename Use>
void for_sites(const ModelConfig& model, bool (*wanted)(Site), Use use) {
  for (int32_t layer = -1; layer < static_cast<int32_t>(model.layers.size()); ++layer) {
    for (int32_t number = 0; number < kSiteCount; ++number) {
      const SiteRef site{layer, static_cast<Site>(number)};
      if (has_site(model, site) && wanted(site.site))
        use(site, static_cast<uint32_t>(site_index(site)));
    }
  }
}

void add_lowrank(const ModelConfig& model, uint32_t seed, TermSet& terms) {
  for_sites(model, is_linear_site, [&](SiteRef site, uint32_t index) {
    const WeightShape shape = weight_shape(model, site.site);
    const int32_t rank = 1 + static_cast<int32_t>(index) % 9;
    LowRank term{tensor({rank, shape.cols}, seed + index, 0.2f),
                 tensor({shape.rows, rank}, seed + index + 1, 0.2f),
                 0.5f,
                 {},
                 {}};
    if (index % 3 == 0) term.mid = random_values(static_cast<size_t>(rank), seed + index, 1);
    if (index % 4 == 0)
      term.out_diag = random_values(static_cast<size_t>(shape.rows), seed + index, 1);
    terms.push_back({site, std::move(term)});
  });
  terms.push_back({{-1, Site::kEmbedding},
                   LowRank{tensor({4, model.vocab}, seed, 0.3f, Dtype::kF32),
                           tensor({model.hidden, 4}, seed + 9, 0.3f),
                           1,
                           {},
                           {}}});
}

void add_diags(const ModelConfig& model, uint32_t seed, TermSet& terms) {
  for_sites(model, is_linear_site, [&](SiteRef site, uint32_t index) {
    const WeightShape shape = weight_shape(model, site.site);
    Diag term;
    if (index % 3 != 0)
      term.h = random_values(static_cast<size_t>(shape.cols), seed + index, 0.3f, 1);
    if (index % 3 != 1)
      term.g = random_values(static_cast<size_t>(shape.rows), seed + index, 0.3f, 1);
    if (index % 2 != 1) term.c = random_values(static_cast<size_t>(shape.rows), seed + index, 0.3f);
    terms.push_back({site, std::move(term)});
  });
}

void add_overrides(const ModelConfig& model, uint32_t seed, TermSet& terms) {
  for_sites(model, is_norm_site, [&](SiteRef site, uint32_t index) {
    terms.push_back(
        {site, Override{{}, tensor({1, weight_shape(model, site.site).cols}, seed + index, 1)}});
  });
  terms.push_back(
      {{-1, Site::kEmbedding}, Override{{0, 3, 7, 12}, tensor({4, model.hidden}, seed, 0.5f)}});
  terms.push_back({{-1, Site::kHead}, Override{{2, 3}, tensor({2, model.hidden}, seed + 1, 0.5f)}});
}

void add_prefixes(const ModelConfig& model, uint32_t seed, std::optional<float> gate,
                  TermSet& terms) {
  const int32_t keys = gate ? 70 : 5;  // 70: more than one tile
  for (int32_t layer = 0; layer < static_cast<int32_t>(model.layers.size()); ++layer) {
    const uint32_t s = seed + static_cast<uint32_t>(layer);
    terms.push_back({{layer, Site::kAttention},
                     Prefix{tensor({keys, model.kv_heads, model.head_dim}, s, 1),
                            tensor({keys, model.kv_heads, model.head_dim}, s + 5, 1), gate}});
  }
}

void add_bottlenecks(const ModelConfig& model, uint32_t seed, TermSet& terms) {
  for (int32_t layer = 0; layer < static_cast<int32_t>(model.layers.size()); ++layer) {
    const uint32_t s = seed + static_cast<uint32_t>(layer);
    Bottleneck term{BottleneckPlacement::kSequential,
                    BottleneckActivation::kGelu,
                    tensor({6, model.hidden}, s, 0.3f),
                    tensor({model.hidden, 6}, s + 3, 0.3f),
                    random_values(6, s, 0.1f),
                    random_values(static_cast<size_t>(model.hidden), s, 0.1f),
                    0.7f};
    terms.push_back({{layer, Site::kResidualMlp}, term});
    term.placement = BottleneckPlacement::kParallel;
    term.activation = BottleneckActivation::kRelu;
    term.up_bias.clear();
    terms.push_back({{layer, Site::kResidualAttn}, term});
  }
}

}  // namespace

ModelConfig tiny_model() {
  ModelConfig model;
  model.vocab = 61;
  model.hidden = 40;
  model.heads = 6;
  model.kv_heads = 2;
  model.head_dim = 10;
  model.ffn = 52;
  model.norm_eps = 1e-6f;
  model.activation = Activation::kGeluTanh;
  model.qk_norm = true;
  model.post_norms = true;
  model.embed_scale = 6.25f;
  model.attn_scale = 0.3f;
  model.layers = {{0, 0}, {9, 1}, {0, 0}};
  model.ropes = {{{1, 0.5f, 0.1f, 0.02f, 0.001f}, 1}, {{1, 0.3f, 0.05f, 0.01f, 0.002f}, 1.1f}};
  return model;
}

void fill_weights(const ModelConfig& model, WeightStore& store, uint32_t seed) {
  const auto reader = [](std::vector<float> values, int32_t cols) -> RowReader {
    return [values = std::move(values), cols](int32_t row0, int32_t count, float* out) {
      const auto first = values.begin() + static_cast<ptrdiff_t>(row0) * cols;
      std::copy(first, first + static_cast<ptrdiff_t>(count) * cols, out);
    };
  };
  for_sites(
      model, [](Site) { return true; },
      [&](SiteRef site, uint32_t index) {
        const WeightShape shape = weight_shape(model, site.site);
        if (shape.rows == 0 || (site.site == Site::kHead && model.tied_head)) return;
        const size_t count = static_cast<size_t>(shape.rows) * static_cast<size_t>(shape.cols);
        const bool norm = is_norm_site(site.site);
        const float spread = norm ? 0.2f : 1.0f / std::sqrt(static_cast<float>(shape.cols));
        store.add_weight(
            site, WeightPart::kWeight, shape.rows, shape.cols,
            reader(random_values(count, seed * 1000 + index, spread, norm ? 1 : 0), shape.cols));
        const bool bias = site.site == Site::kQ || site.site == Site::kK || site.site == Site::kV ||
                          site.site == Site::kUp || site.site == Site::kDown;
        if (!bias) return;
        store.add_weight(
            site, WeightPart::kBias, 1, shape.rows,
            reader(random_values(static_cast<size_t>(shape.rows), seed * 2000 + index, 0.3f),
                   shape.rows));
      });
}

TermSet tiny_terms(const ModelConfig& model, int32_t kind, uint32_t seed) {
  TermSet terms;
  switch (kind) {
    case 0:
      add_lowrank(model, seed, terms);
      break;
    case 1:
      add_diags(model, seed, terms);
      add_lowrank(model, seed + 77, terms);
      break;
    case 2:
      add_overrides(model, seed, terms);
      break;
    case 3:
      add_prefixes(model, seed, std::nullopt, terms);
      break;
    case 4:
      add_prefixes(model, seed, 0.6f, terms);
      break;
    default:
      add_bottlenecks(model, seed, terms);
      break;
  }
  return terms;
}

StepPlan PlanArrays::view() const {
  StepPlan plan;
  plan.row_sequence = row_sequence;
  plan.row_position = row_position;
  plan.row_token = row_token;
  plan.row_terms = row_terms;
  plan.row_gate = row_gate;
  plan.rank_gates = rank_gates;
  plan.gate_width = gate_width;
  plan.embeddings = embeddings;
  plan.sequence_base = sequence_base;
  plan.sequence_runs = sequence_runs;
  plan.run_kind = run_kind;
  plan.run_ref = run_ref;
  plan.run_tokens = run_tokens;
  plan.pages = pages;
  plan.term_sets = term_sets;
  plan.entry_row = entry_row;
  plan.entry_target = entry_target;
  plan.entry_top_logprobs = entry_top_logprobs;
  plan.entry_params = entry_params;
  plan.entry_seed = entry_seed;
  plan.entry_bias = entry_bias;
  plan.bias_ids = bias_ids;
  plan.bias_values = bias_values;
  plan.entry_history = entry_history;
  plan.history_ids = history_ids;
  plan.history_counts = history_counts;
  plan.entry_mask = entry_mask;
  plan.masks = masks;
  return plan;
}

void add_sequence(PlanArrays& plan, const SequencePart& part) {
  const int32_t sequence = static_cast<int32_t>(plan.sequence_base.size());
  int32_t set = -1;
  if (part.terms != 0) {
    set = static_cast<int32_t>(plan.term_sets.size());
    plan.term_sets.push_back(part.terms);
  }
  plan.sequence_base.push_back(part.shared_prefix);
  const auto add_run = [&](RunKind kind, int32_t ref, int32_t tokens) {
    plan.run_kind.push_back(static_cast<uint8_t>(kind));
    plan.run_ref.push_back(ref);
    plan.run_tokens.push_back(tokens);
  };
  if (part.shared_prefix > 0) add_run(RunKind::kPrefix, set, 0);
  if (part.gated_prefix) add_run(RunKind::kGatedPrefix, set, 0);
  add_run(RunKind::kPages, static_cast<int32_t>(plan.pages.size()), part.first + part.count);
  plan.sequence_runs.push_back(static_cast<int32_t>(plan.run_kind.size()));
  plan.pages.insert(plan.pages.end(), part.pages.begin(), part.pages.end());
  for (int32_t i = part.first; i < part.first + part.count; ++i) {
    plan.entry_row.push_back(static_cast<int32_t>(plan.row_token.size()));
    plan.entry_target.push_back(part.target);
    plan.entry_top_logprobs.push_back(-1);
    for (const float p : {0.0f, 0.0f, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0.0f})
      plan.entry_params.push_back(p);
    plan.entry_seed.insert(plan.entry_seed.end(), 4, 0);
    plan.entry_bias.push_back(plan.entry_bias.back());
    plan.entry_history.push_back(plan.entry_history.back());
    plan.entry_mask.push_back(-1);
    plan.row_sequence.push_back(sequence);
    plan.row_position.push_back(part.shared_prefix + i);
    plan.row_token.push_back(part.tokens[static_cast<size_t>(i)]);
    plan.row_terms.push_back(set);
    plan.row_gate.push_back(-1);
  }
}

std::vector<int32_t> random_tokens(int32_t vocab, int32_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& t : tokens) t = static_cast<int32_t>(generator() % static_cast<uint32_t>(vocab));
  return tokens;
}

}  // namespace manyfold::test
