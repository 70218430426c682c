// Timing of the fast CPU backend on the shapes of SmolLM2-135M with random weights: the machine's
// bounds, then linears, adapters and attention alone, then whole steps. Each part is checked before
// it is timed, and each figure stands beside its bound: the larger of its arithmetic at the
// measured peak and its bytes at the measured bandwidth.
//
// Arguments: parts to run (bounds, linears, terms, attention, steps, profile; all without), and
// isa=NAME, threads=N, weights=bf16|int8|q4, wait=SECONDS (to wait in all for others to leave the
// machine).
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "../core/check_plan.h"
#include "../cpu/dispatch.h"
#include "../cpu/fast_backend.h"
#include "../cpu/fast_linear.h"
#include "../cpu/kv_pool.h"
#include "../model/forward.h"
#include "machine.h"
#include "profile.h"
#include "terms_bench.h"
#include "timing.h"

namespace manyfold::bench {
namespace {

constexpr int32_t kMaxRows = 512, kAdapters = 16, kRank = 16;

struct Options {
  std::string isa = "auto";
  int32_t threads = 0;
  WeightFormat format = WeightFormat::kPlain;
  std::vector<std::string> parts;

  bool wants(const char* part) const {
    return parts.empty() || std::find(parts.begin(), parts.end(), part) != parts.end();
  }
};

ModelConfig smollm2() {
  ModelConfig model;
  model.vocab = 49152;
  model.hidden = 576;
  model.heads = 9;
  model.kv_heads = 3;
  model.head_dim = 64;
  model.ffn = 1536;
  model.tied_head = true;
  model.attn_scale = 0.125f;
  model.layers.resize(30);
  model.ropes.resize(1);
  for (int32_t i = 0; i < 32; ++i) {
    model.ropes[0].inv_freq.push_back(std::pow(100000.0f, -static_cast<float>(i) / 32));
  }
  return model;
}

// Small pseudo-random values that depend on the place alone, so that any row can be made again for
// a check.
float value_at(uint32_t seed, uint32_t row, uint32_t col) {
  uint32_t x = (seed * 2654435761u) ^ (row * 2246822519u) ^ (col * 3266489917u);
  x ^= x >> 15;
  x *= 2246822519u;
  x ^= x >> 13;
  return (static_cast<float>(x >> 8) / 16777216.0f - 0.5f) * 0.1f;
}

void fill(WeightStore& store, const ModelConfig& model) {
  const auto add = [&](SiteRef site) {
    const WeightShape shape = weight_shape(model, site.site);
    const auto seed = static_cast<uint32_t>(site_index(site));
    const bool norm = is_norm_site(site.site);
    store.add_weight(site, WeightPart::kWeight, shape.rows, shape.cols,
                     [&](int32_t row0, int32_t count, float* out) {
                       for (int32_t r = 0; r < count; ++r) {
                         for (int32_t c = 0; c < shape.cols; ++c) {
                           *out++ = norm ? 1.0f
                                         : value_at(seed, static_cast<uint32_t>(row0 + r),
                                                    static_cast<uint32_t>(c));
                         }
                       }
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

TermSet lora(const ModelConfig& model, uint32_t seed) {
  TermSet terms;
  const auto tensor = [&](int32_t rows, int32_t cols, uint32_t salt) {
    TermTensor out{Dtype::kBf16, {rows, cols}, {}};
    out.bytes.resize(out.count() * 2);
    for (int32_t r = 0; r < rows; ++r) {
      for (int32_t c = 0; c < cols; ++c) {
        const uint16_t half = f32_to_bf16(
            value_at(seed * 7919 + salt, static_cast<uint32_t>(r), static_cast<uint32_t>(c)));
        std::memcpy(out.bytes.data() + (static_cast<size_t>(r) * cols + c) * 2, &half, 2);
      }
    }
    return out;
  };
  for (int32_t layer = 0; layer < static_cast<int32_t>(model.layers.size()); ++layer) {
    for (const Site site :
         {Site::kQ, Site::kK, Site::kV, Site::kO, Site::kGate, Site::kUp, Site::kDown}) {
      const WeightShape shape = weight_shape(model, site);
      const auto salt = static_cast<uint32_t>(site_index({layer, site})) * 2;
      terms.push_back({{layer, site},
                       LowRank{tensor(kRank, shape.cols, salt),
                               tensor(shape.rows, kRank, salt + 1),
                               1.0f,
                               {},
                               {}}});
    }
  }
  return terms;
}

void print_share(const char* name, double seconds, double flops, double bytes, double peak_gflops,
                 double read_gbs, const Timing& timing) {
  const double compute = flops / peak_gflops / 1e9, memory = bytes / read_gbs / 1e9;
  std::printf(
      "  %-34s %9.3f ms  %7.1f GFLOP/s %6.1f GB/s  %3.0f %% of the %s bound (%d kept, %d "
      "disturbed)\n",
      name, seconds * 1e3, flops / seconds / 1e9, bytes / seconds / 1e9,
      100 * std::max(compute, memory) / seconds, compute > memory ? "arithmetic" : "memory",
      timing.kept, timing.disturbed);
  std::fflush(stdout);
}

// Everything below runs on this.
struct Rig {
  ModelConfig model = smollm2();
  const Kernels& kernels;
  ThreadPool pool;
  Bounds bounds;
  const WeightFormat format;

  explicit Rig(const Options& options)
      : kernels(kernels_for(options.isa)),
        pool(options.threads > 0 ? options.threads : usable_cores()),
        format(options.format) {}
  // What base products are bound by.
  double peak() const {
    if (format != WeightFormat::kPlain) return bounds.int8_gops;
    return kernels.rounds_inputs ? bounds.bf16_gflops : bounds.f32_gflops;
  }
  const char* weights() const {
    if (format == WeightFormat::kQ4) return "q4";
    return format == WeightFormat::kInt8 ? "int8" : "bf16";
  }
};

void print_bounds(Rig& rig) {
  for (const int32_t threads : {1, rig.pool.threads()}) {
    ThreadPool pool(threads);
    rig.bounds = measure_bounds(rig.kernels.isa, pool);
    std::printf("%s, %d thread%s: f32 %.1f GFLOP/s", rig.kernels.isa, threads,
                threads == 1 ? "" : "s", rig.bounds.f32_gflops);
    if (rig.bounds.bf16_gflops > 0) std::printf(", bf16 %.1f GFLOP/s", rig.bounds.bf16_gflops);
    std::printf(", int8 %.1f GOP/s, read %.1f GB/s\n", rig.bounds.int8_gops, rig.bounds.read_gbs);
    std::fflush(stdout);
    if (rig.pool.threads() == 1) break;
  }
}

// All linears of the model, one after the other, as a step runs them.
class Linears {
 public:
  explicit Linears(Rig& rig)
      : rig_(rig),
        weights_(rig.model, Dtype::kBf16, rig.kernels, rig.pool, rig.format),
        terms_(rig.model, rig.kernels),
        linear_(rig.kernels, rig.pool, weights_, Dtype::kBf16, kMaxRows, rig.model.ffn),
        x_(static_cast<size_t>(kMaxRows * row_stride(rig.model.ffn)) * 4, "inputs"),
        y_(static_cast<size_t>(kMaxRows * row_stride(rig.model.ffn)) * 3 * 4, "outputs"),
        gates_(kMaxRows, -1) {
    fill(weights_, rig.model);
    for (uint32_t i = 0; i < kAdapters; ++i) {
      sets_.push_back(&terms_.get(terms_.load_terms(lora(rig.model, i))));
    }
    linear_.reserve(terms_.limits());
    groups_.reserve(kMaxRows);
    for (int32_t r = 0; r < kMaxRows; ++r) {
      for (int32_t c = 0; c < rig.model.ffn; ++c) {
        x_.as<float>()[r * row_stride(rig.model.ffn) + c] =
            value_at(99, static_cast<uint32_t>(r), static_cast<uint32_t>(c));
      }
    }
  }

  // adapters: sets in use, row i having set i % adapters; 0: base rows only.
  void run(int32_t rows, int32_t adapters) {
    std::vector<const FastTermSet*> sets(static_cast<size_t>(rows), nullptr);
    for (int32_t r = 0; adapters > 0 && r < rows; ++r) {
      sets[static_cast<size_t>(r)] = sets_[static_cast<size_t>(r % adapters)];
    }
    groups_.build(sets);
    const ThreadPool::Session session(rig_.pool);
    for (int32_t layer = 0; layer < static_cast<int32_t>(rig_.model.layers.size()); ++layer) {
      run_family({{layer, Site::kQ}, {layer, Site::kK}, {layer, Site::kV}}, rows);
      run_family({{layer, Site::kO}}, rows);
      run_family({{layer, Site::kGate}, {layer, Site::kUp}}, rows);
      run_family({{layer, Site::kDown}}, rows);
    }
  }

  void run_family(const std::vector<SiteRef>& sites, int32_t rows) {
    std::vector<LinearTarget> targets;
    const int64_t stride = row_stride(rig_.model.ffn);
    for (const SiteRef site : sites) {
      targets.push_back({site,
                         y_.as<float>() + static_cast<int64_t>(targets.size()) * kMaxRows * stride,
                         stride});
    }
    linear_.run(
        {.targets = targets,
         .x = x_.as<float>(),
         .x_stride = stride,
         .rows = rows,
         .groups = &groups_,
         .gates = {{}, 0, std::span<const int32_t>(gates_).first(static_cast<size_t>(rows))}},
        counters_);
  }

  // The last linear's outputs against float64, with every row under its own adapter.
  double error() {
    run(kAdapters, kAdapters);
    const SiteRef site{static_cast<int32_t>(rig_.model.layers.size()) - 1, Site::kDown};
    const WeightShape shape = weight_shape(rig_.model, site.site);
    std::vector<float> w(static_cast<size_t>(shape.cols));
    double error = 0, norm = 0;
    for (int32_t row = 0; row < kAdapters; ++row) {
      const float* x = x_.as<float>() + row * row_stride(rig_.model.ffn);
      const TermSet terms = lora(rig_.model, static_cast<uint32_t>(row));
      const LowRank& term = std::get<LowRank>(terms.back().op);
      std::vector<double> v(kRank, 0.0);
      for (int32_t r = 0; r < kRank; ++r) {
        for (int32_t c = 0; c < shape.cols; ++c) {
          v[static_cast<size_t>(r)] +=
              static_cast<double>(term.a.at(static_cast<size_t>(r * shape.cols + c))) * x[c];
        }
      }
      for (const int32_t out : {0, 17, 300, shape.rows - 1}) {
        weights_.read_weight(site, WeightPart::kWeight, out, 1, w.data());
        double sum = 0;
        for (int32_t c = 0; c < shape.cols; ++c)
          sum += static_cast<double>(w[static_cast<size_t>(c)]) * x[c];
        for (int32_t r = 0; r < kRank; ++r) {
          sum += term.b.at(static_cast<size_t>(out * kRank + r)) * v[static_cast<size_t>(r)];
        }
        const double d = y_.as<float>()[row * row_stride(rig_.model.ffn) + out] - sum;
        error += d * d;
        norm += sum * sum;
      }
    }
    return std::sqrt(error / norm);
  }

  void print() {
    const double e = error();
    std::printf("linears of all layers (%s), error against float64 %.1e\n", rig_.weights(), e);
    if (!(e < (rig_.format == WeightFormat::kPlain ? 5e-3 : 2e-2)))
      std::printf("  WRONG: the figures below mean nothing\n");
    double weight_bytes = 0, weights = 0;
    for (const SiteRef site :
         {SiteRef{0, Site::kQ}, SiteRef{0, Site::kK}, SiteRef{0, Site::kV}, SiteRef{0, Site::kO},
          SiteRef{0, Site::kGate}, SiteRef{0, Site::kUp}, SiteRef{0, Site::kDown}}) {
      const PackedMatrix& m = weights_.matrix(site);
      weight_bytes +=
          static_cast<double>(m.bytes()) * static_cast<double>(rig_.model.layers.size());
      weights +=
          static_cast<double>(m.rows) * m.cols * static_cast<double>(rig_.model.layers.size());
    }
    for (const int32_t rows : {1, 4, 16, 64, 512}) {
      const Timing t = time_of([&] { run(rows, 0); });
      print_share(("base, rows " + std::to_string(rows)).c_str(), t.seconds, 2 * weights * rows,
                  weight_bytes, rig_.peak(), rig_.bounds.read_gbs, t);
    }
    const double term_bytes = static_cast<double>(terms_.term_bytes()) / kAdapters;
    for (const auto& [rows, adapters] : {std::pair{1, 1}, {16, 16}, {16, 1}, {64, 16}, {512, 1}}) {
      const Timing t = time_of([&] { run(rows, adapters); });
      print_share(
          (std::to_string(adapters) + " adapters r16, rows " + std::to_string(rows)).c_str(),
          t.seconds, 2 * weights * rows + term_bytes * rows, weight_bytes + term_bytes * adapters,
          rig_.peak(), rig_.bounds.read_gbs, t);
    }
  }

 private:
  Rig& rig_;
  FastWeights weights_;
  FastTerms terms_;
  FastLinear linear_;
  HugeBuffer x_, y_;
  std::vector<int32_t> gates_;
  std::vector<const FastTermSet*> sets_;
  RowGroups groups_;
  Counters counters_;
};

// Plans of steps of `sequences` sequences, each with `count` rows after `context` tokens.
struct Plan {
  std::vector<int32_t> row_sequence, row_position, row_token, row_terms, row_gate;
  std::vector<int32_t> sequence_base, sequence_runs{0}, run_ref, run_tokens, pages, term_sets;
  std::vector<uint8_t> run_kind;
  std::vector<int32_t> entry_row, entry_target, entry_top, entry_bias{0}, entry_history{0},
      entry_mask;
  std::vector<float> entry_params;
  std::vector<uint32_t> entry_seed;

  Plan(int32_t sequences, int32_t context, int32_t count, const std::vector<TermHandle>& handles)
      : term_sets(handles) {
    const int32_t tokens = context + count, each = (tokens + kPageTokens - 1) / kPageTokens;
    for (int32_t s = 0; s < sequences; ++s) {
      sequence_base.push_back(0);
      run_kind.push_back(0);
      run_ref.push_back(s * each);
      run_tokens.push_back(tokens);
      sequence_runs.push_back(s + 1);
      for (int32_t p = 0; p < each; ++p) pages.push_back(s * each + p);
      for (int32_t i = 0; i < count; ++i) {
        row_sequence.push_back(s);
        row_position.push_back(context + i);
        row_token.push_back((s * 1009 + i * 31) % 49152);
        row_terms.push_back(handles.empty() ? -1 : s % static_cast<int32_t>(handles.size()));
        row_gate.push_back(-1);
      }
      entry_row.push_back(static_cast<int32_t>(row_token.size()) - 1);
      entry_target.push_back(kTargetSample);
      entry_top.push_back(-1);
      entry_params.insert(entry_params.end(), {0, 0, 1, 0, 1, 0, 0, 0});
      entry_seed.insert(entry_seed.end(), 4, 0);
      entry_bias.push_back(0);
      entry_history.push_back(0);
      entry_mask.push_back(-1);
    }
  }

  StepPlan view() const {
    StepPlan plan;
    plan.row_sequence = row_sequence;
    plan.row_position = row_position;
    plan.row_token = row_token;
    plan.row_terms = row_terms;
    plan.row_gate = row_gate;
    plan.sequence_base = sequence_base;
    plan.sequence_runs = sequence_runs;
    plan.run_kind = run_kind;
    plan.run_ref = run_ref;
    plan.run_tokens = run_tokens;
    plan.pages = pages;
    plan.term_sets = term_sets;
    plan.entry_row = entry_row;
    plan.entry_target = entry_target;
    plan.entry_top_logprobs = entry_top;
    plan.entry_params = entry_params;
    plan.entry_seed = entry_seed;
    plan.entry_bias = entry_bias;
    plan.entry_history = entry_history;
    plan.entry_mask = entry_mask;
    return plan;
  }
};

// Whole steps through the backend; attention alone is one of its operations.
class Steps {
 public:
  explicit Steps(Rig& rig) : rig_(rig) {
    BackendOptions options;
    options.model = rig.model;
    options.threads = rig.pool.threads();
    options.format = rig.format;
    options.kv_pages = 32 * 66;
    options.max_rows = kMaxRows;
    options.max_entries = 64;
    backend_ = make_backend_with(rig.kernels, options);
    fill(backend_->weights(), rig.model);
    for (uint32_t i = 0; i < kAdapters; ++i) {
      handles_.push_back(backend_->terms().load_terms(lora(rig.model, i)));
    }
  }

  Timing time(const Plan& plan) {
    const StepPlan view = plan.view();
    StepResult result;
    return time_of([&] { run_step(rig_.model, backend_->ops(), view, result); }, 9, 6.0);
  }

  // Arithmetic and bytes of one step.
  void print_step(const std::string& name, int32_t sequences, int32_t context, int32_t count,
                  bool adapters) {
    const Plan plan(sequences, context, count, adapters ? handles_ : std::vector<TermHandle>{});
    const Counters before = backend_->counters();
    StepResult result;
    run_step(rig_.model, backend_->ops(), plan.view(), result);
    const Counters after = backend_->counters();
    const Timing t = time(plan);
    const double rows = static_cast<double>(sequences) * count;
    const double head = static_cast<double>(rig_.model.vocab) * rig_.model.hidden;
    const double layers = static_cast<double>(rig_.model.layers.size());
    const double linears = layers * 3538944;  // weights of one layer's linears
    const double keys = static_cast<double>(sequences) * count * (context + (count + 1) / 2.0);
    const double attention = layers * 4 * rig_.model.q_width() * keys;
    const double kv =
        layers * 4 * rig_.model.kv_width() * static_cast<double>(sequences) * (context + count);
    const double terms = static_cast<double>(after.term_bytes_read - before.term_bytes_read);
    const double bytes =
        static_cast<double>(after.base_bytes_read - before.base_bytes_read) + terms + kv;
    const double flops =
        2 * (linears * rows + head * sequences) + attention + (adapters ? rows * 9.77e6 : 0);
    print_share(name.c_str(), t.seconds, flops, bytes, rig_.peak(), rig_.bounds.read_gbs, t);
    std::printf("  %-34s %9.1f tok/s\n", "", rows / t.seconds);
  }

  // Rows of two sequences together must be those of each alone.
  bool consistent() {
    StepResult together, alone;
    run_step(rig_.model, backend_->ops(), Plan(2, 0, 40, {}).view(), together);
    run_step(rig_.model, backend_->ops(), Plan(1, 0, 40, {}).view(), alone);
    return together.tokens[0] == alone.tokens[0];
  }

  void print_steps() {
    std::printf("whole steps (%s)%s\n", rig_.weights(),
                consistent() ? "" : "  WRONG: rows depend on their neighbours");
    print_step("prefill 512", 1, 0, 512, false);
    for (const int32_t batch : {1, 4, 16, 32, 64}) {
      print_step("decode, batch " + std::to_string(batch) + ", context 128", batch, 128, 1, false);
    }
    print_step("decode, batch 16, context 1024", 16, 1024, 1, false);
    print_step("decode, 16 LoRA r16, context 128", 16, 128, 1, true);
    print_step("prefill 512, LoRA r16", 1, 0, 512, true);
  }

  // Median of each operation over some steps, and its share of their sum. With adapters, what they
  // add to the linears is told apart.
  Profile print_profile(const std::string& name, const Plan& plan) {
    constexpr size_t kRuns = 7;
    ProfiledOps ops(backend_->ops());
    const StepPlan view = plan.view();
    std::array<std::array<double, kRuns>, kOpCount> runs;
    for (size_t i = 0; i <= kRuns; ++i) {
      StepResult result;
      wait_for_idle();
      run_step(rig_.model, ops, view, result);
      const Profile one = ops.take();
      for (size_t op = 0; i > 0 && op < one.size(); ++op) runs[op][i - 1] = one[op];
    }
    Profile profile;
    double total = 0;
    for (size_t op = 0; op < profile.size(); ++op) {
      std::sort(runs[op].begin(), runs[op].end());
      total += profile[op] = runs[op][kRuns / 2];
    }
    std::printf("  %s: %.3f ms\n", name.c_str(), total * 1e3);
    for (size_t op = 0; op < profile.size(); ++op) {
      std::printf("    %-28s %9.3f ms %5.1f %%\n", op_name(static_cast<Op>(op)), profile[op] * 1e3,
                  100 * profile[op] / total);
    }
    std::fflush(stdout);
    return profile;
  }

  void print_profiles() {
    std::printf("operations of a step (%s)\n", rig_.weights());
    const auto linears = [](const Profile& of) {
      double sum = 0;
      for (const Op op : {Op::kQkv, Op::kOut, Op::kGateUp, Op::kDown})
        sum += of[static_cast<size_t>(op)];
      return sum;
    };
    for (const auto& [sequences, context, count] : {std::tuple{1, 0, 512},
                                                    {1, 128, 1},
                                                    {16, 128, 1},
                                                    {32, 128, 1},
                                                    {1, 1024, 1},
                                                    {16, 1024, 1},
                                                    {32, 1024, 1}}) {
      const std::string name = count > 1 ? "prefill " + std::to_string(count)
                                         : "decode, batch " + std::to_string(sequences) +
                                               ", context " + std::to_string(context);
      const Profile base = print_profile(name, Plan(sequences, context, count, {}));
      if (context > 128 || sequences == 1) continue;
      const Profile with =
          print_profile(name + ", LoRA r16", Plan(sequences, context, count, handles_));
      std::printf("    terms: %.3f ms\n", (linears(with) - linears(base)) * 1e3);
    }
  }

  void print_attention() {
    std::printf("attention of all layers (bf16)\n");
    for (const auto& [sequences, context, count] :
         {std::tuple{16, 128, 1}, {16, 1024, 1}, {1, 1024, 1}, {1, 0, 512}}) {
      const Plan plan(sequences, context, count, {});
      const StepPlan view = plan.view();
      backend_->ops().begin(view);
      const auto layers = static_cast<int32_t>(rig_.model.layers.size());
      const Timing t = time_of([&] {
        for (int32_t layer = 0; layer < layers; ++layer) backend_->ops().attention(layer);
      });
      const double keys = static_cast<double>(sequences) * count * (context + (count + 1) / 2.0);
      print_share((std::to_string(sequences) + " x " + std::to_string(count) + " rows, context " +
                   std::to_string(context))
                      .c_str(),
                  t.seconds, layers * 4.0 * rig_.model.q_width() * keys,
                  layers * 4.0 * rig_.model.kv_width() * sequences * (context + count),
                  rig_.bounds.f32_gflops, rig_.bounds.read_gbs, t);
    }
  }

 private:
  Rig& rig_;
  std::unique_ptr<Backend> backend_;
  std::vector<TermHandle> handles_;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word.starts_with("isa=")) {
      options.isa = word.substr(4);
    } else if (word.starts_with("threads=")) {
      options.threads = std::stoi(std::string(word.substr(8)));
    } else if (word == "weights=int8") {
      options.format = WeightFormat::kInt8;
    } else if (word == "weights=q4") {
      options.format = WeightFormat::kQ4;
    } else if (word == "weights=bf16") {
      options.format = WeightFormat::kPlain;
    } else if (word.starts_with("wait=")) {
      wait_budget_s = std::stod(std::string(word.substr(5)));
    } else {
      options.parts.emplace_back(word);
    }
  }
  return options;
}

void run(const Options& options) {
  Rig rig(options);
  use_cpu_time = rig.pool.threads() == 1;
  print_bounds(rig);
  if (options.wants("linears")) Linears(rig).print();
  if (options.wants("terms")) {
    print_terms(rig.model, rig.kernels, rig.pool, rig.bounds.read_gbs);
  }
  if (options.wants("attention") || options.wants("steps") || options.wants("profile")) {
    Steps steps(rig);
    if (options.wants("attention")) steps.print_attention();
    if (options.wants("steps")) steps.print_steps();
    if (options.wants("profile")) steps.print_profiles();
  }
}

}  // namespace
}  // namespace manyfold::bench

int main(int argc, char** argv) {
  try {
    manyfold::bench::run(manyfold::bench::parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
