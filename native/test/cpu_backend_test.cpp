// The fast CPU backend, every tier of the machine and the emulated AVX-512 ones, against the plain
// reference: random tiny models, adapters of every kind in one batch, chunked prompts; and against
// itself: a row's bits do not depend on neighbours, chunks, pages or threads.
#include <cmath>

#include "../core/check_plan.h"
#include "../core/error.h"
#include "../cpu/cpu_backend.h"
#include "../cpu/fast_backend.h"
#include "../model/forward.h"
#include "check.h"
#include "kernel_helpers.h"
#include "tiny_model.h"

namespace manyfold {
namespace {

using test::PlanArrays;
using test::SequencePart;

constexpr int32_t kPages = 96, kRows = 240;

using test::all_kernels;
using test::float_kernels;

// How a backend holds its weights.
struct Held {
  Dtype dtype;
  WeightFormat format = WeightFormat::kPlain;
  KvFormat kv = KvFormat::kPlain;

  Held(Dtype plain) : dtype(plain) {}
  Held(Dtype type, KvFormat of) : dtype(type), kv(of) {}
  Held(Dtype type, WeightFormat of) : dtype(type), format(of) {}
  std::string name() const {
    return std::string(dtype == Dtype::kF32 ? " f32" : " bf16") +
           (format == WeightFormat::kInt8 ? " int8" : "") +
           (kv == KvFormat::kInt8 ? " int8 kv" : "");
  }
};
const Held kAllHeld[] = {Dtype::kF32,
                         Dtype::kBf16,
                         {Dtype::kBf16, WeightFormat::kInt8},
                         {Dtype::kF32, KvFormat::kInt8},
                         {Dtype::kBf16, KvFormat::kInt8}};

// The tiers that differ with weights held so.
std::vector<const Kernels*> kernels_of(const Held& held) {
  return held.format == WeightFormat::kPlain ? float_kernels() : all_kernels();
}

// A backend of one tiny model with all kinds of adapters loaded.
struct Setup {
  ModelConfig model;
  std::unique_ptr<Backend> backend;
  LoadedTerms loaded;
  std::vector<TermHandle> handles;

  // kernels null: the reference.
  Setup(const ModelConfig& config, const Kernels* kernels, Held held, int32_t threads = 2)
      : model(config) {
    BackendOptions options;
    options.model = model;
    options.dtype = held.dtype;
    options.format = held.format;
    options.kv_format = held.kv;
    options.threads = threads;
    options.kv_pages = kPages;
    options.max_rows = kRows;
    options.max_entries = kRows;
    backend =
        kernels == nullptr ? make_reference_backend(options) : make_backend_with(*kernels, options);
    test::fill_weights(model, backend->weights());
    for (int32_t kind = 0; kind < test::kTermKinds; ++kind) {
      TermSet terms = test::tiny_terms(model, kind);
      const TermFacts facts = term_facts(terms);
      handles.push_back(backend->terms().load_terms(std::move(terms)));
      loaded.emplace(handles.back(), facts);
    }
  }

  // Rows first .. first + count - 1 of a sequence of `kind` (-1: the base) on pages from first_page
  // on.
  SequencePart part(int32_t kind, int32_t first, int32_t count, int32_t first_page) const {
    SequencePart part;
    part.tokens = test::random_tokens(model.vocab, 200, static_cast<uint32_t>(kind + 10));
    part.first = first;
    part.count = count;
    for (int32_t p = 0; p * kPageTokens < first + count; ++p) part.pages.push_back(first_page + p);
    if (kind < 0) return part;
    part.terms = handles[static_cast<size_t>(kind)];
    part.shared_prefix = loaded.at(part.terms).shared_prefix;
    part.gated_prefix = loaded.at(part.terms).gated_prefix;
    return part;
  }

  std::vector<float> run(const PlanArrays& arrays) {
    const StepPlan plan = arrays.view();
    check_plan(plan, model, {kPages, kRows, kRows}, loaded);
    StepResult result;
    run_step(model, backend->ops(), plan, result);
    return result.raw_logits;
  }

