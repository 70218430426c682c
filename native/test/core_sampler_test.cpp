// Sampler against a plain definition in double with a full sort.
#include "../core/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"

namespace manyfold {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// One entry with everything that StepPlan points at.
struct Entry {
  float params[kEntryParams] = {0, 0, 1, 0, 1, 0, 0, 0};
  uint32_t seed[4] = {0, 0, 0, 0};
  int32_t target = kTargetSample, top = -1, row = 0, mask = -1;
  std::vector<int32_t> bias_ids, history_ids, history_counts;
  std::vector<float> bias_values;
  std::vector<uint32_t> masks;
  int32_t bias[2] = {0, 0}, history[2] = {0, 0};

  StepPlan plan() {
    bias[1] = static_cast<int32_t>(bias_ids.size());
    history[1] = static_cast<int32_t>(history_ids.size());
    StepPlan plan;
    plan.entry_row = {&row, 1};
    plan.entry_target = {&target, 1};
    plan.entry_top_logprobs = {&top, 1};
    plan.entry_params = params;
    plan.entry_seed = seed;
    plan.entry_bias = bias;
    plan.bias_ids = bias_ids;
    plan.bias_values = bias_values;
    plan.entry_history = history;
    plan.history_ids = history_ids;
    plan.history_counts = history_counts;
    plan.entry_mask = {&mask, 1};
    plan.masks = masks;
    return plan;
  }
};

StepResult run(Entry& entry, const std::vector<float>& logits) {
  StepResult result;
  const StepPlan plan = entry.plan();
  prepare_result(plan, static_cast<int32_t>(logits.size()), result);
  Sampler sampler;
  sampler.sample(plan, 0, logits, result);
  return result;
}

std::vector<float> random_logits(size_t n, uint32_t seed, float spread = 3) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(generator);
  return logits;
}

// Probabilities of all tokens after temperature, min-p, top-k and top-p, by definition.
std::vector<double> expected_probabilities(const std::vector<float>& logits, const float* params) {
  const size_t n = logits.size();
  std::vector<double> p(n);
  const double max = *std::max_element(logits.begin(), logits.end());
  for (size_t i = 0; i < n; ++i) p[i] = std::exp((logits[i] - max) / params[kTemperature]);
  for (double& x : p) x = x < params[kMinP] ? 0 : x;
  std::vector<size_t> order(n);
  for (size_t i = 0; i < n; ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  });
  const size_t k = static_cast<size_t>(params[kTopK]);
  for (size_t i = 0; k > 0 && i < n; ++i) {
    if (logits[order[i]] < logits[order[std::min(k, n) - 1]]) p[order[i]] = 0;
  }
  double sum = 0, before = 0;
  for (const double x : p) sum += x;
  for (const size_t i : order) {
    const double weight = p[i];
    if (before >= static_cast<double>(params[kTopP]) * sum) p[i] = 0;
    before += weight;
  }
  sum = 0;
  for (const double x : p) sum += x;
  for (double& x : p) x /= sum;
  return p;
}

// The token that the draw of this seed means must hold the draw's place in the distribution, in id
// order.
void check_draws(size_t vocab, const std::vector<float>& params, uint32_t logits_seed) {
  const std::vector<float> logits = random_logits(vocab, logits_seed);
  Entry entry;
  std::copy(params.begin(), params.end(), entry.params);
  const std::vector<double> p = expected_probabilities(logits, entry.params);
  for (uint32_t i = 0; i < 40; ++i) {
    entry.seed[0] = logits_seed;
    entry.seed[3] = i;
    const int32_t token = run(entry, logits).tokens[0];
    CHECK(token >= 0 && token < static_cast<int32_t>(vocab));
    if (token < 0) return;
    const double u = uniform_draw(logits_seed, 0, 0, i);
    double low = 0;
    for (int32_t t = 0; t < token; ++t) low += p[static_cast<size_t>(t)];
    const double high = low + p[static_cast<size_t>(token)];
    CHECK_THAT(high > low, "token " + std::to_string(token) + " has no probability");
    CHECK_THAT(u >= low - 2e-5 && u <= high + 2e-5, "draw " + std::to_string(u) +
                                                        " gave a token of " + std::to_string(low) +
                                                        " to " + std::to_string(high));
  }
}

}  // namespace

