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
    // A second one on each site, through a norm.
    const auto hidden = static_cast<size_t>(model.hidden);
    term.norm = {random_values(hidden, s + 7, 0.3f, 1), random_values(hidden, s + 8, 0.3f), 1e-5f};
    terms.push_back({{layer, Site::kResidualAttn}, term});
    term.placement = BottleneckPlacement::kSequential;
    terms.push_back({{layer, Site::kResidualMlp}, term});
    // What reads the residual stream, with and without the sub-block's output, and through a norm.
    term.placement = BottleneckPlacement::kSum;
    terms.push_back({{layer, Site::kResidualMlp}, term});
    term.norm.reset();
    terms.push_back({{layer, Site::kResidualAttn}, term});
    term.placement = BottleneckPlacement::kResidual;
    terms.push_back({{layer, Site::kResidualMlp}, std::move(term)});
  }
}

TermTensor int8_tensor(std::vector<int32_t> shape, uint32_t seed, float spread) {
  TermTensor out{Dtype::kF32, std::move(shape), {}};
  out.codec = Codec::kInt8;
  for (const float v : random_values(out.count(), seed, 60)) {
    const auto byte = static_cast<int8_t>(std::clamp(std::round(v), -127.0f, 127.0f));
    out.bytes.push_back(static_cast<uint8_t>(byte));
  }
  out.scales = random_values(static_cast<size_t>(out.shape[0]), seed + 1, spread / 60);
  return out;
}

TermTensor ternary_tensor(std::vector<int32_t> shape, uint32_t seed, float scale) {
  TermTensor out{Dtype::kF32, std::move(shape), {}};
  out.codec = Codec::kTernary;
  out.scales = {scale};
  const auto cols = static_cast<size_t>(out.shape[1]);
  out.positive.resize(static_cast<size_t>(out.shape[0]) * out.plane_stride());
  out.negative.resize(out.positive.size());
  const std::vector<float> values = random_values(out.count(), seed, 1);
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t word = i / cols * out.plane_stride() + i % cols / 32;
    if (values[i] > 0.8f) out.positive[word] |= 1u << (i % cols % 32);
    if (values[i] < -0.8f) out.negative[word] |= 1u << (i % cols % 32);
  }
  return out;
}

// Every step-th of 0 .. width - 1.
std::vector<uint32_t> every(int32_t width, int32_t first, int32_t step) {
  std::vector<uint32_t> index;
  for (int32_t i = first; i < width; i += step) index.push_back(static_cast<uint32_t>(i));
  return index;
}

void add_rowcols(const ModelConfig& model, uint32_t seed, TermSet& terms) {
  for_sites(model, is_linear_site, [&](SiteRef site, uint32_t index) {
    const WeightShape shape = weight_shape(model, site.site);
    const uint32_t s = seed + index;
    RowCol in{RowColSide::kIn, every(shape.cols, 1, 5), {}, 0.7f};
    const auto k = static_cast<int32_t>(in.index.size());
    in.values =
        index % 3 == 0 ? int8_tensor({shape.rows, k}, s, 0.2f) : tensor({shape.rows, k}, s, 0.2f);
    RowCol out{RowColSide::kOut, every(shape.rows, 2, 7), {}, -1.1f};
    const auto rows = static_cast<int32_t>(out.index.size());
    out.values = index % 3 == 1 ? ternary_tensor({rows, shape.cols}, s + 1, 0.15f)
                                : tensor({rows, shape.cols}, s + 1, 0.2f);
    if (index % 2 == 0) terms.push_back({site, std::move(in)});
    terms.push_back({site, std::move(out)});
  });
}

void add_sparse(const ModelConfig& model, uint32_t seed, TermSet& terms) {
  for_sites(model, is_linear_site, [&](SiteRef site, uint32_t index) {
    const WeightShape shape = weight_shape(model, site.site);
    Sparse term;
    term.row_start = {0};
    for (int32_t row = 0; row < shape.rows; ++row) {
      // Some rows are empty.
      for (int32_t c = row % 9; row % 4 != 3 && c < shape.cols; c += 11) {
        term.columns.push_back(static_cast<uint32_t>(c));
      }
      term.row_start.push_back(static_cast<uint32_t>(term.columns.size()));
    }
    const auto count = static_cast<int32_t>(term.columns.size());
    term.values = index % 3 == 2 ? ternary_tensor({1, count}, seed + index, 0.3f)
                                 : tensor({1, count}, seed + index, 0.3f);
    term.scale = 0.9f;
    terms.push_back({site, std::move(term)});
  });
}

