// See packed_rare.h.
#include "packed_rare.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "packed_stack.h"
#include "reference/unpacked_terms.h"

namespace manyfold {
namespace {

constexpr std::array<int32_t, kRareRows> row_numbers() {
  std::array<int32_t, kRareRows> numbers{};
  for (int32_t i = 0; i < kRareRows; ++i) numbers[static_cast<size_t>(i)] = i;
  return numbers;
}
constexpr std::array<int32_t, kRareRows> kRowNumbers = row_numbers();

int32_t panels(int32_t n, int32_t size) {
  return (n + size - 1) / size;
}

// Scales of a codec by row; 1 for plain values.
std::vector<float> row_scales(const TermTensor& tensor, float scale) {
  std::vector<float> scales(static_cast<size_t>(tensor.shape[0]), scale);
  for (size_t i = 0; i < scales.size(); ++i) {
    if (tensor.codec == Codec::kInt8) scales[i] *= tensor.scales[i];
    if (tensor.codec == Codec::kTernary) scales[i] *= tensor.scales[0];
  }
  return scales;
}

std::vector<uint32_t> whole_vectors(std::vector<uint32_t> index, int32_t lanes) {
  index.resize(static_cast<size_t>(round_up(static_cast<int64_t>(index.size()), lanes)), 0);
  return index;
}

}  // namespace

PackedChain::PackedChain(const BlockDiag& term, int32_t in, int32_t out)
    : in_(in), out_(out), scale_(term.scale) {
  int64_t widest = std::max(in, out);
  for (const BlockStage& from : term.stages) {
    Stage& stage = stages_.emplace_back();
    stage.block_outputs = from.blocks.shape[1];
    stage.block_inputs = from.blocks.shape[2];
    stage.outputs = from.blocks.shape[0] * stage.block_outputs;
    stage.inputs = from.blocks.shape[0] * stage.block_inputs;
    widest = std::max<int64_t>({widest, stage.inputs, stage.outputs});
  }
  stride_ = round_up(widest, kRowPad);
}

void PackedChain::pack(const Kernels& kernels, const BlockDiag& term, PackedMemory& memory) {
  for (size_t s = 0; s < stages_.size(); ++s) {
    Stage* stage = &stages_[s];
    const BlockStage& from = term.stages[s];
    stage->dtype = factor_type(from.blocks);
    memory.keep(&stage->gather, whole_vectors(from.gather, kernels.lanes));
    std::vector<uint32_t> starts;
    for (int32_t o = 0; o < stage->outputs; ++o) {
      starts.push_back(static_cast<uint32_t>(o / stage->block_outputs * stage->block_inputs));
    }
    memory.keep(&stage->starts, whole_vectors(std::move(starts), kernels.lanes));
    memory.ask<std::byte>(&stage->values,
                          kernels.block_bytes(stage->dtype, stage->outputs, stage->block_inputs),
                          [&kernels, stage, &from](std::byte* block) {
                            kernels.pack_blocks(stage->dtype, tensor_values(from.blocks).data(),
                                                stage->outputs, stage->block_inputs, block);
                          });
  }
  memory.keep(&output_, whole_vectors(term.output, kernels.lanes));
}

const float* PackedChain::run(const Kernels& kernels, const RowsOf& x, float* scratch,
                              int64_t* stride) const {
  float* from = scratch;
  float* to = scratch + kRareRows * stride_;
  for (size_t s = 0; s < stages_.size(); ++s) {
    const Stage& stage = stages_[s];
    const int64_t padded = round_up(stage.inputs, kernels.lanes);
    // The first stage reads rows that stand anywhere, the others those of the stage before.
    if (s == 0 || stage.gather != nullptr) {
      for (int32_t m = 0; m < x.count; ++m) {
        const float* row = s == 0 ? x.row(m) : from + m * stride_;
        if (stage.gather != nullptr) {
          kernels.gather(row, stage.gather, padded, to + m * stride_);
        } else {
          std::copy_n(row, stage.inputs, to + m * stride_);
        }
      }
      std::swap(from, to);
    }
    kernels.blocks({.dtype = stage.dtype,
                    .values = stage.values,
                    .outputs = stage.outputs,
                    .block_outputs = stage.block_outputs,
                    .inputs = stage.block_inputs,
                    .starts = stage.starts,
                    .x = from,
                    .x_stride = stride_,
                    .count = x.count,
                    .out = to,
                    .out_stride = stride_});
    std::swap(from, to);
  }
  for (int32_t m = 0; m < x.count; ++m) {
    if (output_ != nullptr) {
      kernels.gather(from + m * stride_, output_, round_up(out_, kernels.lanes), to + m * stride_);
    }
    float* row = (output_ != nullptr ? to : from) + m * stride_;
    std::fill(row + out_, row + round_up(out_, kRowPad), 0.0f);
  }
  *stride = stride_;
  return output_ != nullptr ? to : from;
}

void PackedChain::replace(const Kernels& kernels, const RowsOf& x, float* scratch) const {
  int64_t stride = 0;
  const float* result = run(kernels, x, scratch, &stride);
  for (int32_t m = 0; m < x.count; ++m) std::copy_n(result + m * stride, out_, x.row(m));
}

PackedBottleneck::PackedBottleneck(const Bottleneck& term)
    : placement_(term.placement),
      activation_(term.activation),
      normed_(term.norm.has_value()),
      hidden_(term.down.shape[1]),
      middle_(term.down.shape[0]),
      down_type_(factor_type(term.down)),
      up_type_(factor_type(term.up)) {
  if (term.norm) eps_ = term.norm->eps;
}

void PackedBottleneck::pack(const Kernels& kernels, const Bottleneck& term, PackedMemory& memory) {
  memory.ask<std::byte>(&down_, kernels.reduce_bytes(down_type_, middle_, hidden_),
                        [this, &kernels, &term](std::byte* block) {
                          kernels.pack_reduce(down_type_, unscaled_values(term.down).data(),
                                              middle_, hidden_, block);
                        });
  memory.ask<std::byte>(&up_, kernels.spread_bytes(up_type_, hidden_, middle_),
                        [this, &kernels, &term](std::byte* block) {
                          kernels.pack_spread(up_type_, unscaled_values(term.up).data(), hidden_,
                                              middle_, block);
                        });
  memory.keep(&down_factor_, padded(row_scales(term.down, 1.0f)));
  memory.keep(&down_bias_, padded(term.down_bias));
  memory.keep(&up_factor_, padded(row_scales(term.up, term.scale)));
  std::vector<float> up_bias = term.up_bias;
  for (float& v : up_bias) v *= term.scale;
  memory.keep(&up_bias_, padded(std::move(up_bias)));
  if (!term.norm) return;
  memory.keep(&norm_weight_, padded(term.norm->weight));
  memory.keep(&norm_bias_, padded(term.norm->bias));
}

int64_t PackedBottleneck::scratch_floats() const {
  const int64_t rows = (normed_ ? 1 : 0) + (placement_ == BottleneckPlacement::kSum ? 1 : 0);
  return kRareRows * (round_up(middle_, kRowPad) + rows * round_up(hidden_, kRowPad));
}

// What the bottleneck reads; sum [kRareRows, padded hidden] is used where no buffer has it.
RowsOf PackedBottleneck::read(const Kernels& kernels, const RowsOf& t, const RowsOf& input,
                              const RowsOf& residual, float* sum) const {
  switch (placement_) {
    case BottleneckPlacement::kSequential:
      return t;
    case BottleneckPlacement::kParallel:
      return input;
    case BottleneckPlacement::kResidual:
      return residual;
    case BottleneckPlacement::kSum:
      break;
  }
  const int64_t stride = round_up(hidden_, kRowPad), padded = round_up(hidden_, kernels.lanes);
  const RowsOf result{sum, stride, kRowNumbers.data(), t.count};
  for (int32_t m = 0; m < t.count; ++m) {
    std::copy_n(t.row(m), padded, result.row(m));
    std::fill(result.row(m) + padded, result.row(m) + stride, 0.0f);
    kernels.add(residual.row(m), padded, result.row(m));
  }
  return result;
}

void PackedBottleneck::run(const Kernels& kernels, const RowsOf& t, const RowsOf& input,
                           const RowsOf& residual, float* scratch) const {
  const int64_t v_stride = round_up(middle_, kRowPad), n_stride = round_up(hidden_, kRowPad);
  float* const sum = scratch + kRareRows * (v_stride + (normed_ ? n_stride : 0));
  RowsOf from = read(kernels, t, input, residual, sum);
  if (normed_) {
    const RowsOf normed{scratch + kRareRows * v_stride, n_stride, kRowNumbers.data(), from.count};
    for (int32_t m = 0; m < from.count; ++m) {
      kernels.layer_norm(from.row(m), norm_weight_, norm_bias_, hidden_, eps_, normed.row(m));
      std::fill(normed.row(m) + round_up(hidden_, kernels.lanes), normed.row(m) + n_stride, 0.0f);
    }
    from = normed;
  }
  kernels.reduce({.dtype = down_type_,
                  .a = down_,
                  .ranks = middle_,
                  .cols = hidden_,
                  .vector0 = 0,
                  .vector1 = panels(middle_, kernels.lanes),
                  .x = from.base,
                  .x_stride = from.stride,
                  .rows = from.ids,
                  .count = from.count,
                  .factor = down_factor_,
                  .v = scratch,
                  .v_stride = v_stride});
  for (int32_t m = 0; m < t.count; ++m) {
    kernels.activate_bottleneck(activation_, down_bias_, round_up(middle_, kernels.lanes),
                                scratch + m * v_stride);
  }
  kernels.spread({.dtype = up_type_,
                  .b = up_,
                  .rank = middle_,
                  .panel0 = 0,
                  .panel1 = panels(hidden_, kernels.spread_rows()),
                  .v = scratch,
                  .v_stride = v_stride,
                  .rows = t.ids,
                  .count = t.count,
                  .out_diag = up_factor_,
                  .y = t.base,
                  .y_stride = t.stride});
  if (up_bias_ == nullptr) return;
  for (int32_t m = 0; m < t.count; ++m) {
    kernels.add(up_bias_, round_up(hidden_, kernels.lanes), t.row(m));
  }
}

PackedHeadRows::PackedHeadRows(const Override& term)
    : count_(term.values.shape[0]), cols_(term.values.shape[1]), dtype_(factor_type(term.values)) {}

void PackedHeadRows::pack(const Kernels& kernels, const Override& term, PackedMemory& memory) {
  memory.keep(&ids_, term.rows);
  memory.keep(&factor_, padded(row_scales(term.values, 1.0f)));
  memory.ask<std::byte>(&values_, kernels.reduce_bytes(dtype_, count_, cols_),
                        [this, &kernels, &term](std::byte* block) {
                          kernels.pack_reduce(dtype_, unscaled_values(term.values).data(), count_,
                                              cols_, block);
                        });
}

void PackedHeadRows::run(const Kernels& kernels, const RowsOf& u, const RowsOf& y, int32_t out0,
                         int32_t out1) const {
  const uint32_t* end = ids_ + count_;
  const uint32_t* first = std::lower_bound(ids_, end, static_cast<uint32_t>(out0));
  const auto begin = static_cast<int32_t>(first - ids_);
  const auto stop =
      static_cast<int32_t>(std::lower_bound(first, end, static_cast<uint32_t>(out1)) - ids_);
  float products[kRareRows * kRowPad];
  // Blocks of whole vectors, which may begin before the range: those products are dropped.
  for (int32_t block = begin / kRowPad * kRowPad; block < stop; block += kRowPad) {
    const int32_t last = std::min(block + kRowPad, stop), at = std::max(block, begin);
    for (int32_t row0 = 0; row0 < u.count; row0 += kRareRows) {
      const int32_t rows = std::min(kRareRows, u.count - row0);
      const int32_t vector0 = block / kernels.lanes;
      kernels.reduce({.dtype = dtype_,
                      .a = values_,
                      .ranks = count_,
                      .cols = cols_,
                      .vector0 = vector0,
                      .vector1 = panels(last, kernels.lanes),
                      .x = u.base,
                      .x_stride = u.stride,
                      .rows = u.ids + row0,
                      .count = rows,
                      .factor = factor_,
                      .v = products - block,
                      .v_stride = kRowPad});
      for (int32_t m = 0; m < rows; ++m) {
        for (int32_t i = at; i < last; ++i) {
          y.row(row0 + m)[ids_[i]] = products[m * kRowPad + i - block];
        }
      }
    }
  }
}

PackedLookup::PackedLookup(const LowRank& term)
    : rank_(term.a.shape[0]),
      out_(term.b.shape[0]),
      halves_(term.mid_matrix.shape.empty() && factor_type(term.a) == FactorType::kBf16),
      b_type_(factor_type(term.b)) {}

void PackedLookup::pack(const Kernels& kernels, const LowRank& term, PackedMemory& memory) {
  const auto rank = static_cast<size_t>(rank_), in = static_cast<size_t>(term.a.shape[1]);
  memory.ask<std::byte>(&a_, in * rank * (halves_ ? 2 : 4),
                        [this, &term, rank, in](std::byte* block) {
                          std::vector<float> a = tensor_values(term.a);
                          if (!term.mid_matrix.shape.empty())
                            a = folded_factor(term.mid_matrix, std::move(a), in);
                          for (size_t r = 0; r < rank; ++r) {
                            for (size_t i = 0; i < in; ++i) {
                              const float value = a[r * in + i];
                              const uint16_t half = f32_to_bf16(value);
                              if (halves_) {
                                std::memcpy(block + 2 * (i * rank + r), &half, 2);
                              } else {
                                std::memcpy(block + 4 * (i * rank + r), &value, 4);
                              }
                            }
                          }
                        });
  std::vector<float> factor(rank, term.scale);
  for (size_t r = 0; r < term.mid.size(); ++r) factor[r] *= term.mid[r];
  memory.keep(&factor_, padded(std::move(factor)));
  std::vector<float> out_diag = row_scales(term.b, 1.0f);
  for (size_t i = 0; i < term.out_diag.size(); ++i) out_diag[i] *= term.out_diag[i];
  memory.keep(&out_diag_, padded(std::move(out_diag)));
  memory.ask<std::byte>(
      &b_, kernels.spread_bytes(b_type_, out_, rank_), [this, &kernels, &term](std::byte* block) {
        kernels.pack_spread(b_type_, unscaled_values(term.b).data(), out_, rank_, block);
      });
}

void PackedLookup::run(const Kernels& kernels, int32_t token, const float* gate, int32_t gate_width,
                       float* scratch, float* y) const {
  const int64_t first = int64_t{token} * rank_;
  for (int32_t r = 0; r < rank_; ++r) {
    if (halves_) {
      scratch[r] = bf16_to_f32(reinterpret_cast<const uint16_t*>(a_)[first + r]);
    } else {
      scratch[r] = reinterpret_cast<const float*>(a_)[first + r];
    }
    scratch[r] *= factor_[r];
    if (gate != nullptr && r < gate_width) scratch[r] *= gate[r];
  }
  kernels.spread({.dtype = b_type_,
                  .b = b_,
                  .rank = rank_,
                  .panel0 = 0,
                  .panel1 = panels(out_, kernels.spread_rows()),
                  .v = scratch,
                  .v_stride = round_up(rank_, kRowPad),
                  .rows = kRowNumbers.data(),
                  .count = 1,
                  .out_diag = out_diag_,
                  .y = y,
                  .y_stride = 0});
}

}  // namespace manyfold