TEST(core_sampler_philox) {
  // The known answer of Random123 for counter 0 and key 0.
  CHECK(uniform_draw(0, 0, 0, 0) == static_cast<double>(0x6627e8d5e169c58dull >> 11) * 0x1.0p-53);
  CHECK(uniform_draw(1, 2, 3, 4) == uniform_draw(1, 2, 3, 4));
  CHECK(uniform_draw(1, 2, 3, 4) != uniform_draw(1, 2, 4, 3));
  double sum = 0;
  for (uint32_t i = 0; i < 10000; ++i) sum += uniform_draw(7, 0, 0, i);
  CHECK_CLOSE(sum / 10000, 0.5, 0.02);
}

TEST(core_sampler_greedy) {
  std::vector<float> logits = random_logits(1000, 3);
  Entry entry;
  CHECK(run(entry, logits).tokens[0] ==
        std::max_element(logits.begin(), logits.end()) - logits.begin());
  logits[700] = logits[31] = 50;  // a tie: the lowest id, of rank 1
  entry.top = 2;
  const StepResult result = run(entry, logits);
  CHECK(result.tokens[0] == 31);
  CHECK(result.ranks[0] == 1);
  CHECK((result.top_ids == std::vector<int32_t>{31, 700}));
  entry.params[kTemperature] = 1e-6f;
  CHECK(run(entry, logits).tokens[0] == 31);
}

TEST(core_sampler_draws) {
  for (const size_t vocab : {5u, 33u, 300u, 5003u}) {
    uint32_t seed = 100;
    for (const float temperature : {0.3f, 1.0f, 2.5f}) {
      check_draws(vocab, {temperature, 0, 1, 0, 1, 0, 0, 0}, ++seed);
      check_draws(vocab, {temperature, 0, 0.9f, 0, 1, 0, 0, 0}, ++seed);
      check_draws(vocab, {temperature, 0, 0.01f, 0, 1, 0, 0, 0}, ++seed);
      check_draws(vocab, {temperature, 0, 0.9999999f, 0, 1, 0, 0, 0}, ++seed);
      check_draws(vocab, {temperature, 1, 1, 0, 1, 0, 0, 0}, ++seed);
      check_draws(vocab, {temperature, 3, 1, 0, 1, 0, 0, 0}, ++seed);
      check_draws(vocab, {temperature, 200, 0.8f, 0, 1, 0, 0, 0}, ++seed);
      check_draws(vocab, {temperature, 40, 0.95f, 0.05f, 1, 0, 0, 0}, ++seed);
      check_draws(vocab, {temperature, 0, 1, 0.1f, 1, 0, 0, 0}, ++seed);
      check_draws(vocab, {temperature, 0, 1, 1, 1, 0, 0, 0}, ++seed);
    }
  }
}

TEST(core_sampler_logprobs) {
  const std::vector<float> logits = random_logits(777, 9);
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  std::vector<int32_t> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  for (const int32_t top : {0, 1, 5, 20, 200, 777}) {
    Entry entry;
    entry.target = order[4];
    entry.top = top;
    entry.params[kRepetition] = 2;  // must not show in log-probabilities
    entry.history_ids = {order[4]};
    entry.history_counts = {3};
    const StepResult result = run(entry, logits);
    CHECK(result.tokens[0] == order[4]);
    CHECK(result.ranks[0] == 5);
    CHECK_CLOSE(result.logprobs[0], logits[static_cast<size_t>(order[4])] - std::log(sum), 2e-6);
    CHECK(result.top_ids.size() == static_cast<size_t>(top));
    for (size_t i = 0; i < result.top_ids.size(); ++i) {
      CHECK(result.top_ids[i] == order[i]);
      CHECK_CLOSE(result.top_logprobs[i], logits[static_cast<size_t>(order[i])] - std::log(sum),
                  4e-6);
    }
  }
  Entry silent;
  CHECK(std::isnan(run(silent, logits).logprobs[0]));
  CHECK(run(silent, logits).ranks[0] == 0);
}

