// See terms_bench.h.
//
// Linears are run without their base products, so that the figures are of adapters alone:
// every operation of a step is there, with its barriers. Kinds take turns within each repetition,
// so that whatever the machine does besides meets all of them alike; figures are medians, with the
// quartiles of the ratio to the LoRA beside it in the same repetition.
#include "terms_bench.h"

#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "../core/check_plan.h"
#include "../cpu/fast_backend.h"
#include "../cpu/fast_linear.h"
#include "timing.h"

namespace manyfold::bench {
namespace {

constexpr int32_t kMostRows = 32, kRank = 16, kRounds = 15;

// With one thread its own processor time, which is right on a busy machine too.
double now() {
  return seconds_of(use_cpu_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC);
}

// xorshift32.
class Random {
 public:
  explicit Random(uint32_t seed) : state_(seed * 2654435761u + 1) {}
  uint32_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 17;
    state_ ^= state_ << 5;
    return state_;
  }
  float uniform() { return static_cast<float>(next() >> 8) / 16777216.0f; }

 private:
  uint32_t state_;
};

TermTensor bf16(int32_t rows, int32_t cols, Random& random) {
  TermTensor out;
  out.dtype = Dtype::kBf16;
  out.shape = {rows, cols};
  out.bytes.resize(out.count() * 2);
  for (size_t i = 0; i < out.count(); ++i) {
    const uint16_t half = f32_to_bf16((random.uniform() - 0.5f) * 0.1f);
    std::memcpy(out.bytes.data() + 2 * i, &half, 2);
  }
  return out;
}

TermTensor ternary(int32_t rows, int32_t cols, float density, Random& random) {
  TermTensor out;
  out.codec = Codec::kTernary;
  out.shape = {rows, cols};
  out.scales = {0.02f};
  out.positive.resize(static_cast<size_t>(rows) * out.plane_stride());
  out.negative.resize(out.positive.size());
  for (int32_t r = 0; r < rows; ++r) {
    for (int32_t c = 0; c < cols; ++c) {
      if (random.uniform() >= density) continue;
      const size_t word = static_cast<size_t>(r) * out.plane_stride() + static_cast<size_t>(c / 32);
      ((random.next() >> 16 & 1) != 0 ? out.positive : out.negative)[word] |= 1u << (c % 32);
    }
  }
  return out;
}

LowRank lora(const WeightShape& shape, Random& random) {
  LowRank op;
  op.a = bf16(kRank, shape.cols, random);
  op.b = bf16(shape.rows, kRank, random);
  return op;
}

LowRank compeft(const WeightShape& shape, float density, Random& random) {
  LowRank op;
  op.a = ternary(kRank, shape.cols, density, random);
  op.b = ternary(shape.rows, kRank, density, random);
  return op;
}

RowCol gather_in(const WeightShape& shape, int32_t channels, Random& random) {
  RowCol op;
  for (int32_t i = 0; i < channels; ++i) {
    op.index.push_back(static_cast<uint32_t>(i * (shape.cols / channels)));
  }
  op.values = bf16(shape.rows, channels, random);
  return op;
}

Sparse half_percent(const WeightShape& shape, Random& random) {
  Sparse op;
  op.row_start.push_back(0);
  for (int32_t r = 0; r < shape.rows; ++r) {
    for (int32_t c = 0; c < shape.cols; ++c) {
      if (random.uniform() < 0.005f) op.columns.push_back(static_cast<uint32_t>(c));
    }
    op.row_start.push_back(static_cast<uint32_t>(op.columns.size()));
  }
  op.values = bf16(1, static_cast<int32_t>(op.columns.size()), random);
  return op;
}

BlockDiag oft(const WeightShape& shape, Random& random) {
  constexpr int32_t kBlock = 32;
  BlockDiag op;
  BlockStage& stage = op.stages.emplace_back();
  stage.blocks = bf16(shape.cols * kBlock / kBlock, kBlock, random);
  stage.blocks.shape = {shape.cols / kBlock, kBlock, kBlock};
  return op;
}

std::vector<float> ones(int32_t n) {
  return std::vector<float>(static_cast<size_t>(n), 1.01f);
}

struct Kind {
  const char* name;
  // Adds the terms of one linear.
  std::function<void(SiteRef, const WeightShape&, Random&, TermSet&)> add;
};

std::vector<Kind> linear_kinds() {
  const auto is = [](SiteRef site, Site what) { return site.site == what; };
  return {
      {"lora r16 bf16", [](SiteRef s, const WeightShape& w, Random& r,
                           TermSet& out) { out.push_back({s, lora(w, r)}); }},
      {"ternary r16 planes 0.1", [](SiteRef s, const WeightShape& w, Random& r,
                                    TermSet& out) { out.push_back({s, compeft(w, 0.1f, r)}); }},
      {"ternary r16 coo 0.05", [](SiteRef s, const WeightShape& w, Random& r,
                                  TermSet& out) { out.push_back({s, compeft(w, 0.05f, r)}); }},
      {"s2ft o 30, down 32",
       [is](SiteRef s, const WeightShape& w, Random& r, TermSet& out) {
         if (is(s, Site::kO)) out.push_back({s, gather_in(w, 30, r)});
         if (is(s, Site::kDown)) out.push_back({s, gather_in(w, 32, r)});
       }},
      {"sparse 0.5 %", [](SiteRef s, const WeightShape& w, Random& r,
                          TermSet& out) { out.push_back({s, half_percent(w, r)}); }},
      {"ia3 k, v, down",
       [is](SiteRef s, const WeightShape& w, Random&, TermSet& out) {
         if (is(s, Site::kK) || is(s, Site::kV)) out.push_back({s, Diag{{}, ones(w.rows), {}}});
         if (is(s, Site::kDown)) out.push_back({s, Diag{ones(w.cols), {}, {}}});
       }},
      {"oft 32", [](SiteRef s, const WeightShape& w, Random& r,
                    TermSet& out) { out.push_back({s, oft(w, r)}); }},
  };
}

TermSet make_set(const ModelConfig& model, const Kind& kind, uint32_t seed) {
  Random random(seed);
  TermSet terms;
  for (int32_t layer = 0; layer < static_cast<int32_t>(model.layers.size()); ++layer) {
    for (const Site site :
         {Site::kQ, Site::kK, Site::kV, Site::kO, Site::kGate, Site::kUp, Site::kDown}) {
      kind.add({layer, site}, weight_shape(model, site), random, terms);
    }
  }
  return terms;
}

// Bottlenecks of 48 after both sub-blocks, as Houlsby et al. place them.
TermSet make_bottlenecks(const ModelConfig& model, uint32_t seed) {
  Random random(seed);
  TermSet terms;
  for (int32_t layer = 0; layer < static_cast<int32_t>(model.layers.size()); ++layer) {
    for (const Site site : {Site::kResidualAttn, Site::kResidualMlp}) {
      Bottleneck op;
      op.down = bf16(48, model.hidden, random);
      op.up = bf16(model.hidden, 48, random);
      op.down_bias = ones(48);
      op.up_bias = ones(model.hidden);
      terms.push_back({{layer, site}, std::move(op)});
    }
  }
  return terms;
}

void add_zero_weights(WeightStore& store, const ModelConfig& model) {
  const auto add = [&](SiteRef site) {
    const WeightShape shape = weight_shape(model, site.site);
    store.add_weight(site, WeightPart::kWeight, shape.rows, shape.cols,
                     [&](int32_t, int32_t count, float* out) {
                       std::fill_n(out, int64_t{count} * shape.cols, 0.0f);
                     });
  };
  add({-1, Site::kEmbedding});
  add({-1, Site::kFinalNorm});
  for (int32_t layer = 0; layer < static_cast<int32_t>(model.layers.size()); ++layer) {
    for (const Site site : {Site::kAttnNorm, Site::kQ, Site::kK, Site::kV, Site::kO, Site::kMlpNorm,
                            Site::kGate, Site::kUp, Site::kDown}) {
      add({layer, site});
    }
  }
}

// The terms of linears without their base products.
class TermLinears {
 public:
  TermLinears(const ModelConfig& model, const Kernels& kernels, ThreadPool& pool)
      : model_(model),
        pool_(pool),
        weights_(model, Dtype::kBf16, kernels, pool),
        terms_(model, kernels),
        linear_(kernels, pool, weights_, Dtype::kBf16, kMostRows, model.ffn),
        stride_(row_stride(model.ffn)),
        x_(static_cast<size_t>(kMostRows * stride_) * 4, "inputs"),
        y_(static_cast<size_t>(kMostRows * stride_) * 3 * 4, "outputs"),
        gates_(kMostRows, -1) {
    add_zero_weights(weights_, model);
    groups_.reserve(kMostRows);
    Random random(99);
    for (int32_t r = 0; r < kMostRows; ++r) {
      for (int32_t c = 0; c < model.ffn; ++c) {
        x_.as<float>()[r * stride_ + c] = random.uniform() - 0.5f;
      }
    }
  }

