// See adapter_case.h.
#include "adapter_case.h"

#include <algorithm>
#include <map>

#include "../../cuda/device/number.cuh"

namespace manyfold::test {

using namespace cuda;

namespace {

constexpr int32_t kScratchGuard = 3;  // floats beyond what the facts ask for

int32_t padded(int32_t n) {
  return (n + 15) / 16 * 16;
}

uint16_t half_bits(Factor factor, float value) {
  return factor == Factor::kF16 ? round_to<F16>(value).bits : round_to<Bf16>(value).bits;
}

// tensor [rows, cols] · x.
Doubles product(const TermTensor& tensor, const Doubles& x) {
  const auto rows = static_cast<size_t>(tensor.shape[0]),
             cols = static_cast<size_t>(tensor.shape[1]);
  Doubles out(rows, 0.0);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t k = 0; k < cols; ++k) out[r] += double{tensor.at(r * cols + k)} * x[k];
  }
  return out;
}

Doubles run_chain(const BlockDiag& term, Doubles t) {
  for (const BlockStage& stage : term.stages) {
    const auto count = static_cast<size_t>(stage.blocks.shape[0]),
               p = static_cast<size_t>(stage.blocks.shape[1]),
               q = static_cast<size_t>(stage.blocks.shape[2]);
    Doubles next(count * p, 0.0);
    for (size_t i = 0; i < count * p; ++i) {
      for (size_t j = 0; j < q; ++j) {
        const size_t at = i / p * q + j;
        next[i] +=
            double{stage.blocks.at(i * q + j)} * t[stage.gather.empty() ? at : stage.gather[at]];
      }
    }
    t = std::move(next);
  }
  if (term.output.empty()) return t;
  Doubles out;
  for (const uint32_t from : term.output) out.push_back(t[from]);
  return out;
}

void add_lowrank(const LowRank& term, const Doubles& x, const float* gates, int32_t gate_width,
                 Doubles& y) {
  Doubles v = product(term.a, x);
  if (!term.mid_matrix.shape.empty()) v = product(term.mid_matrix, v);
  for (size_t r = 0; r < v.size(); ++r) {
    if (!term.mid.empty()) v[r] *= term.mid[r];
    if (gates != nullptr && r < static_cast<size_t>(gate_width)) v[r] *= gates[r];
  }
  const Doubles delta = product(term.b, v);
  for (size_t o = 0; o < y.size(); ++o)
    y[o] += double{term.scale} * delta[o] * (term.out_diag.empty() ? 1.0 : term.out_diag[o]);
}

void add_rowcol(const RowCol& term, const Doubles& x, Doubles& y) {
  if (term.side == RowColSide::kOut) {
    const Doubles delta = product(term.values, x);
    for (size_t i = 0; i < delta.size(); ++i) y[term.index[i]] += double{term.scale} * delta[i];
    return;
  }
  Doubles gathered;
  for (const uint32_t k : term.index) gathered.push_back(x[k]);
  const Doubles delta = product(term.values, gathered);
  for (size_t o = 0; o < y.size(); ++o) y[o] += double{term.scale} * delta[o];
}

void add_sparse(const Sparse& term, const Doubles& x, Doubles& y) {
  for (size_t o = 0; o < y.size(); ++o) {
    for (uint32_t j = term.row_start[o]; j < term.row_start[o + 1]; ++j)
      y[o] += double{term.scale} * term.values.at(j) * x[term.columns[j]];
  }
}

// The set's terms of one type at a site, in order.
template <class Op>
std::vector<const Op*> terms_of(const TermSet& set, SiteRef site) {
  std::vector<const Op*> found;
  for (const Term& term : set) {
    const Op* op = std::get_if<Op>(&term.op);
    if (term.site == site && op != nullptr) found.push_back(op);
  }
  return found;
}

const BlockDiag* placed(const TermSet& set, SiteRef site, BlockPlacement placement) {
  for (const BlockDiag* op : terms_of<BlockDiag>(set, site)) {
    if (op->placement == placement) return op;
  }
  return nullptr;
}