  std::vector<float> run(const SequencePart& part) {
    PlanArrays plan;
    test::add_sequence(plan, part);
    return run(plan);
  }
};

// Base and every kind in one batch, prompts of different lengths, rank gates on some rows.
PlanArrays mixed_plan(const Setup& setup, int32_t first, int32_t count) {
  PlanArrays plan;
  int32_t page = 0;
  for (int32_t kind = -1; kind < test::kTermKinds; ++kind) {
    test::add_sequence(plan, setup.part(kind, first, count, page));
    page += 8;
  }
  plan.gate_width = 3;
  plan.rank_gates = {0.5f, 2.0f, -1.0f, 0.0f, 1.5f, 1.0f};
  for (size_t r = 0; r < plan.row_gate.size(); ++r) {
    plan.row_gate[r] = r % 3 == 0 ? static_cast<int32_t>(r % 2) : -1;
  }
  return plan;
}

double relative_error(const std::vector<float>& found, const std::vector<float>& expected) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double d = static_cast<double>(found[i]) - expected[i];
    error += d * d;
    norm += static_cast<double>(expected[i]) * expected[i];
  }
  return std::sqrt(error / norm);
}

ModelConfig wide_heads() {
  ModelConfig model = test::tiny_model();
  model.head_dim = 24;
  model.heads = 4;
  model.kv_heads = 4;
  model.hidden = 72;
  model.ffn = 130;
  model.vocab = 150;
  model.qk_norm = false;
  model.post_norms = false;
  model.tied_head = true;
  model.embed_scale = 1.0f;
  model.activation = Activation::kSilu;
  for (RopeTable& rope : model.ropes) {
    rope.inv_freq.clear();
    for (int32_t i = 0; i < 12; ++i) rope.inv_freq.push_back(1.0f / static_cast<float>(1 + i * i));
  }
  return model;
}

TEST(fast_backend_equals_the_reference) {
  for (const ModelConfig& model : {test::tiny_model(), wide_heads()}) {
    for (const Held& held : kAllHeld) {
      Setup reference(model, nullptr, held);
      const std::vector<float> first = reference.run(mixed_plan(reference, 0, 20));
      const std::vector<float> second = reference.run(mixed_plan(reference, 20, 1));
      for (const Kernels* kernels : kernels_of(held)) {
        Setup fast(model, kernels, held);
        const std::string name = kernels->isa + held.name();
        // bf16 keys differ where a value lies on a rounding border; dot products of bf16 round
        // their inputs too, and those of int8 to far fewer values.
        const bool int8 = held.format == WeightFormat::kInt8;
        // Keys in int8 likewise, which the AMX tier multiplies as bf16.
        const bool int8_kv = held.kv == KvFormat::kInt8;
        const bool rounds =
            int8 || (kernels->rounds_inputs && (held.dtype == Dtype::kBf16 || int8_kv));
        const double limit = rounds ? 2e-2 : held.dtype == Dtype::kBf16 || int8_kv ? 1e-3 : 3e-6;
        const double prefill = relative_error(fast.run(mixed_plan(fast, 0, 20)), first);
        const double decode = relative_error(fast.run(mixed_plan(fast, 20, 1)), second);
        CHECK_THAT(prefill < limit,
                   name + " prefill error " + std::to_string(prefill * 1e6) + "e-6");
        CHECK_THAT(decode < limit, name + " decode error " + std::to_string(decode * 1e6) + "e-6");
      }
    }
  }
}

TEST(fast_backend_rows_do_not_depend_on_company) {
  for (const Held& held : kAllHeld) {
    for (const Kernels* kernels : kernels_of(held)) {
      Setup setup(test::tiny_model(), kernels, held);
      std::vector<std::vector<float>> alone;
      for (int32_t kind = -1; kind < test::kTermKinds; ++kind) {
        alone.push_back(setup.run(setup.part(kind, 0, 20, 3)));
      }
      PlanArrays together;
      for (int32_t kind = test::kTermKinds - 1; kind >= -1; --kind) {
        test::add_sequence(together, setup.part(kind, 0, 20, (kind + 1) * 8));
      }
      const std::vector<float> mixed = setup.run(together);
      const size_t length = alone[0].size();
      for (int32_t kind = -1; kind < test::kTermKinds; ++kind) {
        const size_t place = static_cast<size_t>(test::kTermKinds - 1 - kind) * length;
        const std::vector<float> part(mixed.begin() + static_cast<ptrdiff_t>(place),
                                      mixed.begin() + static_cast<ptrdiff_t>(place + length));
        CHECK_THAT(part == alone[static_cast<size_t>(kind + 1)],
                   std::string(kernels->isa) + ": bits of kind " + std::to_string(kind));
      }
    }
  }
}