  // Loads kMostRows adapters of a kind; its number.
  void load(const Kind& kind) {
    const size_t before = terms_.term_bytes();
    std::vector<const FastTermSet*>& sets = sets_.emplace_back();
    for (uint32_t i = 0; i < kMostRows; ++i) {
      sets.push_back(&terms_.get(terms_.load_terms(make_set(model_, kind, i + 1))));
    }
    bytes_.push_back(static_cast<double>(terms_.term_bytes() - before) / kMostRows);
    linear_.reserve(terms_.limits());
  }
  double bytes(size_t kind) const { return bytes_[kind]; }

  // Seconds of one token of each row. Distinct: each row has its own adapter, from `first` on.
  double run(size_t kind, int32_t rows, bool distinct, int32_t first) {
    std::vector<const FastTermSet*> sets;
    for (int32_t r = 0; r < rows; ++r) {
      sets.push_back(sets_[kind][static_cast<size_t>(distinct ? (first + r) % kMostRows : 0)]);
    }
    groups_.build(sets);
    std::fill_n(y_.as<float>(), kMostRows * stride_ * 3, 0.0f);
    const ThreadPool::Session session(pool_);
    const double begin = now();
    for (int32_t layer = 0; layer < static_cast<int32_t>(model_.layers.size()); ++layer) {
      run_family({{layer, Site::kQ}, {layer, Site::kK}, {layer, Site::kV}}, rows);
      run_family({{layer, Site::kO}}, rows);
      run_family({{layer, Site::kGate}, {layer, Site::kUp}}, rows);
      run_family({{layer, Site::kDown}}, rows);
    }
    return now() - begin;
  }

