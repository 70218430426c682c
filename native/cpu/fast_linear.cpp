// See fast_linear.h.
//
// A run has two parallel parts. The first prepares what outputs need of the inputs: M (h ⊙ x),
// inputs rounded for the products, v = A x of all adapters, and the inner values of additive
// chains. The second takes the outputs in chunks: base product, then the terms of the same outputs
// while they are in the cache. Where a row's base product goes through Q, which mixes outputs, the
// second part is cut in two, and Q stands between. No output is touched by two threads, and no sum
// depends on how chunks are cut.
#include "fast_linear.h"

#include <algorithm>

#include "../core/error.h"

namespace manyfold {
namespace {

// Rows that one item of the first part takes.
constexpr int32_t kInputRows = kRareRows;
constexpr int32_t kReduceRows = 48;
// Chunks of outputs for each thread: enough that a thread which lost its core for a while does not
// hold the others up.
constexpr int32_t kChunksPerThread = 4;

int32_t blocks(int32_t n, int32_t size) {
  return (n + size - 1) / size;
}

}  // namespace

FastLinear::FastLinear(const Kernels& kernels, ThreadPool& pool, const FastWeights& weights,
                       Dtype dtype, int32_t max_rows, int32_t widest_input)
    : kernels_(kernels),
      pool_(pool),
      weights_(weights),
      rounds_bf16_(kernels.rounds_inputs && dtype == Dtype::kBf16),
      max_rows_(max_rows),
      input_stride_(row_stride(widest_input)),
      unit_(std::max({kernels.panel_rows(dtype), kernels.int8.panel_rows, kernels.q4.panel_rows,
                      kernels.spread_rows(), kSliceWindow})),
      shared_forms_(is_q4(weights.format()) ? 2 : 1),
      threads_(static_cast<size_t>(pool.threads())) {
  members_.reserve(kMaxTargets);
  const bool plain = weights.format() == WeightFormat::kPlain;
  if (rounds_bf16_ || !plain) {
    rounded_ = HugeBuffer(shared_forms_ * static_cast<size_t>(max_rows_ * input_stride_) * 2,
                          "rounded inputs");
  }
  if (plain) return;
  input_scales_.resize((shared_forms_ + kMaxTargets) * static_cast<size_t>(max_rows_));
  for (ThreadState& thread : threads_) thread.rotated.resize(static_cast<size_t>(input_stride_));
}

void FastLinear::reserve(const TermLimits& limits) {
  const auto rows = static_cast<size_t>(max_rows_);
  const int64_t stride = round_up(limits.stack_width, kRowPad);
  if (stride > reduced_stride_) {
    reduced_ = HugeBuffer(rows * static_cast<size_t>(stride) * 4, "adapters' inner values");
    reduced_stride_ = stride;
  }
  if (limits.chain_floats > chain_floats_) {
    chain_results_ =
        HugeBuffer(rows * static_cast<size_t>(limits.chain_floats) * 4, "adapters' chains");
    chain_floats_ = limits.chain_floats;
  }
  for (ThreadState& thread : threads_) {
    thread.scratch.resize(static_cast<size_t>(limits.scratch));
  }
  if (limits.scales_inputs && !scales_) {
    const size_t copies = kMaxTargets * rows * static_cast<size_t>(input_stride_);
    scaled_ = HugeBuffer(copies * 4, "scaled inputs");
    if (rounded_.size() > 0) {
      rounded_ =
          HugeBuffer((copies + shared_forms_ * rows * static_cast<size_t>(input_stride_)) * 2,
                     "rounded inputs");
    }
    scales_ = true;
  }
}

void FastLinear::run(const LinearJob& job, Counters& counters) {
  plan_members(job);
  plan_reduces(job);
  plan_chains(job);
  const bool copies = std::any_of(members_.begin(), members_.end(), [&](const Member& m) {
    return m.scaled || (m.form != InputForm::kFloat && !job.terms_only);
  });
  const int32_t input_items = copies ? blocks(job.rows, kInputRows) : 0;
  const int32_t chain_items = input_items + static_cast<int32_t>(reduces_.size());
  const int32_t items = chain_items + static_cast<int32_t>(chains_.size());
  pool_.run_items(items, [&](int32_t item, int32_t thread) {
    ThreadState& state = threads_[static_cast<size_t>(thread)];
    if (item < input_items) {
      const int32_t row0 = item * kInputRows;
      prepare_inputs(job, row0, std::min(kInputRows, job.rows - row0), state);
    } else if (item < chain_items) {
      reduce(job, reduces_[static_cast<size_t>(item - input_items)]);
    } else {
      run_chain(job, chains_[static_cast<size_t>(item - chain_items)], state.scratch.data());
    }
  });
  if (mixes_.empty()) {
    run_outputs_in_chunks(job, Part::kAll);
  } else {
    run_outputs_in_chunks(job, Part::kBase);
    mix_outputs(job);
    run_outputs_in_chunks(job, Part::kTerms);
  }
  count(job, counters);
}

void FastLinear::run_outputs_in_chunks(const LinearJob& job, Part part) {
  const Member& last = members_.back();
  const int32_t units = last.first_unit + blocks(last.matrix->rows, unit_);
  const int32_t threads = pool_.threads();
  const int32_t chunks = std::min(units, threads == 1 ? 1 : threads * kChunksPerThread);
  pool_.run_items(chunks, [&](int32_t chunk, int32_t thread) {
    run_chunk(job, part, static_cast<int32_t>(int64_t{units} * chunk / chunks),
              static_cast<int32_t>(int64_t{units} * (chunk + 1) / chunks),
              threads_[static_cast<size_t>(thread)].tiles);
  });
}

void FastLinear::plan_members(const LinearJob& job) {
  MF_ASSERT(!job.targets.empty() && job.targets.size() <= kMaxTargets && job.rows <= max_rows_);
  members_.clear();
  const size_t copy = static_cast<size_t>(max_rows_) * static_cast<size_t>(input_stride_);
  int32_t unit = 0;
  for (size_t i = 0; i < job.targets.size(); ++i) {
    const LinearTarget& target = job.targets[i];
    Member member{};
    member.site = target.site;
    member.matrix = &weights_.matrix(target.site);
    member.bias = weights_.bias(target.site);
    member.y = target.y;
    member.y_stride = target.y_stride;
    member.first_unit = unit;
    unit += blocks(member.matrix->rows, unit_);
    for (const RowGroup& group : job.groups->groups()) {
      member.scaled |= group.set->changes_input(target.site);
    }
    member.u = member.scaled ? scaled_.as<float>() + i * copy : job.x;
    member.input = member.u;
    member.input_stride = member.scaled ? input_stride_ : job.x_stride;
    member.form = input_form(*member.matrix, rounds_bf16_);
    if (member.form != InputForm::kFloat) place_input(member, i);
    members_.push_back(member);
  }
}

// Where the rounded inputs of a member go: x in one form is rounded once for all members.
void FastLinear::place_input(Member& member, size_t target) {
  const size_t of_x = shared_forms_ > 1 && member.form == InputForm::kInt8 ? 1 : 0;
  const size_t place = member.scaled ? shared_forms_ + target : of_x;
  const auto rows = static_cast<size_t>(max_rows_);
  member.input = rounded_.data() + place * rows * static_cast<size_t>(input_stride_) * 2;
  member.input_stride = member.form == InputForm::kQ4
                            ? input_row_bytes(kernels_, member.form, input_stride_)
                            : input_stride_;
  if (member.form == InputForm::kInt8) member.input_scale = input_scales_.data() + place * rows;
}

void FastLinear::plan_reduces(const LinearJob& job) {
  reduces_.clear();
  group_v_.clear();
  float* v = reduced_.as<float>();
  for (const RowGroup& group : job.groups->groups()) {
    const PackedStack* stack = group.set->stack(job.targets.front().site);
    if (stack == nullptr) continue;
    group_v_.emplace_back(&group, v);
    for (const StackPart& part : stack->parts) add_reduce(job, group, *stack, part, v);
    v += group.count * round_up(stack->width, kRowPad);
  }
}

// A group is cut by rows, and by ranks too where there would be fewer items than threads.
void FastLinear::add_reduce(const LinearJob& job, const RowGroup& group, const PackedStack& stack,
                            const StackPart& part, float* v) {
  const int32_t vectors = blocks(part.ranks, kernels_.lanes);
  const int32_t row_blocks = blocks(group.count, kReduceRows);
  const auto groups = static_cast<int32_t>(job.groups->groups().size());
  const int32_t wanted = blocks(pool_.threads() * 2, groups * row_blocks);
  const bool whole = pool_.threads() == 1 || part.kind == StackPart::Kind::kGather;
  const int32_t pieces = whole ? 1 : std::clamp(wanted, 1, blocks(vectors, 2));
  for (int32_t block = 0; block < row_blocks; ++block) {
    const int32_t row0 = group.count * block / row_blocks;
    const int32_t row1 = group.count * (block + 1) / row_blocks;
    for (int32_t piece = 0; piece < pieces; ++piece) {
      reduces_.push_back({&stack, &part, &group, v, round_up(stack.width, kRowPad), row0,
                          row1 - row0, vectors * piece / pieces, vectors * (piece + 1) / pieces});
    }
  }
}

void FastLinear::plan_chains(const LinearJob& job) {
  chains_.clear();
  mixes_.clear();
  float* result = chain_results_.as<float>();
  for (const RowGroup& group : job.groups->groups()) {
    for (const Member& member : members_) {
      const PackedSite* site = group.set->packed(member.site);
      if (site == nullptr) continue;
      if (site->post) {
        add_chain(mixes_, {&*site->post, &group, &member, nullptr, 0, 0, 0});
      }
      for (const PackedChain& chain : site->additive) {
        const int64_t stride = round_up(chain.out(), kRowPad);
        add_chain(chains_, {&chain, &group, &member, result, stride, 0, 0});
        result += group.count * stride;
      }
    }
  }
}

// Cuts a group's rows into items.
void FastLinear::add_chain(std::vector<ChainItem>& items, ChainItem item) {
  for (item.row0 = 0; item.row0 < item.group->count; item.row0 += kRareRows) {
    item.count = std::min(kRareRows, item.group->count - item.row0);
    items.push_back(item);
  }
}

// An additive chain of x, or Q of a member's base products.
void FastLinear::run_chain(const LinearJob& job, const ChainItem& item, float* scratch) {
  const int32_t* rows = job.groups->rows(*item.group).data() + item.row0;
  if (item.result == nullptr) {
    item.chain->replace(kernels_, {item.member->y, item.member->y_stride, rows, item.count},
                        scratch);
    return;
  }
  int64_t stride = 0;
  const RowsOf x{const_cast<float*>(job.x), job.x_stride, rows, item.count};
  const float* result = item.chain->run(kernels_, x, scratch, &stride);
  for (int32_t m = 0; m < item.count; ++m) {
    std::copy_n(result + m * stride, item.stride, item.result + (item.row0 + m) * item.stride);
  }
}

// M (h ⊙ x) in the member's copy of rows row0 .. row0 + count - 1.
void FastLinear::change_inputs(const LinearJob& job, const Member& member, int32_t row0,
                               int32_t count, float* scratch) {
  const int64_t padded = round_up(member.matrix->cols, kRowPad);
  float* u = const_cast<float*>(member.u);
  for (int32_t row = row0; row < row0 + count; ++row) {
    std::copy_n(job.x + row * job.x_stride, padded, u + row * input_stride_);
  }
  for (const RowGroup& group : job.groups->groups()) {
    if (!group.set->changes_input(member.site)) continue;
    const std::span<const int32_t> rows = job.groups->rows(group);
    const auto first = std::lower_bound(rows.begin(), rows.end(), row0);
    const auto last = std::lower_bound(first, rows.end(), row0 + count);
    if (first == last) continue;
    const RowsOf of_group{u, input_stride_, &*first, static_cast<int32_t>(last - first)};
    const Diag* diag = group.set->diag(member.site);
    if (diag != nullptr && !diag->h.empty()) {
      for (int32_t m = 0; m < of_group.count; ++m) {
        kernels_.multiply(diag->h.data(), padded, of_group.row(m));
      }
    }
    const PackedSite* site = group.set->packed(member.site);
    if (site != nullptr && site->pre) site->pre->replace(kernels_, of_group, scratch);
  }
}

// Copies of rows row0 .. row0 + count - 1 of the input: changed where a member's rows want it,
// rounded where the kernels want it.
void FastLinear::prepare_inputs(const LinearJob& job, int32_t row0, int32_t count,
                                ThreadState& thread) {
  for (const Member& member : members_) {
    if (member.scaled) change_inputs(job, member, row0, count, thread.scratch.data());
  }
  const void* done = nullptr;  // a rounded copy of x itself
  for (const Member& member : members_) {
    if (member.form == InputForm::kFloat || member.input == done) continue;
    if (!member.scaled) done = member.input;
    round_inputs(member, member.u, member.scaled ? input_stride_ : job.x_stride, row0, count,
                 thread);
  }
}

void FastLinear::round_inputs(const Member& member, const float* from, int64_t stride, int32_t row0,
                              int32_t count, ThreadState& thread) {
  const int64_t row_bytes = input_row_bytes(kernels_, member.form, input_stride_);
  auto* to = static_cast<std::byte*>(const_cast<void*>(member.input));
  for (int32_t row = row0; row < row0 + count; ++row) {
    const float scale = round_input(kernels_, member.form, from + row * stride, member.matrix->cols,
                                    thread.rotated.data(), to + row * row_bytes);
    if (member.form == InputForm::kInt8) member.input_scale[row] = scale;
  }
}

void FastLinear::reduce(const LinearJob& job, const ReduceItem& item) {
  const StackPart& part = *item.part;
  const std::span<const int32_t> rows =
      job.groups->rows(*item.group)
          .subspan(static_cast<size_t>(item.row0), static_cast<size_t>(item.count));
  float* v = item.v + item.row0 * item.v_stride + part.first;
  const float* factor = item.stack->factor.data() + part.first;
  switch (part.kind) {
    case StackPart::Kind::kFactor:
      kernels_.reduce({.dtype = part.dtype,
                       .a = part.a,
                       .ranks = part.ranks,
                       .cols = item.stack->cols,
                       .vector0 = item.vector0,
                       .vector1 = item.vector1,
                       .x = job.x,
                       .x_stride = job.x_stride,
                       .rows = rows.data(),
                       .count = item.count,
                       .factor = factor,
                       .v = v,
                       .v_stride = item.v_stride});
      break;
    case StackPart::Kind::kSliced: {
      SlicedArgs args = part.sliced.args();
      args.factor = factor;
      args.slice0 = item.vector0;
      args.slice1 = item.vector1;
      args.x = job.x;
      args.x_stride = job.x_stride;
      args.x_rows = rows.data();
      args.count = item.count;
      args.out = v;
      args.out_stride = item.v_stride;
      kernels_.sliced(args);
      break;
    }
    case StackPart::Kind::kGather: {
      const int64_t padded = round_up(part.ranks, kernels_.lanes);
      for (int32_t m = 0; m < item.count; ++m) {
        float* to = v + m * item.v_stride;
        const int32_t row = rows[static_cast<size_t>(m)];
        kernels_.gather(job.x + row * job.x_stride, part.index, padded, to);
        if (part.scaled) kernels_.multiply(factor, padded, to);
      }
      return;  // no gate acts on these
    }
  }
  multiply_gates(job, item, rows);
}

void FastLinear::multiply_gates(const LinearJob& job, const ReduceItem& item,
                                std::span<const int32_t> rows) {
  const int32_t rank0 = item.part->first + item.vector0 * kernels_.lanes;
  const int32_t rank1 =
      item.part->first + std::min(item.part->ranks, item.vector1 * kernels_.lanes);
  for (size_t i = 0; i < rows.size(); ++i) {
    const float* gate = job.gates.of(rows[i]);
    if (gate == nullptr) continue;
    float* v = item.v + (item.row0 + static_cast<int64_t>(i)) * item.v_stride;
    for (int32_t r = rank0; r < rank1; ++r) {
      const int32_t index = item.stack->gate_index[static_cast<size_t>(r)];
      if (index >= 0 && index < job.gates.width) v[r] *= gate[index];
    }
  }
}

// Units unit0 .. unit1 - 1 of all members' outputs, one member after the other.
void FastLinear::run_chunk(const LinearJob& job, Part part, int32_t unit0, int32_t unit1,
                           TileCounts& counts) {
  for (const Member& member : members_) {
    const int32_t units = blocks(member.matrix->rows, unit_);
    const int32_t begin = std::max(unit0 - member.first_unit, 0);
    const int32_t end = std::min(unit1 - member.first_unit, units);
    if (begin >= end) continue;
    const int32_t out0 = begin * unit_, out1 = std::min(end * unit_, member.matrix->rows);
    if (part != Part::kTerms) run_base(job, member, out0, out1, counts);
    if (part == Part::kBase) continue;
    spread_outputs(job, member, out0, out1);
    add_chains(job, member, out0, out1);
    shift_outputs(job, member, out0, out1);
  }
}

// Base product, overridden outputs and g.
void FastLinear::run_base(const LinearJob& job, const Member& member, int32_t out0, int32_t out1,
                          TileCounts& counts) {
  const PackedMatrix& matrix = *member.matrix;
  const int32_t panel0 = out0 / matrix.panel_rows, panel1 = blocks(out1, matrix.panel_rows);
  if (!job.terms_only) {
    multiply(kernels_, {matrix, member.form, member.input, member.input_stride, member.input_scale,
                        member.y, member.y_stride, job.rows, panel0, panel1, &counts});
  }
  scale_outputs(job, member, out0, out1);
}

// Q of every row that has one.
void FastLinear::mix_outputs(const LinearJob& job) {
  pool_.run_items(static_cast<int32_t>(mixes_.size()), [&](int32_t item, int32_t thread) {
    run_chain(job, mixes_[static_cast<size_t>(item)],
              threads_[static_cast<size_t>(thread)].scratch.data());
  });
}

// Overridden outputs, then g.
void FastLinear::scale_outputs(const LinearJob& job, const Member& member, int32_t out0,
                               int32_t out1) {
  const int64_t u_stride = member.scaled ? input_stride_ : job.x_stride;
  for (const RowGroup& group : job.groups->groups()) {
    const std::span<const int32_t> rows = job.groups->rows(group);
    const PackedSite* site = group.set->packed(member.site);
    if (site != nullptr && site->head_rows) {
      site->head_rows->run(kernels_,
                           {const_cast<float*>(member.u), u_stride, rows.data(), group.count},
                           {member.y, member.y_stride, rows.data(), group.count}, out0, out1);
    }
    const Diag* diag = group.set->diag(member.site);
    if (diag == nullptr || diag->g.empty()) continue;
    for (const int32_t row : rows) {
      kernels_.multiply(diag->g.data() + out0, round_up(out1 - out0, kernels_.lanes),
                        member.y + row * member.y_stride + out0);
    }
  }
}

void FastLinear::spread_outputs(const LinearJob& job, const Member& member, int32_t out0,
                                int32_t out1) {
  for (size_t i = 0; i < group_v_.size(); ++i) {
    const auto& [group, v] = group_v_[i];
    const PackedStack& stack = *group->set->stack(member.site);
    const int64_t v_stride = round_up(stack.width, kRowPad);
    const FastTermSet* next = i + 1 < group_v_.size() ? group_v_[i + 1].first->set : nullptr;
    for (const PackedSpread& of_term : stack.spreads) {
      if (!(of_term.site == member.site)) continue;
      const Outputs outputs{out0, out1, next};
      spread(job, member, *group, of_term, v + of_term.first, v_stride, outputs);
    }
  }
}

// The panels of the same outputs in the first factor of the set whose turn is next.
std::span<const std::byte> FastLinear::read_next(const Member& member,
                                                 const Outputs& outputs) const {
  if (outputs.next == nullptr) return {};
  const PackedStack& stack = *outputs.next->stack(member.site);
  for (const PackedSpread& spread : stack.spreads) {
    if (!(spread.site == member.site) || spread.kind != PackedSpread::Kind::kFactor) continue;
    const size_t panel = kernels_.spread_bytes(spread.dtype, kernels_.spread_rows(), spread.rank);
    const int32_t first = outputs.out0 / kernels_.spread_rows();
    const int32_t last = blocks(outputs.out1, kernels_.spread_rows());
    return {spread.b + static_cast<size_t>(first) * panel,
            static_cast<size_t>(last - first) * panel};
  }
  return {};
}

// What one term adds to outputs out0 .. out1 - 1 of its group's rows.
void FastLinear::spread(const LinearJob& job, const Member& member, const RowGroup& group,
                        const PackedSpread& spread, const float* v, int64_t v_stride,
                        const Outputs& outputs) {
  const std::span<const int32_t> rows = job.groups->rows(group);
  const int32_t out0 = outputs.out0, out1 = outputs.out1;
  if (spread.kind == PackedSpread::Kind::kFactor) {
    const std::span<const std::byte> next = read_next(member, outputs);
    kernels_.spread({.dtype = spread.dtype,
                     .b = spread.b,
                     .rank = spread.rank,
                     .panel0 = out0 / kernels_.spread_rows(),
                     .panel1 = blocks(out1, kernels_.spread_rows()),
                     .v = v,
                     .v_stride = v_stride,
                     .rows = rows.data(),
                     .count = group.count,
                     .out_diag = spread.out_diag,
                     .y = member.y,
                     .y_stride = member.y_stride,
                     .next = next.data(),
                     .next_bytes = static_cast<int64_t>(next.size())});
    return;
  }
  if (spread.kind == PackedSpread::Kind::kScatter) {
    const uint32_t* end = spread.index + spread.rank;
    const uint32_t* first = std::lower_bound(spread.index, end, static_cast<uint32_t>(out0));
    const uint32_t* last = std::lower_bound(first, end, static_cast<uint32_t>(out1));
    for (int32_t m = 0; m < group.count; ++m) {
      float* y = member.y + rows[static_cast<size_t>(m)] * member.y_stride;
      const float* of_row = v + m * v_stride;
      for (const uint32_t* i = first; i < last; ++i) y[*i] += of_row[i - spread.index];
    }
    return;
  }
  const bool of_input = spread.kind == PackedSpread::Kind::kSparse;
  SlicedArgs args = spread.sliced.args();
  args.slice0 = out0 / kernels_.lanes;
  args.slice1 = std::min(args.slice1, blocks(out1, kSliceWindow) * (kSliceWindow / kernels_.lanes));
  args.x = of_input ? job.x : v;
  args.x_stride = of_input ? job.x_stride : v_stride;
  args.x_rows = of_input ? rows.data() : nullptr;
  args.count = group.count;
  args.out = member.y;
  args.out_stride = member.y_stride;
  args.out_rows = rows.data();
  kernels_.sliced(args);
}

// Additive chains.
void FastLinear::add_chains(const LinearJob& job, const Member& member, int32_t out0,
                            int32_t out1) {
  const int64_t padded = round_up(out1 - out0, kernels_.lanes);
  for (const ChainItem& item : chains_) {
    if (item.member != &member) continue;
    const std::span<const int32_t> rows = job.groups->rows(*item.group);
    for (int32_t m = item.row0; m < item.row0 + item.count; ++m) {
      kernels_.add_scaled(item.result + m * item.stride + out0, item.chain->scale(), padded,
                          member.y + rows[static_cast<size_t>(m)] * member.y_stride + out0);
    }
  }
}

// Bias, then c.
void FastLinear::shift_outputs(const LinearJob& job, const Member& member, int32_t out0,
                               int32_t out1) {
  const int64_t padded = round_up(out1 - out0, kernels_.lanes);
  if (member.bias != nullptr) {
    for (int32_t row = 0; row < job.rows; ++row) {
      kernels_.add(member.bias + out0, padded, member.y + row * member.y_stride + out0);
    }
  }
  for (const RowGroup& group : job.groups->groups()) {
    const Diag* diag = group.set->diag(member.site);
    if (diag == nullptr || diag->c.empty()) continue;
    for (const int32_t row : job.groups->rows(group)) {
      kernels_.add(diag->c.data() + out0, padded, member.y + row * member.y_stride + out0);
    }
  }
}

void FastLinear::count(const LinearJob& job, Counters& counters) {
  for (const Member& member : members_) {
    ++counters.base_linear_reads;
    counters.base_bytes_read += static_cast<int64_t>(member.matrix->bytes());
    for (const RowGroup& group : job.groups->groups()) {
      const size_t bytes = group.set->site_bytes(member.site);
      if (bytes == 0) continue;
      ++counters.term_reads;
      counters.term_bytes_read += static_cast<int64_t>(bytes);
    }
  }
  for (ThreadState& thread : threads_) {
    counters.single_row_tiles += thread.tiles.single_row;
    counters.multi_row_tiles += thread.tiles.multi_row;
    thread.tiles = {};
  }
}

}  // namespace manyfold