void multiply(const std::vector<float>& by, Doubles& values) {
  for (size_t i = 0; i < by.size(); ++i) values[i] *= by[i];
}

}  // namespace

std::vector<float> TermMaker::floats(int32_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = value();
  return values;
}

TermTensor TermMaker::dense(Factor factor, std::vector<int32_t> shape) {
  TermTensor tensor;
  tensor.dtype = factor == Factor::kF32   ? Dtype::kF32
                 : factor == Factor::kF16 ? Dtype::kF16
                                          : Dtype::kBf16;
  tensor.shape = std::move(shape);
  const size_t element = factor == Factor::kF32 ? 4 : 2;
  tensor.bytes.resize(tensor.count() * element);
  for (size_t i = 0; i < tensor.count(); ++i) {
    const float v = value();
    const uint16_t half = half_bits(factor, v);
    std::memcpy(tensor.bytes.data() + i * element,
                element == 4 ? static_cast<const void*>(&v) : &half, element);
  }
  return tensor;
}

TermTensor TermMaker::tensor(Factor factor, std::vector<int32_t> shape) {
  if (factor != Factor::kInt8 && factor != Factor::kTernary) return dense(factor, std::move(shape));
  TermTensor tensor;
  tensor.shape = std::move(shape);
  if (factor == Factor::kInt8) {
    tensor.codec = Codec::kInt8;
    tensor.bytes.resize(tensor.count());
    for (uint8_t& byte : tensor.bytes) byte = static_cast<uint8_t>(random_() % 255 + 129);
    for (int32_t r = 0; r < tensor.shape[0]; ++r) tensor.scales.push_back(0.01f * value());
    return tensor;
  }
  tensor.codec = Codec::kTernary;
  tensor.scales = {0.7f};
  const size_t rows = static_cast<size_t>(tensor.shape[0]),
               cols = static_cast<size_t>(tensor.shape[1]);
  tensor.positive.resize(rows * tensor.plane_stride());
  tensor.negative.resize(tensor.positive.size());
  for (size_t i = 0; i < rows * cols; ++i) {
    const size_t word = i / cols * tensor.plane_stride() + i % cols / 32;
    const unsigned kind = random_() % 3;
    if (kind < 2) (kind == 0 ? tensor.positive : tensor.negative)[word] |= 1u << (i % cols % 32);
  }
  return tensor;
}

std::vector<uint32_t> TermMaker::ascending(int32_t every, int32_t limit) {
  std::vector<uint32_t> found;
  for (int32_t i = 0; i < limit; ++i) {
    if (random_() % static_cast<unsigned>(every) == 0) found.push_back(static_cast<uint32_t>(i));
  }
  if (found.empty()) found.push_back(static_cast<uint32_t>(limit - 1));
  return found;
}

std::vector<uint32_t> TermMaker::below(int32_t count, int32_t limit) {
  std::vector<uint32_t> found(static_cast<size_t>(count));
  for (uint32_t& i : found) i = random_() % static_cast<uint32_t>(limit);
  return found;
}

LowRank TermMaker::lowrank(Factor factor, int32_t in, int32_t out, int32_t rank) {
  LowRank term;
  term.a = tensor(factor, {rank, in});
  term.b = tensor(factor, {out, rank});
  term.scale = 0.25f;
  return term;
}

RowCol TermMaker::rowcol(Factor factor, RowColSide side, int32_t in, int32_t out, int32_t every) {
  RowCol term;
  term.side = side;
  term.index = ascending(every, side == RowColSide::kIn ? in : out);
  const auto count = static_cast<int32_t>(term.index.size());
  term.values = tensor(factor, side == RowColSide::kIn ? std::vector<int32_t>{out, count}
                                                       : std::vector<int32_t>{count, in});
  term.scale = -0.5f;
  return term;
}