TEST(fast_backend_rows_do_not_depend_on_chunks_threads_or_pages) {
  // Kinds that act in attention want three tiles of keys, the others only some chunks.
  const std::vector<std::pair<int32_t, int32_t>> kinds = {
      {-1, 130}, {1, 130}, {3, 130}, {4, 130}, {5, 20}, {6, 20}, {7, 20}, {8, 20}, {9, 20}};
  for (const Held& held : kAllHeld) {
    for (const Kernels* kernels : kernels_of(held)) {
      const bool emulated = std::string(kernels->isa).starts_with("emulated");
      Setup one(test::tiny_model(), kernels, held, 1);
      std::vector<std::vector<float>> whole;
      for (const auto& [kind, length] : kinds) {
        whole.push_back(one.run(one.part(kind, 0, length, 0)));
      }
      for (const auto& [threads, chunk] : {std::pair{2, 1}, {2, 64}, {3, 7}}) {
        if (emulated && chunk == 1) continue;  // the same path as in the fast tiers, slowly
        Setup other(test::tiny_model(), kernels, held, threads);
        for (size_t i = 0; i < kinds.size(); ++i) {
          const auto& [kind, length] = kinds[i];
          std::vector<float> joined;
          for (int32_t first = 0; first < length; first += chunk) {
            SequencePart part = other.part(kind, first, std::min(chunk, length - first), 0);
            for (int32_t& page : part.pages) page = (page * 5 + 3) % 23;  // scattered
            const std::vector<float> logits = other.run(part);
            joined.insert(joined.end(), logits.begin(), logits.end());
          }
          CHECK_THAT(joined == whole[i], std::string(kernels->isa) + held.name() +
                                             ": bits with chunks of " + std::to_string(chunk) +
                                             ", " + std::to_string(threads) + " threads, kind " +
                                             std::to_string(kind));
        }
      }
    }
  }
}

TEST(fast_backend_counts_each_stream_once) {
  for (const Kernels* kernels : all_kernels()) {
    Setup setup(test::tiny_model(), kernels, Dtype::kBf16);
    const int64_t layers = static_cast<int64_t>(setup.model.layers.size());
    PlanArrays plan;
    for (int32_t i = 0; i < 4; ++i) {
      test::add_sequence(plan, setup.part(i % 2 == 0 ? 0 : -1, 0, 5, i * 8));
    }
    setup.run(plan);
    Counters counters = setup.backend->counters();
    CHECK(counters.steps == 1 && counters.rows == 20);
    CHECK(counters.base_linear_reads == layers * 7 + 1);
    CHECK(counters.term_reads == layers * 7 + 2);  // every linear, the head, the embedding
    CHECK(counters.base_bytes_read > 0 && counters.term_bytes_read > 0);
    CHECK(counters.single_row_tiles == 0 && counters.multi_row_tiles > 0);

    Setup single(test::tiny_model(), kernels, Dtype::kBf16);
    single.run(single.part(-1, 0, 1, 0));
    counters = single.backend->counters();
    CHECK(counters.single_row_tiles > 0 && counters.multi_row_tiles == 0);
    CHECK(counters.term_reads == 0 && counters.term_bytes_read == 0);
  }
}

TEST(fast_backend_gives_weights_back) {
  const ModelConfig model = test::tiny_model();
  for (const Held& held : kAllHeld) {
    for (const Kernels* kernels : kernels_of(held)) {
      Setup reference(model, nullptr, held), fast(model, kernels, held);
      for (const SiteRef site :
           {SiteRef{-1, Site::kEmbedding}, SiteRef{-1, Site::kHead}, SiteRef{1, Site::kQ},
            SiteRef{2, Site::kDown}, SiteRef{0, Site::kMlpNorm}}) {
        const WeightShape shape = weight_shape(model, site.site);
        const auto count = static_cast<size_t>(shape.rows) * static_cast<size_t>(shape.cols);
        std::vector<float> expected(count), found(count);
        reference.backend->weights().read_weight(site, WeightPart::kWeight, 0, shape.rows,
                                                 expected.data());
        fast.backend->weights().read_weight(site, WeightPart::kWeight, 0, shape.rows, found.data());
        CHECK_THAT(found == expected, std::string(kernels->isa) + ": " + site_label(site));
      }
      std::vector<float> expected(static_cast<size_t>(model.kv_width())), found(expected.size());
      reference.backend->weights().read_weight({1, Site::kK}, WeightPart::kBias, 0, 1,
                                               expected.data());
      fast.backend->weights().read_weight({1, Site::kK}, WeightPart::kBias, 0, 1, found.data());
      CHECK(found == expected);
    }
  }
}

