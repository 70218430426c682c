// See packed_stack.h.
#include "packed_stack.h"

#include <algorithm>

#include "reference/unpacked_terms.h"

namespace manyfold {
namespace {

// What the codec multiplies all values by; int8 has a scale for each row instead.
float codec_scale(const TermTensor& tensor) {
  return tensor.codec == Codec::kTernary ? tensor.scales[0] : 1.0f;
}

// Bits of a value; the codes of a ternary factor take two.
size_t value_bits(FactorType dtype) {
  constexpr size_t kBits[] = {32, 16, 8, 2};
  return kBits[dtype];
}

// How a shared block is packed; see SharedKey.
std::string use_of(const char* kernel, FactorType dtype) {
  return kernel + std::to_string(static_cast<int32_t>(dtype));
}

}  // namespace

std::vector<float> folded_factor(const TermTensor& d, std::vector<float> a, size_t cols) {
  const std::vector<float> mid = tensor_values(d);
  const size_t ranks = a.size() / cols;
  std::vector<float> product(a.size());
  std::vector<double> row(cols);
  for (size_t r = 0; r < ranks; ++r) {
    std::fill(row.begin(), row.end(), 0.0);
    for (size_t k = 0; k < ranks; ++k) {
      for (size_t c = 0; c < cols; ++c)
        row[c] += static_cast<double>(mid[r * ranks + k]) * a[k * cols + c];
    }
    for (size_t c = 0; c < cols; ++c) product[r * cols + c] = static_cast<float>(row[c]);
  }
  return product;
}

FactorType factor_type(const TermTensor& tensor) {
  if (tensor.codec == Codec::kInt8) return FactorType::kInt8;
  if (tensor.codec == Codec::kTernary) return FactorType::kTernary;
  if (tensor.dtype == Dtype::kBf16) return FactorType::kBf16;
  for (size_t i = 0; i < tensor.count(); ++i) {
    const float value = tensor.at(i);
    if (bf16_to_f32(f32_to_bf16(value)) != value) return FactorType::kF32;
  }
  return FactorType::kBf16;
}

std::vector<float> unscaled_values(const TermTensor& tensor) {
  std::vector<float> values = tensor_values(tensor);
  if (tensor.codec == Codec::kInt8) {
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int8_t>(tensor.bytes[i]);
  } else if (tensor.codec == Codec::kTernary) {
    // A scale of zero hides the signs, and a negative one turns them.
    const SparseMatrix signs = SparseMatrix::of_planes(tensor);
    std::fill(values.begin(), values.end(), 0.0f);
    for (size_t row = 0; row + 1 < signs.row_start.size(); ++row) {
      for (uint32_t i = signs.row_start[row]; i < signs.row_start[row + 1]; ++i) {
        values[row * static_cast<size_t>(signs.cols) + signs.columns[i]] = signs.values[i];
      }
    }
  }
  return values;
}

std::vector<float> padded(std::vector<float> values) {
  values.resize(static_cast<size_t>(round_up(static_cast<int64_t>(values.size()), kRowPad)), 0.0f);
  return values;
}

// Decides how the inner values of source.tensor are made.
void StackPacker::add_factor(Source source) {
  const TermTensor& a = *source.tensor;
  source.ranks = a.shape[0];
  if (source.mid_matrix != nullptr) {
    source.dtype = FactorType::kF32;
  } else {
    source.dtype = factor_type(a);
    source.shared = !a.shared.empty();
    for (size_t r = 0; r < source.factor.size(); ++r) {
      source.factor[r] *= a.codec == Codec::kInt8 ? a.scales[r] : codec_scale(a);
    }
    if (a.codec == Codec::kTernary) {
      const size_t bytes = kernels_.reduce_bytes(source.dtype, a.shape[0], a.shape[1]);
      source.slices = slices_of_ternary(a, bytes, kernels_.lanes, false);
    }
  }
  sources_.push_back(std::move(source));
}

// The last source's inner values through b [out, ranks].
void StackPacker::add_outputs(SiteRef site, const TermTensor& b,
                              const std::vector<float>& out_diag) {
  Use use;
  use.spread.site = site;
  use.spread.dtype = factor_type(b);
  use.spread.out = b.shape[0];
  use.source = static_cast<int32_t>(sources_.size()) - 1;
  use.tensor = &b;
  use.out_diag = out_diag;
  if (b.codec == Codec::kInt8) {
    use.out_diag.resize(b.scales.size(), 1.0f);
    for (size_t i = 0; i < b.scales.size(); ++i) use.out_diag[i] *= b.scales[i];
  } else if (b.codec == Codec::kTernary) {
    for (float& factor : sources_.back().factor) factor *= b.scales[0];
    const size_t bytes = kernels_.spread_bytes(FactorType::kTernary, b.shape[0], b.shape[1]);
    use.slices = slices_of_ternary(b, bytes, kernels_.lanes, true);
    if (use.slices) use.spread.kind = PackedSpread::Kind::kSliced;
  }
  uses_.push_back(std::move(use));
}

void StackPacker::add(SiteRef site, const LowRank& term) {
  Source source;
  source.site = site;
  source.tensor = &term.a;
  source.mid_matrix = term.mid_matrix.shape.empty() ? nullptr : &term.mid_matrix;
  source.gated = true;
  source.factor.assign(static_cast<size_t>(term.a.shape[0]), term.scale);
  for (size_t r = 0; r < term.mid.size(); ++r) source.factor[r] *= term.mid[r];
  add_factor(std::move(source));
  add_outputs(site, term.b, term.out_diag);
}

void StackPacker::add(SiteRef site, const RowCol& term) {
  Source source;
  source.site = site;
  source.factor.assign(term.index.size(), term.scale);
  if (term.side == RowColSide::kIn) {
    source.gather = &term.index;
    source.ranks = static_cast<int32_t>(term.index.size());
    sources_.push_back(std::move(source));
    add_outputs(site, term.values, {});
    return;
  }
  source.tensor = &term.values;
  add_factor(std::move(source));
  Use use;
  use.spread.kind = PackedSpread::Kind::kScatter;
  use.spread.site = site;
  use.source = static_cast<int32_t>(sources_.size()) - 1;
  use.scatter = &term.index;
  uses_.push_back(std::move(use));
}

void StackPacker::add(SiteRef site, const Sparse& term) {
  Use use;
  use.spread.kind = PackedSpread::Kind::kSparse;
  use.spread.site = site;
  use.sparse = &term;
  uses_.push_back(std::move(use));
}

void StackPacker::finish(PackedStack* stack, PackedMemory& memory,
                         const std::function<void(SiteRef, size_t)>& read) {
  for (const FactorType::Value dtype :
       {FactorType::kF32, FactorType::kBf16, FactorType::kInt8, FactorType::kTernary}) {
    place_factors(dtype, false, stack);
    place_factors(dtype, true, stack);
  }
  for (size_t i = 0; i < sources_.size(); ++i) {
    if (sources_[i].first >= 0) continue;
    StackPart part;
    part.kind = sources_[i].gather != nullptr ? StackPart::Kind::kGather : StackPart::Kind::kSliced;
    part.first = sources_[i].first = stack->width;
    part.ranks = sources_[i].ranks;
    stack->width += static_cast<int32_t>(round_up(part.ranks, kernels_.lanes));
    stack->parts.push_back(part);
    members_.push_back({static_cast<int32_t>(i)});
  }
  stack->factor.assign(static_cast<size_t>(round_up(stack->width, kRowPad)), 0.0f);
  stack->gate_index.assign(stack->factor.size(), -1);
  for (const Source& source : sources_) {
    for (int32_t r = 0; r < source.ranks; ++r) {
      const auto at = static_cast<size_t>(source.first + r);
      stack->factor[at] = source.factor[static_cast<size_t>(r)];
      if (source.gated) stack->gate_index[at] = r;
    }
    read(source.site, source_bytes(source));
  }
  pack_parts(stack, memory);
  pack_uses(stack, memory, read);
}

// All factors of one type side by side: one part. Those that other sets bring too stand apart from
// this set's own, for a block is shared as a whole.
void StackPacker::place_factors(FactorType dtype, bool shared, PackedStack* stack) {
  StackPart part;
  part.dtype = dtype;
  part.first = stack->width;
  std::vector<int32_t> members;
  for (size_t i = 0; i < sources_.size(); ++i) {
    Source& source = sources_[i];
    if (source.tensor == nullptr || source.slices) continue;
    if (source.dtype != dtype || source.shared != shared) continue;
    source.first = part.first + part.ranks;
    part.ranks += source.ranks;
    stack->cols = source.tensor->shape[1];
    members.push_back(static_cast<int32_t>(i));
  }
  if (members.empty()) return;
  stack->width += static_cast<int32_t>(round_up(part.ranks, kernels_.lanes));
  stack->parts.push_back(part);
  members_.push_back(std::move(members));
}

void StackPacker::pack_parts(PackedStack* stack, PackedMemory& memory) {
  for (size_t p = 0; p < stack->parts.size(); ++p) {
    StackPart* part = &stack->parts[p];
    Source& first = sources_[static_cast<size_t>(members_[p].front())];
    if (part->kind == StackPart::Kind::kGather) {
      std::vector<uint32_t> index = *first.gather;
      index.resize(static_cast<size_t>(round_up(part->ranks, kernels_.lanes)), 0);
      part->scaled =
          std::any_of(first.factor.begin(), first.factor.end(), [](float f) { return f != 1.0f; });
      memory.keep(&part->index, std::move(index));
    } else if (part->kind == StackPart::Kind::kSliced) {
      first.slices->place(&part->sliced, {}, memory);
    } else {
      pack_factors(part, members_[p], stack->cols, memory);
    }
  }
}

void StackPacker::pack_factors(StackPart* part, const std::vector<int32_t>& members, int32_t cols,
                               PackedMemory& memory) {
  std::vector<const Source*> sources;
  std::vector<const TermTensor*> tensors;
  for (const int32_t i : members) {
    sources.push_back(&sources_[static_cast<size_t>(i)]);
    tensors.push_back(sources.back()->tensor);
  }
  const SharedKey key =
      sources.front()->shared ? shared_key(tensors, use_of("reduce", part->dtype)) : SharedKey{};
  const auto fill = [this, part, cols, sources](std::byte* block) {
    std::vector<float> a;
    a.reserve(static_cast<size_t>(part->ranks) * static_cast<size_t>(cols));
    for (const Source* source : sources) {
      const std::vector<float> values =
          source->mid_matrix == nullptr
              ? unscaled_values(*source->tensor)
              : folded_factor(*source->mid_matrix, tensor_values(*source->tensor),
                              static_cast<size_t>(cols));
      a.insert(a.end(), values.begin(), values.end());
    }
    kernels_.pack_reduce(part->dtype, a.data(), part->ranks, cols, block);
  };
  memory.ask_shared(&part->a, key, kernels_.reduce_bytes(part->dtype, part->ranks, cols), fill);
}

size_t StackPacker::source_bytes(const Source& source) const {
  if (source.gather != nullptr) return source.gather->size() * sizeof(uint32_t);
  if (source.slices) return source.slices->bytes();
  return source.tensor->count() * value_bits(source.dtype) / 8;
}

void StackPacker::pack_uses(PackedStack* stack, PackedMemory& memory,
                            const std::function<void(SiteRef, size_t)>& read) {
  for (const Use& use : uses_) stack->spreads.push_back(use.spread);
  for (size_t i = 0; i < uses_.size(); ++i) {
    Use& use = uses_[i];
    PackedSpread* spread = &stack->spreads[i];
    const size_t before = memory.bytes();
    if (use.source >= 0) {
      const Source& source = sources_[static_cast<size_t>(use.source)];
      spread->first = source.first;
      spread->rank = source.ranks;
    }
    if (use.sparse != nullptr) {
      pack_sparse(use, spread, memory);
    } else if (use.scatter != nullptr) {
      memory.keep(&spread->index, *use.scatter);
    } else if (use.slices) {
      use.slices->place(&spread->sliced, use.out_diag, memory);
    } else {
      const auto fill = [this, spread, tensor = use.tensor](std::byte* block) {
        kernels_.pack_spread(spread->dtype, unscaled_values(*tensor).data(), spread->out,
                             spread->rank, block);
      };
      memory.ask_shared(&spread->b, shared_key({use.tensor}, use_of("spread", spread->dtype)),
                        kernels_.spread_bytes(spread->dtype, spread->out, spread->rank), fill);
      memory.keep(&spread->out_diag, padded(use.out_diag));
    }
    read(spread->site, memory.bytes() - before);
  }
}

void StackPacker::pack_sparse(Use& use, PackedSpread* spread, PackedMemory& memory) {
  const Sparse& term = *use.sparse;
  SparseMatrix matrix;
  matrix.rows = static_cast<int32_t>(term.row_start.size()) - 1;
  matrix.row_start = term.row_start;
  matrix.columns = term.columns;
  matrix.values = unscaled_values(term.values);
  matrix.cols =
      term.columns.empty()
          ? 1
          : static_cast<int32_t>(*std::max_element(term.columns.begin(), term.columns.end()) + 1);
  // Slices of signs have no zero, and columns of 15 bits.
  const bool signs =
      term.values.codec == Codec::kTernary && matrix.cols < 0x7fff &&
      std::find(matrix.values.begin(), matrix.values.end(), 0.0f) == matrix.values.end();
  const float scale = term.scale * codec_scale(term.values);
  SliceCutter cutter(matrix, kernels_.lanes, signs, true);
  std::vector<float> factor;
  if (scale != 1.0f) factor.assign(static_cast<size_t>(matrix.rows), scale);
  cutter.place(&spread->sliced, factor, memory);
}

}  // namespace manyfold