// Every third output has no values.
Sparse TermMaker::sparse(Factor factor, int32_t in, int32_t out, int32_t every) {
  Sparse term;
  term.row_start.push_back(0);
  for (int32_t o = 0; o < out; ++o) {
    if (o % 3 != 1) {
      for (const uint32_t k : ascending(every, in)) term.columns.push_back(k);
    }
    term.row_start.push_back(static_cast<uint32_t>(term.columns.size()));
  }
  term.values = tensor(factor, {1, static_cast<int32_t>(term.columns.size())});
  term.scale = 1.5f;
  return term;
}

BlockDiag TermMaker::chain(BlockPlacement placement, int32_t in, int32_t out, int32_t stages,
                           int32_t inner) {
  BlockDiag term;
  term.placement = placement;
  term.scale = placement == BlockPlacement::kAdditive ? 0.5f : 1.0f;
  int32_t length = in;
  for (int32_t s = 0; s < stages; ++s) {
    const int32_t p = 2 + s % 2, count = inner / p, q = 3 + 8 * s;
    BlockStage stage;
    stage.gather = below(count * q, length);
    stage.blocks = tensor(Factor::kF32, {count, p, q});
    term.stages.push_back(std::move(stage));
    length = count * p;
  }
  term.output = below(out, length);
  return term;
}

Doubles expected_input(const TermSet& set, SiteRef site, Doubles x) {
  for (const Diag* diag : terms_of<Diag>(set, site)) multiply(diag->h, x);
  const BlockDiag* pre = placed(set, site, BlockPlacement::kPre);
  return pre == nullptr ? x : run_chain(*pre, std::move(x));
}

Doubles expected_output(const TermSet& set, SiteRef site, const Doubles& u, Doubles y) {
  for (const Override* op : terms_of<Override>(set, site)) {
    const Doubles rows = product(op->values, u);
    for (size_t i = 0; i < rows.size(); ++i) y[op->rows[i]] = rows[i];
  }
  const BlockDiag* post = placed(set, site, BlockPlacement::kPost);
  if (post == nullptr) return y;
  for (const Diag* diag : terms_of<Diag>(set, site)) multiply(diag->g, y);
  return run_chain(*post, std::move(y));
}

Doubles expected_spread(const TermSet& set, SiteRef site, const Doubles& x, Doubles y,
                        const float* gates, int32_t gate_width) {
  const bool post = placed(set, site, BlockPlacement::kPost) != nullptr;
  for (const Diag* diag : terms_of<Diag>(set, site)) {
    if (!post) multiply(diag->g, y);
    for (size_t i = 0; i < diag->c.size(); ++i) y[i] += diag->c[i];
  }
  for (const LowRank* term : terms_of<LowRank>(set, site))
    add_lowrank(*term, x, gates, gate_width, y);
  for (const RowCol* term : terms_of<RowCol>(set, site)) add_rowcol(*term, x, y);
  for (const Sparse* term : terms_of<Sparse>(set, site)) add_sparse(*term, x, y);
  for (const BlockDiag* term : terms_of<BlockDiag>(set, site)) {
    if (term->placement != BlockPlacement::kAdditive) continue;
    const Doubles delta = run_chain(*term, x);
    for (size_t o = 0; o < y.size(); ++o) y[o] += double{term->scale} * delta[o];
  }
  return y;
}

AdapterCase::AdapterCase(const CaseOptions& options, const std::vector<TermSet>& sets)
    : options_(options),
      random_(options.seed),
      x_stride_(padded(options.cols)),
      y_stride_(0),
      plane_rows_(rows() + 2),
      x_(static_cast<size_t>(rows() * x_stride_) * element()),
      u_(x_.size()),
      y_(0),
      planes_(0),
      scratch_(0) {
  for (const CaseSite& site : options.sites) y_stride_ += site.outs;
  y_stride_ += 3;
  model_.layers.resize(1);
  pack(sets);
  const int32_t spans = (options.cols + kReduceSpan - 1) / kReduceSpan;
  y_ = AlignedArray<float>(static_cast<size_t>(rows() * y_stride_));
  planes_ = AlignedArray<float>(static_cast<size_t>(spans * plane_rows_ * facts_.plane_width));
  scratch_ = AlignedArray<float>(static_cast<size_t>(rows() * 2 * facts_.scratch_width));
  std::fill_n(planes_.data(), planes_.size(), NAN);
  std::fill_n(scratch_.data(), scratch_.size(), NAN);
  fill();
  restart();
}

