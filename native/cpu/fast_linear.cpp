// See fast_linear.h.
//
// A run has two parallel parts. The first prepares what outputs need of the inputs: M (h ⊙ x),
// inputs rounded to bf16, v = A x of all adapters, and the inner values of additive chains. The
// second takes the outputs in chunks: base product, then the terms of the same outputs while they
// are in the cache. Where a row's base product goes through Q, which mixes outputs, the second part
// is cut in two, and Q stands between. No output is touched by two threads, and no sum depends on
// how chunks are cut.
#include "fast_linear.h"

#include <algorithm>

#include "../core/error.h"
#include "reference/term_ops.h"

namespace manyfold {
namespace {

// Rows that one item of the first part takes.
constexpr int32_t kInputRows = 16;
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
      rounds_(kernels.rounds_inputs && dtype == Dtype::kBf16),
      max_rows_(max_rows),
      input_stride_(row_stride(widest_input)),
      unit_(std::max(kernels.panel_rows(dtype), kernels.spread_rows())),
      threads_(static_cast<size_t>(pool.threads())) {
  members_.reserve(kMaxTargets);
  if (rounds_) {
    rounded_ = HugeBuffer(static_cast<size_t>(max_rows_ * input_stride_) * 2, "rounded inputs");
  }
}

void FastLinear::reserve(const TermLimits& limits) {
  const auto rows = static_cast<size_t>(max_rows_);
  const int64_t stride = round_up(limits.stack_ranks, kRowPad);
  if (stride > reduced_stride_) {
    reduced_ = HugeBuffer(rows * static_cast<size_t>(stride) * 4, "adapters' inner products");
    reduced_stride_ = stride;
  }
  if (limits.chain_floats > chain_floats_) {
    inner_ =
        HugeBuffer(rows * static_cast<size_t>(limits.chain_floats) * 4, "adapters' inner values");
    chain_floats_ = limits.chain_floats;
  }
  for (ThreadState& thread : threads_) {
    thread.scratch.resize(static_cast<size_t>(limits.chain_scratch));
  }
  if (limits.scales_inputs && !scales_) {
    const size_t copies = kMaxTargets * rows * static_cast<size_t>(input_stride_);
    scaled_ = HugeBuffer(copies * 4, "scaled inputs");
    if (rounds_) {
      rounded_ =
          HugeBuffer((copies + rows * static_cast<size_t>(input_stride_)) * 2, "rounded inputs");
    }
    scales_ = true;
  }
}

void FastLinear::run(const LinearJob& job, Counters& counters) {
  plan_members(job);
  plan_reduces(job);
  plan_chains(job);
  const bool copies = rounds_ || std::any_of(members_.begin(), members_.end(),
                                             [](const Member& m) { return m.scaled; });
  const int32_t input_items = copies ? blocks(job.rows, kInputRows) : 0;
  const int32_t chain_items = input_items + static_cast<int32_t>(reduces_.size());
  const int32_t items = chain_items + static_cast<int32_t>(chains_.size());
  pool_.run_items(items, [&](int32_t item, int32_t thread) {
    float* scratch = threads_[static_cast<size_t>(thread)].scratch.data();
    if (item < input_items) {
      const int32_t row0 = item * kInputRows;
      prepare_inputs(job, row0, std::min(kInputRows, job.rows - row0), scratch);
    } else if (item < chain_items) {
      reduce(job, reduces_[static_cast<size_t>(item - input_items)]);
    } else {
      run_inner(job, chains_[static_cast<size_t>(item - chain_items)], scratch);
    }
  });
  if (std::any_of(members_.begin(), members_.end(), [](const Member& m) { return m.mixed; })) {
    run_outputs_in_chunks(job, Part::kBase);
    mix_outputs(job);
    run_outputs_in_chunks(job, Part::kTerms);
  } else {
    run_outputs_in_chunks(job, Part::kAll);
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
      const SiteTerms* terms = group.set->rare(target.site);
      member.scaled |= terms != nullptr && terms->changes_input();
      member.mixed |= terms != nullptr && terms->post.has_value();
    }
    member.u = member.scaled ? scaled_.as<float>() + i * copy : job.x;
    member.input = member.u;
    member.input_stride = member.scaled ? input_stride_ : job.x_stride;
    if (rounds_) {
      member.input = rounded_.as<uint16_t>() + (member.scaled ? i + 1 : 0) * copy;
      member.input_stride = input_stride_;
    }
    members_.push_back(member);
  }
}

void FastLinear::plan_reduces(const LinearJob& job) {
  reduces_.clear();
  group_v_.clear();
  float* v = reduced_.as<float>();
  for (const RowGroup& group : job.groups->groups()) {
    const LowRankStack* stack = group.set->stack(job.targets.front().site);
    if (stack == nullptr) continue;
    group_v_.emplace_back(&group, v);
    add_reduce(job, group, *stack, v);
    v += group.count * round_up(stack->ranks, kRowPad);
  }
}

void FastLinear::plan_chains(const LinearJob& job) {
  chains_.clear();
  float* inner = inner_.as<float>();
  for (const RowGroup& group : job.groups->groups()) {
    for (const Member& member : members_) {
      const SiteTerms* terms = group.set->rare(member.site);
      if (terms == nullptr) continue;
      for (const BlockChain& chain : terms->additive) {
        if (chain.inner_width() == 0) continue;
        chains_.push_back({&chain, &group, inner});
        inner += int64_t{group.count} * chain.inner_width();
      }
    }
  }
}

void FastLinear::run_inner(const LinearJob& job, const ChainItem& item, float* scratch) {
  float* inner = item.inner;
  for (const int32_t row : job.groups->rows(*item.group)) {
    item.chain->run_inner(job.x + row * job.x_stride, scratch, inner);
    inner += item.chain->inner_width();
  }
}

// A group is cut by rows, and by ranks too where there would be fewer items than threads.
void FastLinear::add_reduce(const LinearJob& job, const RowGroup& group, const LowRankStack& stack,
                            float* v) {
  const int32_t vectors = blocks(stack.ranks, kernels_.lanes);
  const int32_t row_blocks = blocks(group.count, kReduceRows);
  const auto groups = static_cast<int32_t>(job.groups->groups().size());
  const int32_t wanted = blocks(pool_.threads() * 2, groups * row_blocks);
  const int32_t parts = pool_.threads() == 1 ? 1 : std::clamp(wanted, 1, blocks(vectors, 2));
  for (int32_t block = 0; block < row_blocks; ++block) {
    const int32_t row0 = group.count * block / row_blocks;
    const int32_t row1 = group.count * (block + 1) / row_blocks;
    for (int32_t part = 0; part < parts; ++part) {
      reduces_.push_back({&stack, &group, v, round_up(stack.ranks, kRowPad), row0, row1 - row0,
                          vectors * part / parts, vectors * (part + 1) / parts});
    }
  }
}

// M (h ⊙ x) in the member's copy of rows row0 .. row0 + count - 1.
void FastLinear::change_inputs(const LinearJob& job, const Member& member, int32_t row0,
                               int32_t count, float* scratch) {
  const int32_t cols = member.matrix->cols;
  float* u = const_cast<float*>(member.u);
  for (int32_t row = row0; row < row0 + count; ++row) {
    std::copy_n(job.x + row * job.x_stride, round_up(cols, kRowPad), u + row * input_stride_);
  }
  for (const RowGroup& group : job.groups->groups()) {
    const SiteTerms* terms = group.set->rare(member.site);
    if (terms == nullptr || !terms->changes_input()) continue;
    for (const int32_t row : job.groups->rows(group)) {
      if (row < row0 || row >= row0 + count) continue;
      float* of_row = u + row * input_stride_;
      if (terms->diag && !terms->diag->h.empty()) {
        multiply_row(terms->diag->h.data(), of_row, cols, of_row);
      }
      if (terms->pre) terms->pre->replace(of_row, scratch);
    }
  }
}

// Copies of rows row0 .. row0 + count - 1 of the input: changed where a member's rows want it,
// rounded to bf16 where the kernels want it.
void FastLinear::prepare_inputs(const LinearJob& job, int32_t row0, int32_t count, float* scratch) {
  const int64_t padded = round_up(members_.front().matrix->cols, kRowPad);
  for (const Member& member : members_) {
    if (member.scaled) change_inputs(job, member, row0, count, scratch);
  }
  if (!rounds_) return;
  bool shared_done = false;
  for (const Member& member : members_) {
    if (!member.scaled && shared_done) continue;
    shared_done |= !member.scaled;
    auto* to = static_cast<uint16_t*>(const_cast<void*>(member.input));
    const int64_t from_stride = member.scaled ? input_stride_ : job.x_stride;
    for (int32_t row = row0; row < row0 + count; ++row) {
      kernels_.round_inputs(member.u + row * from_stride, padded, to + row * input_stride_);
    }
  }
}

void FastLinear::reduce(const LinearJob& job, const ReduceItem& item) {
  const LowRankStack& stack = *item.stack;
  const std::span<const int32_t> rows =
      job.groups->rows(*item.group)
          .subspan(static_cast<size_t>(item.row0), static_cast<size_t>(item.count));
  float* v = item.v + item.row0 * item.v_stride;
  kernels_.reduce({.dtype = stack.dtype,
                   .a = stack.a,
                   .ranks = stack.ranks,
                   .cols = stack.cols,
                   .vector0 = item.vector0,
                   .vector1 = item.vector1,
                   .x = job.x,
                   .x_stride = job.x_stride,
                   .rows = rows.data(),
                   .count = item.count,
                   .factor = stack.factor.data(),
                   .v = v,
                   .v_stride = item.v_stride});
  const int32_t rank0 = item.vector0 * kernels_.lanes;
  const int32_t rank1 = std::min(stack.ranks, item.vector1 * kernels_.lanes);
  for (size_t i = 0; i < rows.size(); ++i) {
    const float* gate = job.gates.of(rows[i]);
    if (gate == nullptr) continue;
    float* of_row = v + static_cast<int64_t>(i) * item.v_stride;
    for (int32_t r = rank0; r < rank1; ++r) {
      const int32_t index = stack.gate_index[static_cast<size_t>(r)];
      if (index < job.gates.width) of_row[r] *= gate[index];
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
    add_rare(job, member, out0, out1);
    shift_outputs(job, member, out0, out1);
  }
}

// Base product, overridden outputs and g.
void FastLinear::run_base(const LinearJob& job, const Member& member, int32_t out0, int32_t out1,
                          TileCounts& counts) {
  const PackedMatrix& matrix = *member.matrix;
  kernels_.gemm({.dtype = matrix.dtype,
                 .weights = matrix.panels,
                 .cols = matrix.cols,
                 .panel0 = out0 / matrix.panel_rows,
                 .panel1 = blocks(out1, matrix.panel_rows),
                 .x = member.input,
                 .x_stride = member.input_stride,
                 .y = member.y,
                 .y_stride = member.y_stride,
                 .rows = job.rows,
                 .counts = &counts});
  scale_outputs(job, member, out0, out1);
}

// Q of every row that has one.
void FastLinear::mix_outputs(const LinearJob& job) {
  pool_.run_items(job.rows, [&](int32_t item, int32_t thread) {
    for (const Member& member : members_) {
      if (!member.mixed) continue;
      for (const RowGroup& group : job.groups->groups()) {
        const SiteTerms* terms = group.set->rare(member.site);
        if (terms == nullptr || !terms->post) continue;
        const std::span<const int32_t> rows = job.groups->rows(group);
        if (!std::binary_search(rows.begin(), rows.end(), item)) continue;
        terms->post->replace(member.y + item * member.y_stride,
                             threads_[static_cast<size_t>(thread)].scratch.data());
      }
    }
  });
}

// Overridden outputs, then g.
void FastLinear::scale_outputs(const LinearJob& job, const Member& member, int32_t out0,
                               int32_t out1) {
  for (const RowGroup& group : job.groups->groups()) {
    const SiteTerms* terms = group.set->rare(member.site);
    if (terms == nullptr) continue;
    const int64_t u_stride = member.scaled ? input_stride_ : job.x_stride;
    for (const int32_t row : job.groups->rows(group)) {
      float* y = member.y + row * member.y_stride;
      if (terms->override_rows) {
        const OverrideValues& values = *terms->override_rows;
        const auto first =
            std::lower_bound(values.rows.begin(), values.rows.end(), static_cast<uint32_t>(out0));
        const auto last = std::lower_bound(first, values.rows.end(), static_cast<uint32_t>(out1));
        const auto skip = first - values.rows.begin();
        override_products(values.rows.data() + skip, static_cast<int32_t>(last - first),
                          values.values.data() + skip * values.width, values.width,
                          member.u + row * u_stride, y);
      }
      if (terms->diag && !terms->diag->g.empty()) {
        multiply_row(terms->diag->g.data() + out0, y + out0, out1 - out0, y + out0);
      }
    }
  }
}

void FastLinear::spread_outputs(const LinearJob& job, const Member& member, int32_t out0,
                                int32_t out1) {
  const int32_t panel = kernels_.spread_rows();
  for (const auto& [group, v] : group_v_) {
    const LowRankStack& stack = *group->set->stack(member.site);
    for (const PackedSpread& spread : stack.spreads) {
      if (!(spread.site == member.site)) continue;
      kernels_.spread({.dtype = spread.dtype,
                       .b = spread.b,
                       .rank = spread.rank,
                       .panel0 = out0 / panel,
                       .panel1 = blocks(out1, panel),
                       .v = v + spread.first_rank,
                       .v_stride = round_up(stack.ranks, kRowPad),
                       .rows = job.groups->rows(*group).data(),
                       .count = group->count,
                       .out_diag = spread.out_diag.empty() ? nullptr : spread.out_diag.data(),
                       .y = member.y,
                       .y_stride = member.y_stride});
    }
  }
}

const float* FastLinear::inner_of(const BlockChain& chain, const RowGroup& group) const {
  for (const ChainItem& item : chains_) {
    if (item.chain == &chain && item.group == &group) return item.inner;
  }
  return nullptr;
}

// Rowcol, sparse and additive blockdiag terms.
void FastLinear::add_rare(const LinearJob& job, const Member& member, int32_t out0, int32_t out1) {
  for (const RowGroup& group : job.groups->groups()) {
    const SiteTerms* terms = group.set->rare(member.site);
    if (terms == nullptr) continue;
    const std::span<const int32_t> rows = job.groups->rows(group);
    for (size_t i = 0; i < rows.size(); ++i) {
      const float* x = job.x + rows[i] * job.x_stride;
      float* y = member.y + rows[i] * member.y_stride;
      for (const RowColValues& term : terms->rowcol) rowcol_row(term.view(), x, out0, out1, y);
      for (const SparseValues& term : terms->sparse) sparse_row(term.view(), x, out0, out1, y);
      for (const BlockChain& chain : terms->additive) {
        const float* inner = inner_of(chain, group);
        if (inner != nullptr) inner += i * static_cast<size_t>(chain.inner_width());
        chain.add_outputs(inner == nullptr ? x : inner, out0, out1, y);
      }
    }
  }
}

// Bias, then c.
void FastLinear::shift_outputs(const LinearJob& job, const Member& member, int32_t out0,
                               int32_t out1) {
  if (member.bias != nullptr) {
    const int64_t padded = round_up(out1 - out0, kernels_.lanes);
    for (int32_t row = 0; row < job.rows; ++row) {
      kernels_.add(member.bias + out0, padded, member.y + row * member.y_stride + out0);
    }
  }
  for (const RowGroup& group : job.groups->groups()) {
    const SiteTerms* terms = group.set->rare(member.site);
    if (terms == nullptr || !terms->diag || terms->diag->c.empty()) continue;
    for (const int32_t row : job.groups->rows(group)) {
      add_row(terms->diag->c.data() + out0, out1 - out0, member.y + row * member.y_stride + out0);
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
