// Attention and row kernels of every tier against float64: all head sizes, grouped heads, windows,
// prefixes with a shared and with their own softmax, pages in any order; and bits that do not
// depend on blocks of rows.
#include <algorithm>
#include <limits>

#include "../core/step.h"
#include "../cpu/int8_kv.h"
#include "check.h"
#include "kernel_helpers.h"

namespace manyfold {
namespace {

using test::ErrorNorm;

// Keys and values in pages, with the values as stored.
struct Keys {
  KvType type;
  int32_t tokens, head_dim, position;
  std::vector<float> k, v;  // [tokens, head_dim]
  std::vector<int32_t> pages;
  std::vector<std::byte> k_pages, v_pages;

  Keys(const Kernels& kernels, KvType kind, int32_t n, int32_t width, int32_t first, uint32_t seed)
      : type(kind),
        tokens(n),
        head_dim(width),
        position(first),
        k(test::random_floats(static_cast<size_t>(n * width), seed)),
        v(test::random_floats(static_cast<size_t>(n * width), seed + 1)) {
    const int32_t count = (n + kPageTokens - 1) / kPageTokens;
    const size_t page_bytes = kv_page_bytes(type, width);
    // Slots that nobody wrote hold NaN, as memory may; kernels read up to one vector past the last
    // page.
    k_pages.assign(static_cast<size_t>(count + 2) * page_bytes + 64, std::byte{0xff});
    v_pages = k_pages;
    for (int32_t i = 0; i < count; ++i) pages.push_back((i * 7 + 3) % (count + 2));
    std::vector<int32_t> free_pages;
    std::sort(pages.begin(), pages.end());
    const bool distinct = std::unique(pages.begin(), pages.end()) == pages.end();
    if (!distinct) {
      for (int32_t i = 0; i < count; ++i) pages[static_cast<size_t>(i)] = i;
    }
    std::reverse(pages.begin(), pages.end());
    for (int32_t t = 0; t < n; ++t) {
      const size_t page =
          static_cast<size_t>(pages[static_cast<size_t>(t / kPageTokens)]) * page_bytes;
      kernels.append_key(type, k.data() + t * width, width, t % kPageTokens, k_pages.data() + page);
      kernels.append_value(type, v.data() + t * width, width, t % kPageTokens,
                           v_pages.data() + page);
    }
    round(k);
    round(v);
  }

  // To what the pages hold.
  void round(std::vector<float>& values) const {
    if (type == KvType::kBf16) test::round_all(values, Dtype::kBf16);
    for (int32_t t = 0; type == KvType::kInt8 && t < tokens; ++t) {
      float* token = values.data() + t * head_dim;
      const float scale = int8_kv_scale(token, head_dim), inverse = int8_kv_inverse(scale);
      for (int32_t i = 0; i < head_dim; ++i) {
        token[i] = static_cast<float>(int8_kv(token[i], inverse)) * scale;
      }
    }
  }

