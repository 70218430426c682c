// See unpacked_terms.h.
#include "unpacked_terms.h"

namespace manyfold {

namespace {

const float* data_or_null(const std::vector<float>& values) {
  return values.empty() ? nullptr : values.data();
}

size_t float_bytes(std::initializer_list<const std::vector<float>*> vectors) {
  size_t bytes = 0;
  for (const std::vector<float>* v : vectors) bytes += v->size() * sizeof(float);
  return bytes;
}

// Adds one term to what its site has; keeps SiteTerms::bytes up to date.
struct Unpack {
  SiteTerms& site;

  void operator()(const LowRank& term) const {
    LowRankValues out;
    out.a = tensor_values(term.a);
    out.b = tensor_values(term.b);
    out.mid = term.mid;
    out.out_diag = term.out_diag;
    if (!term.mid_matrix.shape.empty()) out.mid_matrix = tensor_values(term.mid_matrix);
    out.rank = term.a.shape[0];
    out.in = term.a.shape[1];
    out.out = term.b.shape[0];
    out.scale = term.scale;
    site.bytes += float_bytes({&out.a, &out.b, &out.mid, &out.out_diag, &out.mid_matrix});
    site.lowrank.push_back(std::move(out));
  }
  void operator()(const Diag& term) const {
    site.bytes += float_bytes({&term.h, &term.g, &term.c});
    site.diag = term;
  }
  void operator()(const Override& term) const {
    OverrideValues out{term.rows, tensor_values(term.values), term.values.shape[1]};
    site.bytes += float_bytes({&out.values}) + out.rows.size() * sizeof(uint32_t);
    site.override_rows = std::move(out);
  }
  void operator()(const Prefix& term) const {
    PrefixValues out{tensor_values(term.k), tensor_values(term.v), term.k.shape[0], term.gate};
    site.bytes += float_bytes({&out.k, &out.v});
    site.prefix = std::move(out);
  }
  void operator()(const Bottleneck& term) const {
    BottleneckValues out;
    out.placement = term.placement;
    out.activation = term.activation;
    out.down = tensor_values(term.down);
    out.up = tensor_values(term.up);
    out.down_bias = term.down_bias;
    out.up_bias = term.up_bias;
    out.middle = term.down.shape[0];
    out.hidden = term.down.shape[1];
    out.scale = term.scale;
    out.norm = term.norm;
    site.bytes += float_bytes({&out.down, &out.up, &out.down_bias, &out.up_bias});
    if (out.norm) site.bytes += float_bytes({&out.norm->weight, &out.norm->bias});
    site.bottlenecks.push_back(std::move(out));
  }
  void operator()(const RowCol& term) const {
    RowColValues out{term.side, term.index, tensor_values(term.values), term.values.shape[1],
                     term.scale};
    site.bytes += float_bytes({&out.values}) + out.index.size() * sizeof(uint32_t);
    site.rowcol.push_back(std::move(out));
  }
  void operator()(const Sparse& term) const {
    SparseValues out{term.row_start, term.columns, tensor_values(term.values), term.scale};
    site.bytes +=
        float_bytes({&out.values}) + (out.row_start.size() + out.columns.size()) * sizeof(uint32_t);
    site.sparse.push_back(std::move(out));
  }
  void operator()(const BlockDiag& term) const {
    BlockChain out(term);
    site.bytes += out.bytes();
    if (term.placement == BlockPlacement::kPre) {
      site.pre = std::move(out);
    } else if (term.placement == BlockPlacement::kPost) {
      site.post = std::move(out);
    } else {
      site.additive.push_back(std::move(out));
    }
  }
};

}  // namespace

std::vector<float> tensor_values(const TermTensor& tensor) {
  std::vector<float> values(tensor.count());
  for (size_t i = 0; i < values.size(); ++i) values[i] = tensor.at(i);
  return values;
}

LowRankView LowRankValues::view() const {
  return {a.data(),
          b.data(),
          rank,
          in,
          out,
          scale,
          data_or_null(mid),
          data_or_null(out_diag),
          data_or_null(mid_matrix)};
}

RowColView RowColValues::view() const {
  return {side, index.data(), values.data(), static_cast<int32_t>(index.size()), in, scale};
}

SparseView SparseValues::view() const {
  return {row_start.data(), columns.data(), values.data(), scale};
}

const float* OverrideValues::find(uint32_t id) const {
  const int32_t row = find_row(rows.data(), static_cast<int32_t>(rows.size()), id);
  return row < 0 ? nullptr : values.data() + static_cast<size_t>(row) * width;
}

BottleneckView BottleneckValues::view() const {
  return {placement,
          activation,
          down.data(),
          up.data(),
          data_or_null(down_bias),
          data_or_null(up_bias),
          middle,
          hidden,
          scale,
          norm ? &*norm : nullptr};
}

UnpackedTerms::UnpackedTerms(const ModelConfig& model, const TermSet& terms, bool with_lowrank)
    : index_((model.layers.size() + 1) * kSiteCount, -1) {
  for (const Term& term : terms) {
    if (!with_lowrank && std::holds_alternative<LowRank>(term.op)) continue;
    int32_t& place = index_[static_cast<size_t>(site_index(term.site))];
    if (place < 0) {
      place = static_cast<int32_t>(sites_.size());
      sites_.emplace_back();
    }
    std::visit(Unpack{sites_[static_cast<size_t>(place)]}, term.op);
  }
  for (const SiteTerms& site : sites_) {
    bytes_ += site.bytes;
    if (site.prefix && !site.prefix->gate.has_value()) shared_prefix_ = site.prefix->n;
  }
}

const SiteTerms* UnpackedTerms::find(SiteRef site) const {
  const size_t index = static_cast<size_t>(site_index(site));
  if (index >= index_.size() || index_[index] < 0) return nullptr;
  return &sites_[static_cast<size_t>(index_[index])];
}

}  // namespace manyfold