// A chain from `in` to `out` values: blocks of two after a rotation by one, then a dense block to
// out + 1 values, of which the first `out` are taken backwards.
BlockDiag chain(int32_t in, int32_t out, BlockPlacement placement, uint32_t seed) {
  BlockDiag term;
  term.placement = placement;
  BlockStage pairs;
  const int32_t blocks = in / 2;
  for (int32_t i = 0; i < 2 * blocks; ++i) {
    pairs.gather.push_back(static_cast<uint32_t>((i + 1) % in));
  }
  pairs.blocks = tensor({blocks, 3, 2}, seed, 0.6f);
  BlockStage dense;
  dense.blocks = tensor({1, out + 1, 3 * blocks}, seed + 1, 1.0f / std::sqrt(2.0f * in));
  term.stages = {std::move(pairs), std::move(dense)};
  for (int32_t i = 0; i < out; ++i) term.output.push_back(static_cast<uint32_t>(out - 1 - i));
  if (placement == BlockPlacement::kAdditive) term.scale = 0.4f;
  return term;
}

void add_chains(const ModelConfig& model, uint32_t seed, TermSet& terms) {
  for_sites(model, is_linear_site, [&](SiteRef site, uint32_t index) {
    const WeightShape shape = weight_shape(model, site.site);
    const uint32_t s = seed + 3 * index;
    if (index % 3 != 0) {
      terms.push_back({site, chain(shape.cols, shape.cols, BlockPlacement::kPre, s)});
    }
    if (index % 3 != 1) {
      terms.push_back({site, chain(shape.rows, shape.rows, BlockPlacement::kPost, s + 1)});
    }
    if (index % 2 == 0) {
      terms.push_back({site, chain(shape.cols, shape.rows, BlockPlacement::kAdditive, s + 2)});
      // One stage: nothing stands between the input and the outputs.
      BlockDiag single;
      single.placement = BlockPlacement::kAdditive;
      single.stages.push_back({every(shape.cols, 0, 4), {}});
      const auto inputs = static_cast<int32_t>(single.stages[0].gather.size());
      single.stages[0].blocks = tensor({1, shape.rows, inputs}, s, 0.1f);
      terms.push_back({site, std::move(single)});
    }
  });
}

void add_coded_lowrank(const ModelConfig& model, uint32_t seed, TermSet& terms) {
  for_sites(model, is_linear_site, [&](SiteRef site, uint32_t index) {
    const WeightShape shape = weight_shape(model, site.site);
    const int32_t rank = 2 + static_cast<int32_t>(index) % 5;
    const uint32_t s = seed + index;
    LowRank term{
        tensor({rank, shape.cols}, s, 0.2f), tensor({shape.rows, rank}, s + 1, 0.2f), 0.8f, {}, {}};
    if (index % 2 == 0) term.mid_matrix = tensor({rank, rank}, s + 2, 0.7f, Dtype::kF32);
    if (index % 3 == 0) term.a = ternary_tensor({rank, shape.cols}, s, 0.2f);
    if (index % 3 != 2) term.b = ternary_tensor({shape.rows, rank}, s + 1, 0.25f);
    if (index % 3 == 2) term.a = int8_tensor({rank, shape.cols}, s, 0.2f);
    if (index % 4 == 1) term.b = int8_tensor({shape.rows, rank}, s + 1, 0.2f);
    terms.push_back({site, std::move(term)});
  });
  LowRank embedding{
      tensor({4, model.vocab}, seed, 0.3f), tensor({model.hidden, 4}, seed + 9, 0.3f), 1, {}, {}};
  embedding.mid_matrix = tensor({4, 4}, seed + 3, 0.7f);
  terms.push_back({{-1, Site::kEmbedding}, std::move(embedding)});
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
    case 5:
      add_bottlenecks(model, seed, terms);
      break;
    case 6:
      add_rowcols(model, seed, terms);
      add_sparse(model, seed + 31, terms);
      break;
    case 7:
      add_chains(model, seed, terms);
      break;
    case 8:
      add_chains(model, seed + 5, terms);
      add_lowrank(model, seed + 6, terms);
      add_sparse(model, seed + 7, terms);
      add_diags(model, seed + 8, terms);
      add_rowcols(model, seed + 9, terms);
      break;
    default:
      add_coded_lowrank(model, seed, terms);
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