TEST(core_sampler_order_of_operations) {
  // Token 0 leads; each rule in turn hands the lead to another token.
  const std::vector<float> logits = {5.0f, 4.5f, 4.0f, -1.0f};
  Entry entry;
  entry.bias_ids = {2};
  entry.bias_values = {1.5f};
  CHECK(run(entry, logits).tokens[0] == 2);
  // Bias comes first: the penalty divides 5.5, not 4.0.
  entry.history_ids = {2};
  entry.history_counts = {0};
  entry.params[kRepetition] = 1.05f;
  CHECK(run(entry, logits).tokens[0] == 2);
  entry.params[kRepetition] = 1.2f;
  CHECK(run(entry, logits).tokens[0] == 0);
  // Frequency and presence count the output only.
  Entry counts;
  counts.history_ids = {0, 1};
  counts.history_counts = {2, 0};
  counts.params[kFrequency] = 0.3f;
  CHECK(run(counts, logits).tokens[0] == 1);
  counts.params[kFrequency] = 0.2f;
  CHECK(run(counts, logits).tokens[0] == 0);
  counts.params[kPresence] = 0.2f;
  CHECK(run(counts, logits).tokens[0] == 1);
  // A negative logit is multiplied.
  Entry negative;
  negative.history_ids = {0};
  negative.history_counts = {0};
  negative.params[kRepetition] = 2;
  CHECK(run(negative, {-1.0f, -1.5f}).tokens[0] == 1);
}

TEST(core_sampler_masks_and_bans) {
  const std::vector<float> logits = random_logits(70, 5);
  Entry entry;
  entry.mask = 1;
  entry.masks.assign(6, 0xffffffffu);
  entry.masks[3] = 0;
  entry.masks[4] = 1u << 9;
  entry.masks[5] = 0;
  for (const float temperature : {0.0f, 1.0f}) {
    entry.params[kTemperature] = temperature;
    CHECK(run(entry, logits).tokens[0] == 41);
  }
  entry.bias_ids = {41};
  entry.bias_values = {-kInf};
  CHECK(run(entry, logits).tokens[0] == kTokenImpossible);
  Entry ban;
  ban.params[kTemperature] = 1;
  ban.params[kTopP] = 0.99f;
  for (int32_t t = 0; t < 70; ++t) {
    if (t == 13) continue;
    ban.bias_ids.push_back(t);
    ban.bias_values.push_back(-kInf);
  }
  for (uint32_t i = 0; i < 20; ++i) {
    ban.seed[3] = i;
    CHECK(run(ban, logits).tokens[0] == 13);
  }
}

TEST(core_sampler_not_finite) {
  for (const float bad : {std::nanf(""), kInf}) {
    for (const size_t place : {0u, 17u, 99u}) {
      std::vector<float> logits = random_logits(100, 5);
      logits[place] = bad;
      Entry entry;
      entry.top = 3;
      CHECK(run(entry, logits).tokens[0] == kTokenImpossible);
      CHECK(std::isnan(run(entry, logits).logprobs[0]));
      entry.target = 4;
      CHECK(run(entry, logits).tokens[0] == kTokenImpossible);
    }
  }
  Entry entry;
  CHECK(run(entry, std::vector<float>(100, -kInf)).tokens[0] == kTokenImpossible);
  std::vector<float> one(100, -kInf);
  one[50] = 1;
  entry.params[kTemperature] = 1;
  CHECK(run(entry, one).tokens[0] == 50);
}

TEST(core_sampler_raw) {
  const std::vector<float> logits = random_logits(100, 6);
  Entry entry;
  entry.target = kTargetRaw;
  const StepResult result = run(entry, logits);
  CHECK(result.raw_logits == logits);
  CHECK(result.tokens[0] == kTokenNone);
}

}  // namespace manyfold