// scratch_width cannot come from the facts, whose model has other shapes: it is the widest of what
// the terms themselves want.
void AdapterCase::pack(const std::vector<TermSet>& sets) {
  for (const TermSet& set : sets) {
    const SetFacts facts = set_facts(model_, set);
    facts_.plane_width = std::max(facts_.plane_width, facts.plane_width + 1);
    facts_.others |= facts.others;
    facts_.additives = std::max(facts_.additives, facts.additives);
    facts_.chain_stages = std::max(facts_.chain_stages, facts.chain_stages);
    facts_.scratch_width = std::max({facts_.scratch_width, facts.scratch_width, options_.cols});
    memory_.push_back(allocate_device(facts.bytes, "a test's terms"));
    std::memset(memory_.back().get(), 0xcb, facts.bytes);
    device_sets_.push_back(pack_terms(model_, set,
                                      reinterpret_cast<uintptr_t>(memory_.back().get()),
                                      static_cast<std::byte*>(memory_.back().get())));
  }
  for (const CaseSite& site : options_.sites)
    facts_.scratch_width = std::max(facts_.scratch_width, site.outs + kScratchGuard);
}

void AdapterCase::fill() {
  for (int32_t r = 0; r < rows(); ++r) {
    for (int32_t k = 0; k < x_stride_; ++k) {
      const float v = k < options_.cols ? static_cast<float>(normal(random_)) : 0.0f;
      const uint16_t half =
          options_.dtype == Dtype::kF16 ? round_to<F16>(v).bits : round_to<Bf16>(v).bits;
      std::memcpy(x_.data() + static_cast<size_t>(r * x_stride_ + k) * element(),
                  element() == 4 ? static_cast<const void*>(&v) : &half, element());
    }
  }
  for (size_t i = 0; i < y_.size(); ++i)
    first_y_.push_back(options_.zero_y ? 0.0f : static_cast<float>(normal(random_)));
  // Entry e is row e of a plan whose rows stand the other way round.
  for (int32_t r = 0; r < rows(); ++r) {
    const int32_t plan_row = options_.by_entry ? rows() - 1 - r : r;
    entry_row_.push_back(rows() - 1 - r);
    row_set_.push_back(options_.row_set[static_cast<size_t>(plan_row)]);
    row_gate_.push_back(options_.gate_width > 0 && plan_row % 2 == 0 ? plan_row / 2 : -1);
  }
  for (int32_t i = 0; i < (rows() + 1) / 2 * options_.gate_width; ++i)
    gates_.push_back(static_cast<float>(normal(random_)));
}

void AdapterCase::restart() {
  std::vector<int32_t> all(static_cast<size_t>(rows()));
  for (int32_t r = 0; r < rows(); ++r) all[static_cast<size_t>(r)] = r;
  restart(all);
}

void AdapterCase::restart(const std::vector<int32_t>& chosen) {
  tiles_.clear();
  tile_rows_.clear();
  std::map<int32_t, std::vector<int32_t>> by_set;
  for (const int32_t r : chosen) {
    const int32_t set = options_.row_set[static_cast<size_t>(r)];
    if (set >= 0) by_set[set].push_back(r);
  }
  for (const auto& [set, list] : by_set) {
    for (size_t i = 0; i < list.size(); ++i) {
      if (i % kTileRows == 0) tiles_.push_back({set, static_cast<int32_t>(tile_rows_.size()), 0});
      ++tiles_.back().count;
      tile_rows_.push_back(list[i]);
    }
  }
  const auto tiles = static_cast<int32_t>(tiles_.size());
  counts_ = {rows(),
             rows(),
             0,
             static_cast<int32_t>(device_sets_.size()),
             options_.by_entry ? 0 : tiles,
             options_.by_entry ? tiles : 0,
             options_.gate_width};
  tables_.counts = &counts_;
  tables_.row_set = row_set_.data();
  tables_.row_gate = row_gate_.data();
  tables_.gates = gates_.data();
  tables_.entry_row = entry_row_.data();
  tables_.sets = device_sets_.data();
  tables_.tiles = tables_.entry_tiles = tiles_.data();
  tables_.tile_rows = tables_.entry_tile_rows = tile_rows_.data();
  std::copy(first_y_.begin(), first_y_.end(), y_.data());
}