  KeySegment segment() const {
    return {type, k_pages.data(), v_pages.data(), pages.data(), tokens, position};
  }
};

struct Query {
  int32_t heads, head_dim, window;
  float scale;
  std::vector<int32_t> positions;
  std::vector<float> q;  // [rows, heads · head_dim]
};

// Σ softmax · v over the keys that the row sees, in float64.
std::vector<double> attend(const Query& query, size_t row, int32_t head,
                           const std::vector<const Keys*>& segments, bool causal) {
  std::vector<double> out(static_cast<size_t>(query.head_dim), 0.0);
  const float* q =
      query.q.data() + (static_cast<int64_t>(row) * query.heads + head) * query.head_dim;
  double total = 0;
  for (const bool second : {false, true}) {
    static thread_local double highest;
    if (!second) highest = -std::numeric_limits<double>::infinity();
    for (const Keys* keys : segments) {
      for (int32_t t = 0; t < keys->tokens; ++t) {
        const int32_t distance = query.positions[row] - keys->position - t;
        if (causal && (distance < 0 || (query.window > 0 && distance >= query.window))) continue;
        double score = 0;
        for (int32_t i = 0; i < query.head_dim; ++i) {
          score += static_cast<double>(q[i]) * keys->k[static_cast<size_t>(t * query.head_dim + i)];
        }
        score *= query.scale;
        if (!second) {
          highest = std::max(highest, score);
          continue;
        }
        const double weight = std::exp(score - highest);
        total += weight;
        for (int32_t i = 0; i < query.head_dim; ++i) {
          out[static_cast<size_t>(i)] +=
              weight * keys->v[static_cast<size_t>(t * query.head_dim + i)];
        }
      }
    }
  }
  for (double& value : out) value /= total;
  return out;
}

std::vector<float> run(const Kernels& kernels, const Query& query, size_t row0, size_t rows,
                       const std::vector<KeySegment>& shared, const std::vector<KeySegment>& gated,
                       const std::vector<float>& gates) {
  const int64_t stride = int64_t{query.heads} * query.head_dim;
  std::vector<float> out(rows * static_cast<size_t>(stride), std::nanf(""));
  const auto queries = static_cast<int32_t>(rows) * query.heads;
  std::vector<float> scratch(
      static_cast<size_t>(kernels.attention_scratch(queries, query.head_dim)), std::nanf(""));
  kernels.attention({.q = query.q.data() + static_cast<int64_t>(row0) * stride,
                     .q_stride = stride,
                     .out = out.data(),
                     .out_stride = stride,
                     .positions = query.positions.data() + row0,
                     .rows = static_cast<int32_t>(rows),
                     .heads = query.heads,
                     .head_dim = query.head_dim,
                     .scale = query.scale,
                     .window = query.window,
                     .shared = shared.data(),
                     .shared_count = static_cast<int32_t>(shared.size()),
                     .gated = gated.data(),
                     .gates = gates.data(),
                     .gated_count = static_cast<int32_t>(gated.size()),
                     .scratch = scratch.data()});
  return out;
}

const std::string amx = "amx";

struct Case {
  int32_t head_dim, heads, window, prefix, gated;
  std::vector<int32_t> positions;  // the last one is the newest token
};

const char* type_name(KvType type) {
  return type == KvType::kF32 ? " f32 " : type == KvType::kBf16 ? " bf16 " : " int8 ";
}

void check_case(const Kernels& kernels, KvType type, const Case& c) {
  const std::string name = std::string(kernels.isa) + type_name(type) + "head_dim " +
                           std::to_string(c.head_dim) + ", heads " + std::to_string(c.heads) +
                           ", window " + std::to_string(c.window) + ", rows " +
                           std::to_string(c.positions.size());
  Query query{c.heads,     c.head_dim, c.window, 0.5f / std::sqrt(static_cast<float>(c.head_dim)),
              c.positions, {}};
  query.q = test::random_floats(c.positions.size() * static_cast<size_t>(c.heads * c.head_dim), 21);
  const Keys pages(kernels, type, c.positions.back() + 1 - c.prefix, c.head_dim, c.prefix, 22);
  const Keys prefix(kernels, KvType::kF32, std::max(c.prefix, 1), c.head_dim, 0, 24);
  const Keys own(kernels, KvType::kBf16, std::max(c.gated, 1), c.head_dim, 0, 26);
  std::vector<const Keys*> shared;
  std::vector<KeySegment> shared_segments, gated_segments;
  if (c.prefix > 0) shared.push_back(&prefix);
  shared.push_back(&pages);
  for (const Keys* keys : shared) shared_segments.push_back(keys->segment());
  const std::vector<float> gates{0.7f};
  if (c.gated > 0) gated_segments.push_back(own.segment());

  const size_t rows = c.positions.size();
  const std::vector<float> out =
      run(kernels, query, 0, rows, shared_segments, gated_segments, gates);
  ErrorNorm error;
  for (size_t row = 0; row < rows; ++row) {
    for (int32_t head = 0; head < c.heads; ++head) {
      std::vector<double> expected = attend(query, row, head, shared, true);
      if (c.gated > 0) {
        const std::vector<double> extra = attend(query, row, head, {&own}, false);
        for (size_t i = 0; i < expected.size(); ++i) expected[i] += gates[0] * extra[i];
      }
      for (size_t i = 0; i < expected.size(); ++i) {
        const size_t place =
            (row * static_cast<size_t>(c.heads) + static_cast<size_t>(head)) * expected.size() + i;
        error.add(out[place], expected[i]);
      }
    }
  }
  // Where pairs of bf16 are multiplied, queries and weights have sixteen bits. The AMX tier
  // multiplies int8 so, too.
  const bool pairs = kernels.rounds_inputs && (type == KvType::kBf16 || c.gated > 0 ||
                                               (type == KvType::kInt8 && kernels.isa == amx));
  CHECK_THAT(error.relative() < (pairs ? 8e-6 : 2e-6),
             name + ": error " + std::to_string(error.relative() * 1e6) + "e-6");

  std::vector<float> joined;
  for (size_t row = 0; row < rows; ++row) {
    const std::vector<float> one =
        run(kernels, query, row, 1, shared_segments, gated_segments, gates);
    joined.insert(joined.end(), one.begin(), one.end());
  }
  CHECK_THAT(joined == out, name + ": bits differ row by row");
}

std::vector<int32_t> range(int32_t first, int32_t count) {
  std::vector<int32_t> positions(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) positions[static_cast<size_t>(i)] = first + i;
  return positions;
}

TEST(attention_equals_float64) {
  const Case cases[] = {{64, 3, 0, 0, 0, {0}},
                        {64, 3, 0, 0, 0, {200}},
                        {64, 3, 0, 0, 0, range(0, 40)},
                        {64, 3, 0, 0, 0, range(150, 17)},
                        {24, 1, 0, 0, 0, range(60, 9)},
                        {40, 2, 0, 0, 0, range(100, 5)},
                        {80, 4, 0, 0, 0, range(127, 3)},
                        {96, 7, 0, 0, 0, {64}},
                        {128, 8, 0, 0, 0, {131}},
                        {256, 2, 0, 0, 0, range(62, 6)},
                        {10, 3, 0, 0, 0, range(30, 4)},
                        {2, 1, 0, 0, 0, range(3, 2)},
                        {64, 3, 20, 0, 0, range(0, 90)},
                        {64, 1, 100, 0, 0, range(180, 3)},
                        {64, 2, 1, 0, 0, range(63, 3)},
                        {64, 3, 0, 5, 0, range(5, 20)},
                        {64, 3, 30, 70, 0, range(70, 60)},
                        {64, 3, 0, 0, 70, range(90, 4)},
                        {40, 2, 9, 33, 12, range(100, 7)}};
  for (const Kernels* kernels : test::all_kernels()) {
    for (const KvType type : {KvType::kF32, KvType::kBf16, KvType::kInt8}) {
      for (const Case& c : cases) check_case(*kernels, type, c);
    }
  }
}

// Scores of several hundred: the maximum must be taken out before the exponential, tile by tile.
TEST(attention_bears_large_scores) {
  for (const Kernels* kernels : test::all_kernels()) {
    Query query{1, 16, 0, 100.0f, {150}, test::random_floats(16, 3)};
    const Keys keys(*kernels, KvType::kF32, 151, 16, 0, 5);
    const std::vector<float> out = run(*kernels, query, 0, 1, {keys.segment()}, {}, {});
    const std::vector<double> expected = attend(query, 0, 0, {&keys}, true);
    for (size_t i = 0; i < 16; ++i) CHECK_CLOSE(out[i], expected[i], 1e-3);
  }
}

TEST(rows_rms_norm_equals_float64) {
  for (const Kernels* kernels : test::all_kernels()) {
    for (const int32_t n : {1, 7, 16, 24, 63, 64, 65, 576, 577}) {
      const std::vector<float> x = test::random_floats(static_cast<size_t>(n), 1, 3);
      const std::vector<float> w = test::random_floats(static_cast<size_t>(n), 2);
      // One more place, to see that nothing is written past the end.
      std::vector<float> out(static_cast<size_t>(n) + 1, 5.0f);
      kernels->rms_norm(x.data(), w.data(), n, 1e-5f, out.data());
      double squares = 0;
      for (const float v : x) squares += static_cast<double>(v) * v;
      const double inverse = 1.0 / std::sqrt(squares / n + 1e-5);
      ErrorNorm error;
      for (size_t i = 0; i < x.size(); ++i) error.add(out[i], x[i] * inverse * w[i]);
      CHECK_THAT(error.relative() < 5e-7, std::string(kernels->isa) + " " + std::to_string(n));
      CHECK(out.back() == 5.0f);
    }
  }
}

TEST(rows_rotate_pairs_half_a_head_apart) {
  for (const Kernels* kernels : test::all_kernels()) {
    for (const int32_t half : {1, 5, 12, 16, 20, 32, 64, 128}) {
      const auto size = static_cast<size_t>(half);
      std::vector<float> x = test::random_floats(2 * size, 1), angles(size), cos(size), sin(size);
      for (size_t i = 0; i < size; ++i) {
        cos[i] = static_cast<float>(std::cos(static_cast<double>(i) + 1));
        sin[i] = static_cast<float>(std::sin(static_cast<double>(i) + 1));
      }
      std::vector<float> out = x;
      out.push_back(9.0f);
      kernels->rotate(out.data(), half, cos.data(), sin.data());
      for (size_t i = 0; i < size; ++i) {
        CHECK_CLOSE(out[i],
                    static_cast<double>(x[i]) * cos[i] - static_cast<double>(x[i + size]) * sin[i],
                    1e-6);
        CHECK_CLOSE(out[i + size],
                    static_cast<double>(x[i + size]) * cos[i] + static_cast<double>(x[i]) * sin[i],
                    1e-6);
      }
      CHECK(out.back() == 9.0f);
    }
  }
}

TEST(rows_activate_equals_float64) {
  for (const Kernels* kernels : test::all_kernels()) {
    std::vector<float> gate = test::random_floats(640, 1, 4), up = test::random_floats(640, 2);
    const float special[] = {0.0f, -0.0f, 100.0f, -100.0f, 1e4f, -1e4f, 1e-30f, 20.0f, -20.0f};
    std::copy(std::begin(special), std::end(special), gate.begin());
    for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
      std::vector<float> out(640);
      kernels->activate(activation, gate.data(), up.data(), 640, out.data());
      bool close = true;
      for (size_t i = 0; i < out.size(); ++i) {
        const double x = gate[i];
        const double act =
            activation == Activation::kSilu
                ? x / (1 + std::exp(-x))
                : 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
        close = close && std::abs(out[i] - act * up[i]) <= 2e-6 * std::abs(act * up[i]) + 1e-7;
      }
      CHECK_THAT(close, kernels->isa);
    }
  }
}

}  // namespace
}  // namespace manyfold
