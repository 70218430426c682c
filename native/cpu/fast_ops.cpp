// See fast_ops.h. Attention and rotary positions are in fast_attention.cpp.
#include "fast_ops.h"

#include <algorithm>

#include "../core/error.h"
#include "../core/rope.h"

namespace manyfold {
namespace {

// Bytes of logits that are held at once; a step with more entries runs the head again for the next
// ones.
constexpr int64_t kLogitsBytes = int64_t{128} << 20;
// Query heads that one attention item takes.
constexpr int32_t kBlockQueries = 48;

constexpr std::array kBuffers = {Buffer::kResidual, Buffer::kNormed, Buffer::kQ,
                                 Buffer::kK,        Buffer::kV,      Buffer::kContext,
                                 Buffer::kBlockOut, Buffer::kGate,   Buffer::kUp};

int32_t widest_input(const ModelConfig& model) {
  return std::max({model.hidden, model.q_width(), model.ffn});
}

int32_t entry_block(const BackendOptions& options) {
  const int64_t fit = kLogitsBytes / (row_stride(options.model.vocab) * 4);
  const int32_t most = std::min(options.max_entries, options.max_rows);
  return static_cast<int32_t>(std::clamp<int64_t>(fit, std::min(most, 16), most));
}

}  // namespace

FastOps::FastOps(const BackendOptions& options, const Kernels& kernels, ThreadPool& pool,
                 const FastWeights& weights, const FastTerms& terms, KvPool& kv)
    : model_(options.model),
      kernels_(kernels),
      pool_(pool),
      weights_(weights),
      terms_(terms),
      kv_(kv),
      max_rows_(options.max_rows),
      linear_(kernels, pool, weights, options.dtype, options.max_rows, widest_input(options.model)),
      entry_block_(entry_block(options)),
      logits_stride_(row_stride(options.model.vocab)),
      workspaces_(static_cast<size_t>(pool.threads())) {
  lay_out_buffers();
  const auto block = static_cast<size_t>(entry_block_);
  logits_ = HugeBuffer(block * static_cast<size_t>(logits_stride_) * 4, "logits");
  entry_rows_ = HugeBuffer(block * static_cast<size_t>(row_stride(model_.hidden)) * 4, "entries");
  const int32_t queries = std::max(kBlockQueries, model_.heads / model_.kv_heads);
  const auto scratch = static_cast<size_t>(kernels_.attention_scratch(queries, model_.head_dim));
  for (Workspace& workspace : workspaces_) {
    workspace.attention = HugeBuffer(scratch * 4, "attention");
  }
  const auto rows = static_cast<size_t>(max_rows_);
  row_sets_.reserve(rows);
  entry_sets_.reserve(rows);
  entry_gates_.reserve(rows);
  groups_.reserve(max_rows_);
  entry_groups_.reserve(max_rows_);
  sequences_.reserve(rows);
  angles_.reserve(rows * model_.ropes.size() * static_cast<size_t>(model_.head_dim));
}

int32_t FastOps::width(Buffer buffer) const {
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

void FastOps::lay_out_buffers() {
  int64_t floats = 0;
  for (const Buffer buffer : kBuffers) {
    strides_[static_cast<size_t>(buffer)] = row_stride(width(buffer));
    floats += max_rows_ * strides_[static_cast<size_t>(buffer)];
  }
  buffers_ = HugeBuffer(static_cast<size_t>(floats) * 4,
                        "activations of " + std::to_string(max_rows_) + " rows");
  float* next = buffers_.as<float>();
  for (const Buffer buffer : kBuffers) {
    rows_[static_cast<size_t>(buffer)] = next;
    next += max_rows_ * strides_[static_cast<size_t>(buffer)];
  }
  // Nobody needs the gate once it has been activated.
  rows_[static_cast<size_t>(Buffer::kFfn)] = rows_[static_cast<size_t>(Buffer::kGate)];
  strides_[static_cast<size_t>(Buffer::kFfn)] = strides_[static_cast<size_t>(Buffer::kGate)];
}

float* FastOps::row(Buffer buffer, int32_t r) {
  return rows_[static_cast<size_t>(buffer)] + r * strides_[static_cast<size_t>(buffer)];
}

void FastOps::reserve_scratch() {
  const TermLimits& limits = terms_.limits();
  linear_.reserve(limits);
  for (Workspace& workspace : workspaces_) {
    workspace.scratch.resize(static_cast<size_t>(limits.scratch));
  }
}

void FastOps::begin(const StepPlan& plan) {
  session_.reset();  // a step that threw never finished
  session_.emplace(pool_);
  plan_ = plan;
  reserve_scratch();
  row_sets_.clear();
  for (const int32_t set : plan.row_terms) {
    row_sets_.push_back(set < 0 ? nullptr : &terms_.get(plan.term_sets[static_cast<size_t>(set)]));
  }
  groups_.build(row_sets_);
  read_sequences();
  make_attention_items();
  make_angles();
  ++counters_.steps;
  counters_.rows += plan.rows();
}

// Page runs of a sequence become one list, so that tiles of attention do not depend on how runs
// were cut: check_plan has seen that all runs but the last fill their pages.
void FastOps::read_sequences() {
  sequences_.clear();
  page_numbers_.clear();
  prefix_runs_.clear();
  for (int32_t s = 0; s < plan_.sequences(); ++s) {
    Sequence sequence;
    sequence.base = plan_.sequence_base[static_cast<size_t>(s)];
    sequence.first_page = static_cast<int32_t>(page_numbers_.size());
    sequence.first_prefix = static_cast<int32_t>(prefix_runs_.size());
    int32_t position = 0;
    for (int32_t n = plan_.sequence_runs[static_cast<size_t>(s)];
         n < plan_.sequence_runs[static_cast<size_t>(s) + 1]; ++n) {
      const auto run = static_cast<size_t>(n);
      const int32_t ref = plan_.run_ref[run];
      const auto kind = static_cast<RunKind>(plan_.run_kind[run]);
      if (kind == RunKind::kPages) {
        const int32_t pages = (plan_.run_tokens[run] + kPageTokens - 1) / kPageTokens;
        const auto first = plan_.pages.begin() + ref;
        page_numbers_.insert(page_numbers_.end(), first, first + pages);
        sequence.tokens += plan_.run_tokens[run];
        continue;
      }
      const FastTermSet& set = terms_.get(plan_.term_sets[static_cast<size_t>(ref)]);
      prefix_runs_.push_back({&set, kind == RunKind::kGatedPrefix, position});
      if (kind == RunKind::kPrefix) position += set.shared_prefix();
    }
    sequence.prefixes = static_cast<int32_t>(prefix_runs_.size()) - sequence.first_prefix;
    sequences_.push_back(sequence);
  }
}

// Blocks of rows of one sequence, each kv head apart; the dearest first, so that threads end
// together.
void FastOps::make_attention_items() {
  attention_items_.clear();
  const int32_t block = std::max(1, kBlockQueries / (model_.heads / model_.kv_heads));
  for (int32_t row0 = 0; row0 < plan_.rows();) {
    const int32_t sequence = plan_.row_sequence[static_cast<size_t>(row0)];
    int32_t rows = 1;
    while (rows < block && row0 + rows < plan_.rows() &&
           plan_.row_sequence[static_cast<size_t>(row0 + rows)] == sequence) {
      ++rows;
    }
    const int64_t keys = plan_.row_position[static_cast<size_t>(row0 + rows - 1)] + 1;
    for (int32_t head = 0; head < model_.kv_heads; ++head) {
      attention_items_.push_back({sequence, row0, rows, head, keys * rows});
    }
    row0 += rows;
  }
  std::sort(attention_items_.begin(), attention_items_.end(),
            [](const AttentionItem& a, const AttentionItem& b) {
              if (a.cost != b.cost) return a.cost > b.cost;
              return a.row0 != b.row0 ? a.row0 < b.row0 : a.kv_head < b.kv_head;
            });
}

void FastOps::make_angles() {
  const int32_t rows = plan_.rows(), half = model_.head_dim / 2;
  angles_.resize(model_.ropes.size() * static_cast<size_t>(rows) * 2 * static_cast<size_t>(half));
  // Sines take some ten times as long as other floats.
  for_rows(rows, int64_t{half} * 20 * static_cast<int64_t>(model_.ropes.size()),
           [&](int32_t r, int32_t) {
             for (size_t table = 0; table < model_.ropes.size(); ++table) {
               float* cos = angles_.data() + (static_cast<int64_t>(table) * rows + r) * 2 * half;
               rope_angles(model_.ropes[table], plan_.row_position[static_cast<size_t>(r)], cos,
                           cos + half);
             }
           });
}

const SiteTerms* FastOps::rare(int32_t r, SiteRef site) const {
  const FastTermSet* set = row_sets_[static_cast<size_t>(r)];
  return set == nullptr ? nullptr : set->rare(site);
}

void FastOps::count_terms(SiteRef site, const RowGroups& groups) {
  for (const RowGroup& group : groups.groups()) {
    const size_t bytes = group.set->site_bytes(site);
    if (bytes == 0) continue;
    ++counters_.term_reads;
    counters_.term_bytes_read += static_cast<int64_t>(bytes);
  }
}

void FastOps::embed() {
  count_terms({-1, Site::kEmbedding}, groups_);
  for_rows(plan_.rows(), int64_t{model_.hidden} * 4, [&](int32_t r, int32_t thread) {
    embed_row(r, workspaces_[static_cast<size_t>(thread)]);
  });
}

void FastOps::embed_row(int32_t r, Workspace& workspace) {
  const int32_t token = plan_.row_token[static_cast<size_t>(r)];
  const int32_t hidden = model_.hidden;
  float* out = row(Buffer::kResidual, r);
  if (token < 0) {
    std::copy_n(plan_.embeddings.data() + int64_t{-1 - token} * hidden, hidden, out);
    return;
  }
  const SiteTerms* terms = rare(r, {-1, Site::kEmbedding});
  const float* values = nullptr;
  if (terms != nullptr && terms->override_rows) {
    values = terms->override_rows->find(static_cast<uint32_t>(token));
  }
  if (values != nullptr) {
    std::copy_n(values, hidden, out);
  } else {
    weights_.embedding_row(token, out);
  }
  const FastTermSet* set = row_sets_[static_cast<size_t>(r)];
  const PackedSite* site = set == nullptr ? nullptr : set->packed({-1, Site::kEmbedding});
  if (site != nullptr) {
    const GateTable gates{plan_.rank_gates, plan_.gate_width, plan_.row_gate};
    for (const PackedLookup& lookup : site->lookups) {
      lookup.run(kernels_, token, gates.of(r), gates.width, workspace.scratch.data(), out);
    }
  }
  if (model_.embed_scale != 1.0f) {
    for (int32_t i = 0; i < hidden; ++i) out[i] *= model_.embed_scale;
  }
}

const float* FastOps::norm_weight(int32_t r, SiteRef site) const {
  const SiteTerms* terms = rare(r, site);
  return terms != nullptr && terms->override_rows ? terms->override_rows->values.data()
                                                  : weights_.norm(site);
}

void FastOps::norm(SiteRef site, Buffer in, Buffer out) {
  count_terms(site, groups_);
  for_rows(plan_.rows(), model_.hidden, [&](int32_t r, int32_t) {
    kernels_.rms_norm(row(in, r), norm_weight(r, site), model_.hidden, model_.norm_eps,
                      row(out, r));
  });
}

void FastOps::linear(std::span<const LinearOut> outs, Buffer in) {
  std::array<LinearTarget, FastLinear::kMaxTargets> targets;
  MF_ASSERT(outs.size() <= targets.size());
  for (size_t i = 0; i < outs.size(); ++i) {
    targets[i] = {outs[i].site, row(outs[i].out, 0), strides_[static_cast<size_t>(outs[i].out)]};
  }
  linear_.run({.targets = std::span<const LinearTarget>(targets).first(outs.size()),
               .x = row(in, 0),
               .x_stride = strides_[static_cast<size_t>(in)],
               .rows = plan_.rows(),
               .groups = &groups_,
               .gates = {plan_.rank_gates, plan_.gate_width, plan_.row_gate}},
              counters_);
}

void FastOps::activate() {
  const int64_t padded = round_up(model_.ffn, kernels_.lanes);
  for_rows(plan_.rows(), int64_t{model_.ffn} * 4, [&](int32_t r, int32_t) {
    kernels_.activate(model_.activation, row(Buffer::kGate, r), row(Buffer::kUp, r), padded,
                      row(Buffer::kFfn, r));
  });
}

void FastOps::add(SiteRef residual_site) {
  count_terms(residual_site, groups_);
  bottleneck_items_.clear();
  for (const RowGroup& group : groups_.groups()) {
    const PackedSite* site = group.set->packed(residual_site);
    if (site == nullptr || site->bottlenecks.empty()) continue;
    for (int32_t row0 = 0; row0 < group.count; row0 += kRareRows) {
      bottleneck_items_.push_back({site, &group, row0, std::min(kRareRows, group.count - row0)});
    }
  }
  pool_.run_items(static_cast<int32_t>(bottleneck_items_.size()), [&](int32_t i, int32_t thread) {
    const BottleneckItem& item = bottleneck_items_[static_cast<size_t>(i)];
    const int32_t* ids = groups_.rows(*item.group).data() + item.row0;
    const auto rows_of = [&](Buffer buffer) {
      return RowsOf{row(buffer, 0), strides_[static_cast<size_t>(buffer)], ids, item.count};
    };
    for (const PackedBottleneck& bottleneck : item.site->bottlenecks) {
      bottleneck.run(kernels_, rows_of(Buffer::kBlockOut), rows_of(Buffer::kNormed),
                     rows_of(Buffer::kResidual),
                     workspaces_[static_cast<size_t>(thread)].scratch.data());
    }
  });
  const int64_t padded = round_up(model_.hidden, kernels_.lanes);
  for_rows(plan_.rows(), model_.hidden, [&](int32_t r, int32_t) {
    kernels_.add(row(Buffer::kBlockOut, r), padded, row(Buffer::kResidual, r));
  });
}

void FastOps::finish(StepResult& result) {
  prepare_result(plan_, model_.vocab, result);
  entry_sets_.clear();
  for (const int32_t r : plan_.entry_row) {
    entry_sets_.push_back(row_sets_[static_cast<size_t>(r)]);
  }
  entry_groups_.build(entry_sets_);
  count_terms({-1, Site::kFinalNorm}, entry_groups_);
  for (int32_t entry = 0; entry < plan_.entries(); entry += entry_block_) {
    finish_entries(entry, std::min(entry_block_, plan_.entries() - entry), result);
  }
  session_.reset();
}

// Final norm, head and sampling of entries entry0 .. entry0 + count - 1.
void FastOps::finish_entries(int32_t entry0, int32_t count, StepResult& result) {
  const SiteRef site{-1, Site::kFinalNorm};
  const int64_t stride = row_stride(model_.hidden);
  for_rows(count, model_.hidden, [&](int32_t i, int32_t) {
    const int32_t r = plan_.entry_row[static_cast<size_t>(entry0 + i)];
    kernels_.rms_norm(row(Buffer::kResidual, r), norm_weight(r, site), model_.hidden,
                      model_.norm_eps, entry_rows_.as<float>() + i * stride);
  });
  const std::span<const FastTermSet* const> sets(entry_sets_);
  entry_groups_.build(sets.subspan(static_cast<size_t>(entry0), static_cast<size_t>(count)));
  entry_gates_.clear();
  for (int32_t i = 0; i < count; ++i) {
    const auto r = static_cast<size_t>(plan_.entry_row[static_cast<size_t>(entry0 + i)]);
    entry_gates_.push_back(plan_.row_gate[r]);
  }
  const LinearTarget head{{-1, Site::kHead}, logits_.as<float>(), logits_stride_};
  linear_.run({.targets = std::span<const LinearTarget>(&head, 1),
               .x = entry_rows_.as<float>(),
               .x_stride = stride,
               .rows = count,
               .groups = &entry_groups_,
               .gates = {plan_.rank_gates, plan_.gate_width, entry_gates_}},
              counters_);
  pool_.run_items(count, [&](int32_t i, int32_t thread) {
    const std::span<const float> logits(logits_.as<float>() + i * logits_stride_,
                                        static_cast<size_t>(model_.vocab));
    workspaces_[static_cast<size_t>(thread)].sampler.sample(plan_, entry0 + i, logits, result);
  });
}

}  // namespace manyfold