AdapterArgs AdapterCase::args() {
  AdapterArgs args;
  args.tables = tables_;
  float* y = y_.data();
  for (const CaseSite& site : options_.sites) {
    args.sites[static_cast<size_t>(args.site_count++)] = {site.site, y, site.outs};
    y += site.outs;
  }
  args.by_entry = options_.by_entry;
  args.dtype = options_.dtype;
  args.x = x_.data();
  args.cols = options_.cols;
  args.x_stride = x_stride_;
  args.y_stride = y_stride_;
  args.planes = planes_.data();
  args.plane_rows = plane_rows_;
  args.plane_width = facts_.plane_width;
  args.scratch = scratch_.data();
  args.scratch_width = facts_.scratch_width;
  args.others = facts_.others ? 1 : 0;
  args.additives = facts_.additives;
  args.chain_stages = facts_.chain_stages;
  return args;
}

void AdapterCase::reduce_and_spread() {
  launch_adapter_reduce(args(), nullptr);
  launch_adapter_spread(args(), nullptr);
}

void AdapterCase::inputs(size_t site) {
  AdapterInputArgs in;
  in.tables = tables_;
  in.site = options_.sites[site].site;
  in.by_entry = options_.by_entry;
  in.dtype = options_.dtype;
  in.x = x_.data();
  in.u = u_.data();
  in.rows = rows();
  in.cols = options_.cols;
  in.x_stride = x_stride_;
  in.scratch = scratch_.data();
  in.scratch_width = facts_.scratch_width;
  in.chain_stages = facts_.chain_stages;
  launch_adapter_inputs(in, nullptr);
}

void AdapterCase::outputs(size_t site) {
  AdapterOutputArgs out;
  out.tables = tables_;
  out.site = args().sites[site];
  out.by_entry = options_.by_entry;
  out.dtype = options_.dtype;
  out.u = x_.data();
  out.rows = rows();
  out.cols = options_.cols;
  out.u_stride = x_stride_;
  out.y_stride = y_stride_;
  out.scratch = scratch_.data();
  out.scratch_width = facts_.scratch_width;
  out.chain_stages = facts_.chain_stages;
  launch_adapter_outputs(out, nullptr);
}

Doubles AdapterCase::input_of(const AlignedArray<unsigned char>& from, int32_t row) const {
  Doubles values;
  for (int32_t k = 0; k < x_stride_; ++k) {
    const unsigned char* at = from.data() + static_cast<size_t>(row * x_stride_ + k) * element();
    float v;
    uint16_t half;
    std::memcpy(&half, at, 2);
    std::memcpy(&v, at, element() == 4 ? 4 : 2);
    if (options_.dtype == Dtype::kF16) v = load(F16{half});
    if (options_.dtype == Dtype::kBf16) v = load(Bf16{half});
    values.push_back(v);
  }
  return values;
}

const float* AdapterCase::output(size_t site, int32_t row) const {
  int32_t first = 0;
  for (size_t s = 0; s < site; ++s) first += options_.sites[s].outs;
  return y_.data() + row * y_stride_ + first;
}

Doubles AdapterCase::output_values(size_t site, int32_t row) const {
  const float* y = output(site, row);
  return Doubles(y, y + options_.sites[site].outs);
}

const float* AdapterCase::gates(int32_t row) const {
  const int32_t plan_row = options_.by_entry ? entry_row_[static_cast<size_t>(row)] : row;
  const int32_t gate = row_gate_[static_cast<size_t>(plan_row)];
  return gate < 0 ? nullptr : gates_.data() + gate * options_.gate_width;
}

}  // namespace manyfold::test