 private:
  void run_family(std::initializer_list<SiteRef> sites, int32_t rows) {
    std::array<LinearTarget, FastLinear::kMaxTargets> targets;
    size_t n = 0;
    for (const SiteRef site : sites) {
      targets[n] = {site, y_.as<float>() + static_cast<int64_t>(n) * kMostRows * stride_, stride_};
      ++n;
    }
    linear_.run(
        {.targets = std::span<const LinearTarget>(targets).first(n),
         .x = x_.as<float>(),
         .x_stride = stride_,
         .rows = rows,
         .groups = &groups_,
         .gates = {{}, 0, std::span<const int32_t>(gates_).first(static_cast<size_t>(rows))},
         .terms_only = true},
        counters_);
  }

  const ModelConfig& model_;
  ThreadPool& pool_;
  FastWeights weights_;
  FastTerms terms_;
  FastLinear linear_;
  int64_t stride_;
  HugeBuffer x_, y_;
  std::vector<int32_t> gates_;
  std::vector<std::vector<const FastTermSet*>> sets_;  // by kind
  std::vector<double> bytes_;
  RowGroups groups_;
  Counters counters_;
};

// The residual additions of a step with bottlenecks, through the backend.
class BottleneckSteps {
 public:
  BottleneckSteps(const ModelConfig& model, const Kernels& kernels, int32_t threads)
      : model_(model) {
    BackendOptions options;
    options.model = model;
    options.threads = threads;
    options.kv_pages = kMostRows;
    options.max_rows = kMostRows;
    options.max_entries = kMostRows;
    backend_ = make_backend_with(kernels, options);
    add_zero_weights(backend_->weights(), model);
    for (uint32_t i = 0; i < kMostRows; ++i) {
      handles_.push_back(backend_->terms().load_terms(make_bottlenecks(model, i + 1)));
    }
    bytes_ = static_cast<double>(backend_->terms().term_bytes()) / kMostRows;
  }
  double bytes() const { return bytes_; }

  double run(int32_t rows, bool distinct, int32_t first) {
    const auto n = static_cast<size_t>(rows);
    std::vector<int32_t> numbers(n), zeros(n, 0), none(n, -1), sets(n, 0), runs(n + 1);
    std::iota(numbers.begin(), numbers.end(), 0);
    std::iota(runs.begin(), runs.end(), 0);
    std::vector<TermHandle> handles;
    for (int32_t r = 0; r < (distinct ? rows : 1); ++r) {
      handles.push_back(handles_[static_cast<size_t>((first + r) % kMostRows)]);
    }
    if (distinct) sets = numbers;
    const std::vector<int32_t> tokens(n, 1);
    const std::vector<uint8_t> pages(n, 0);
    StepPlan plan;
    plan.row_sequence = numbers;
    plan.row_position = zeros;
    plan.row_token = zeros;
    plan.row_terms = sets;
    plan.row_gate = none;
    plan.sequence_base = zeros;
    plan.sequence_runs = runs;
    plan.run_kind = pages;
    plan.run_ref = numbers;
    plan.run_tokens = tokens;
    plan.pages = numbers;
    plan.term_sets = handles;
    StepOps& ops = backend_->ops();
    ops.begin(plan);
    ops.embed();
    const double begin = now();
    for (int32_t layer = 0; layer < static_cast<int32_t>(model_.layers.size()); ++layer) {
      ops.add({layer, Site::kResidualAttn});
      ops.add({layer, Site::kResidualMlp});
    }
    return now() - begin;
  }

