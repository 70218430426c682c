// Rotary positions, the KV pool and attention of the fast CPU backend; see fast_ops.h.
#include <algorithm>

#include "fast_ops.h"

namespace manyfold {

void FastOps::rope_append(int32_t layer) {
  if (model_.qk_norm) {
    count_terms({layer, Site::kQNorm}, groups_);
    count_terms({layer, Site::kKNorm}, groups_);
  }
  const int64_t floats = int64_t{model_.q_width()} + 2 * model_.kv_width();
  for_rows(plan_.rows(), floats * 4, [&](int32_t r, int32_t) { rope_append_row(layer, r); });
}

void FastOps::rope_append_row(int32_t layer, int32_t r) {
  const int32_t head_dim = model_.head_dim, half = head_dim / 2;
  float* q = row(Buffer::kQ, r);
  float* k = row(Buffer::kK, r);
  const float* v = row(Buffer::kV, r);
  const int64_t table = model_.layers[static_cast<size_t>(layer)].rope;
  const float* cos = angles_.data() + (table * plan_.rows() + r) * head_dim;
  const auto place = [&](float* heads, int32_t count, Site norm) {
    const float* weight = model_.qk_norm ? norm_weight(r, {layer, norm}) : nullptr;
    for (int32_t h = 0; h < count; ++h) {
      float* head = heads + int64_t{h} * head_dim;
      if (weight != nullptr) kernels_.rms_norm(head, weight, head_dim, model_.norm_eps, head);
      kernels_.rotate(head, half, cos, cos + half);
    }
  };
  place(q, model_.heads, Site::kQNorm);
  place(k, model_.kv_heads, Site::kKNorm);

  const Sequence& sequence =
      sequences_[static_cast<size_t>(plan_.row_sequence[static_cast<size_t>(r)])];
  const int32_t slot = plan_.row_position[static_cast<size_t>(r)] - sequence.base;
  const auto page = static_cast<size_t>(
      page_numbers_[static_cast<size_t>(sequence.first_page + slot / kPageTokens)]);
  const size_t offset = page * kv_.head_page_bytes();
  for (int32_t h = 0; h < model_.kv_heads; ++h) {
    kernels_.append_key(kv_.type(), k + int64_t{h} * head_dim, head_dim, slot % kPageTokens,
                        kv_.keys(layer, h) + offset);
    kernels_.append_value(kv_.type(), v + int64_t{h} * head_dim, head_dim, slot % kPageTokens,
                          kv_.values(layer, h) + offset);
  }
}

void FastOps::attention(int32_t layer) {
  count_terms({layer, Site::kAttention}, groups_);
  pool_.run_items(static_cast<int32_t>(attention_items_.size()), [&](int32_t i, int32_t thread) {
    attend(layer, attention_items_[static_cast<size_t>(i)],
           workspaces_[static_cast<size_t>(thread)]);
  });
}

// Shared prefixes stand before the pages; gated ones have their own softmax. A set whose prefix
// leaves this layer out adds nothing here.
void FastOps::collect_segments(int32_t layer, const AttentionItem& item, Workspace& workspace) {
  workspace.shared.clear();
  workspace.gated.clear();
  workspace.gates.clear();
  const Sequence& sequence = sequences_[static_cast<size_t>(item.sequence)];
  for (int32_t i = 0; i < sequence.prefixes; ++i) {
    const PrefixRun& run = prefix_runs_[static_cast<size_t>(sequence.first_prefix + i)];
    const PackedPrefix* prefix = run.set->prefix(layer);
    if (prefix == nullptr || prefix->gated != run.gated) continue;
    const size_t head = static_cast<size_t>(item.kv_head) * prefix->head_bytes;
    const KeySegment segment{kv_type(prefix->dtype), prefix->k + head, prefix->v + head, nullptr,
                             prefix->tokens,         run.position};
    if (run.gated) {
      workspace.gated.push_back(segment);
      workspace.gates.push_back(prefix->gate);
    } else {
      workspace.shared.push_back(segment);
    }
  }
  workspace.shared.push_back(
      {kv_.type(), kv_.keys(layer, item.kv_head), kv_.values(layer, item.kv_head),
       page_numbers_.data() + sequence.first_page, sequence.tokens, sequence.base});
}

void FastOps::attend(int32_t layer, const AttentionItem& item, Workspace& workspace) {
  collect_segments(layer, item, workspace);
  const int32_t group = model_.heads / model_.kv_heads;
  const int64_t first = int64_t{item.kv_head} * group * model_.head_dim;
  kernels_.attention({.q = row(Buffer::kQ, item.row0) + first,
                      .q_stride = strides_[static_cast<size_t>(Buffer::kQ)],
                      .out = row(Buffer::kContext, item.row0) + first,
                      .out_stride = strides_[static_cast<size_t>(Buffer::kContext)],
                      .positions = plan_.row_position.data() + item.row0,
                      .rows = item.rows,
                      .heads = group,
                      .head_dim = model_.head_dim,
                      .scale = model_.attn_scale,
                      .window = model_.layers[static_cast<size_t>(layer)].window,
                      .shared = workspace.shared.data(),
                      .shared_count = static_cast<int32_t>(workspace.shared.size()),
                      .gated = workspace.gated.data(),
                      .gates = workspace.gates.data(),
                      .gated_count = static_cast<int32_t>(workspace.gated.size()),
                      .scratch = workspace.attention.as<float>()});
}

}  // namespace manyfold