TEST(fast_backend_refuses_wrong_weights_and_terms) {
  Setup setup(test::tiny_model(), all_kernels().back(), Dtype::kBf16);
  const RowReader zeros = [](int32_t, int32_t, float*) {};
  const auto refused = [](const auto& call) {
    try {
      call();
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInvalidArgument;
    }
    return false;
  };
  WeightStore& weights = setup.backend->weights();
  CHECK(refused([&] { weights.add_weight({0, Site::kQ}, WeightPart::kWeight, 60, 40, zeros); }));
  CHECK(refused([&] { weights.add_weight({0, Site::kQ}, WeightPart::kWeight, 60, 41, zeros); }));
  CHECK(refused([&] { weights.add_weight({9, Site::kQ}, WeightPart::kWeight, 60, 40, zeros); }));
  CHECK(refused(
      [&] { weights.add_weight({0, Site::kAttention}, WeightPart::kWeight, 1, 1, zeros); }));
  std::vector<float> out(100000);
  CHECK(
      refused([&] { weights.read_weight({0, Site::kQ}, WeightPart::kWeight, 59, 2, out.data()); }));
  CHECK(refused([&] { weights.read_weight({0, Site::kO}, WeightPart::kBias, 0, 1, out.data()); }));

  TermStore& terms = setup.backend->terms();
  const size_t bytes = terms.term_bytes();
  const int32_t sets = terms.term_sets();
  const TermHandle handle = terms.load_terms(test::tiny_terms(setup.model, 0, 5));
  CHECK(terms.term_sets() == sets + 1 && terms.term_bytes() > bytes);
  terms.free_terms(handle);
  CHECK(terms.term_sets() == sets && terms.term_bytes() == bytes);
  CHECK(refused([&] { terms.free_terms(handle); }));
}

// Two sets bring the same projections under one name, as VeRA's adapters do: they are held once,
// go with the last set, and change no bit.
TEST(fast_backend_holds_shared_values_once) {
  const auto with_names = [](TermSet terms) {
    int32_t number = 0;
    for (Term& term : terms) {
      LowRank* op = std::get_if<LowRank>(&term.op);
      if (op == nullptr || !is_linear_site(term.site.site)) continue;
      op->a.shared = "a" + std::to_string(number);
      op->b.shared = "b" + std::to_string(number++);
    }
    return terms;
  };
  for (const Kernels* kernels : all_kernels()) {
    Setup setup(test::tiny_model(), kernels, Dtype::kF32);
    TermStore& terms = setup.backend->terms();
    const auto load = [&](TermSet set) {
      const TermFacts facts = term_facts(set);
      const size_t before = terms.term_bytes();
      const TermHandle handle = terms.load_terms(std::move(set));
      setup.loaded[handle] = facts;
      return std::pair{handle, terms.term_bytes() - before};
    };
    const size_t empty = terms.term_bytes();
    const auto [plain, plain_bytes] = load(test::tiny_terms(setup.model, 0));
    const auto [first, first_bytes] = load(with_names(test::tiny_terms(setup.model, 0)));
    const auto [second, second_bytes] = load(with_names(test::tiny_terms(setup.model, 0)));
    CHECK(first_bytes * 10 > plain_bytes * 9);
    CHECK(second_bytes * 2 < first_bytes);
    const auto logits = [&](TermHandle handle) {
      SequencePart part = setup.part(0, 0, 9, 0);
      part.terms = handle;
      return setup.run(part);
    };
    const std::vector<float> expected = logits(plain);
    CHECK(logits(first) == expected);
    terms.free_terms(first);
    CHECK(logits(second) == expected);
    for (const TermHandle handle : {plain, second}) terms.free_terms(handle);
    CHECK(terms.term_bytes() == empty);
  }
}

TEST(fast_backend_says_what_memory_it_lacks) {
  BackendOptions options;
  options.model = test::tiny_model();
  options.kv_pages = 2000000000;
  options.max_rows = options.max_entries = 4;
  bool refused = false;
  try {
    make_backend_with(*all_kernels().back(), options);
  } catch (const Error& error) {
    refused = error.code() == ErrorCode::kOutOfMemory &&
              std::string(error.what()).find("2000000000 pages") != std::string::npos;
  }
  CHECK(refused);
}

}  // namespace
}  // namespace manyfold