 private:
  const ModelConfig& model_;
  std::unique_ptr<Backend> backend_;
  std::vector<TermHandle> handles_;
  double bytes_ = 0;
};

double at_share(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

struct Row {
  std::string name;
  double bytes;
  std::function<double(int32_t rows, bool distinct, int32_t first)> run;
};

// A run in which no thread lost its core tells about the code; some tries to get one.
double undisturbed(const Row& kind, int32_t rows, bool distinct, int32_t first) {
  double best = 0;
  for (int32_t attempt = 0; attempt < 8; ++attempt) {
    // Shared adapters are warm after a first run; distinct ones come from further away.
    if (!distinct) kind.run(rows, false, 0);
    const int64_t lost = lost_cores();
    const double seconds = kind.run(rows, distinct, first + attempt * rows);
    if (use_cpu_time || lost_cores() == lost) return seconds;
    best = attempt == 0 ? seconds : std::min(best, seconds);
  }
  return best;
}

void print_table(const std::vector<Row>& kinds, int32_t rows, bool distinct, double read_gbs) {
  std::vector<std::vector<double>> seconds(kinds.size());
  for (int32_t round = 0; round < kRounds; ++round) {
    wait_for_idle();
    for (size_t k = 0; k < kinds.size(); ++k) {
      seconds[k].push_back(undisturbed(kinds[k], rows, distinct, round * rows));
    }
  }
  std::printf("rows %d, %s\n", rows, distinct ? "each its own adapter" : "one adapter");
  for (size_t k = 0; k < kinds.size(); ++k) {
    std::vector<double> ratios;
    for (size_t i = 0; i < seconds[k].size(); ++i) ratios.push_back(seconds[k][i] / seconds[0][i]);
    const double median = at_share(seconds[k], 0.5);
    std::printf("  %-24s %8.1f us/token (%.1f to %.1f)  %5.2f of lora (%.2f to %.2f)",
                kinds[k].name.c_str(), median / rows * 1e6, at_share(seconds[k], 0.25) / rows * 1e6,
                at_share(seconds[k], 0.75) / rows * 1e6, at_share(ratios, 0.5),
                at_share(ratios, 0.25), at_share(ratios, 0.75));
    if (distinct) {
      std::printf("  %5.2f of bytes / bandwidth",
                  median / (kinds[k].bytes * rows / read_gbs / 1e9));
    }
    std::printf("\n");
  }
  std::fflush(stdout);
}

}  // namespace

void print_terms(const ModelConfig& model, const Kernels& kernels, ThreadPool& pool,
                 double read_gbs) {
  TermLinears linears(model, kernels, pool);
  BottleneckSteps bottlenecks(model, kernels, pool.threads());
  std::vector<Row> kinds;
  for (const Kind& kind : linear_kinds()) {
    linears.load(kind);
    const size_t number = kinds.size();
    kinds.push_back({kind.name, linears.bytes(number),
                     [&linears, number](int32_t rows, bool distinct, int32_t first) {
                       return linears.run(number, rows, distinct, first);
                     }});
  }
  kinds.push_back({"bottleneck 48, both", bottlenecks.bytes(),
                   [&bottlenecks](int32_t rows, bool distinct, int32_t first) {
                     return bottlenecks.run(rows, distinct, first);
                   }});
  std::printf("adapters of all layers' linears, without base products (%d rounds, %d threads)\n",
              kRounds, pool.threads());
  for (const Row& kind : kinds) {
    std::printf("  %-24s %8.3f MB an adapter  %8.0f adapters/GiB  %5.2f x as many as lora\n",
                kind.name.c_str(), kind.bytes / 1e6, 1073741824.0 / kind.bytes,
                kinds[0].bytes / kind.bytes);
  }
  for (const bool distinct : {true, false}) {
    for (const int32_t rows : {1, 4, 8, 16, 32}) print_table(kinds, rows, distinct, read_gbs);
  }
}

}  // namespace manyfold::bench
