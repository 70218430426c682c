// See sampler.h. Loops over the vocabulary are written in lanes, so that the compiler makes vectors
// of them for any CPU.
#include "sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace manyfold {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr size_t kLanes = 16;
constexpr size_t kBlock = 256;
// Below it a temperature means greedy: dividing by it would only overflow.
constexpr float kLeastTemperature = 1e-5f;

struct Scan {
  float max;
  bool finite;  // no NaN and no +infinity, and something above -infinity
};

Scan scan_logits(std::span<const float> x) {
  float max[kLanes];
  int32_t bad[kLanes] = {};
  std::fill(max, max + kLanes, -kInfinity);
  size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) {
      const float v = x[i + l];
      max[l] = v > max[l] ? v : max[l];
      bad[l] |= static_cast<int32_t>(!(v <= std::numeric_limits<float>::max()));
    }
  }
  for (; i < x.size(); ++i) {
    max[0] = x[i] > max[0] ? x[i] : max[0];
    bad[0] |= static_cast<int32_t>(!(x[i] <= std::numeric_limits<float>::max()));
  }
  Scan scan{max[0], bad[0] == 0};
  for (size_t l = 1; l < kLanes; ++l) {
    scan.max = std::max(scan.max, max[l]);
    scan.finite = scan.finite && bad[l] == 0;
  }
  scan.finite = scan.finite && scan.max > -kInfinity;
  return scan;
}

// exp(x) for x <= 0, relative error below 3e-7; 0 below -87. No branch, so that it becomes vector
// code.
inline float exp_negative(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  constexpr float kRound =
      12582912.0f;  // 1.5 · 2^23: adding and subtracting it rounds to the nearest integer
  const float n = (clamped * 1.44269504f + kRound) - kRound;
  // ln 2 in two parts, so that n · ln 2 is exact in the high one.
  const float f = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * f + 1.0f / 720.0f;
  p = p * f + 1.0f / 120.0f;
  p = p * f + 1.0f / 24.0f;
  p = p * f + 1.0f / 6.0f;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  const int32_t power = (static_cast<int32_t>(n) + 127) << 23;
  const float result = p * std::bit_cast<float>(power);
  return x < -87.0f ? 0.0f : result;
}

// out[i] = exp((x[i] - max) · factor).
void exp_block(const float* x, size_t n, float max, float factor, float* out) {
  for (size_t i = 0; i < n; ++i) out[i] = exp_negative((x[i] - max) * factor);
}

// Lanes first, then double: the order depends on n alone.
double sum_block(const float* x, size_t n) {
  float lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) lanes[l] += x[i + l];
  }
  double sum = 0;
  for (const float lane : lanes) sum += lane;
  for (; i < n; ++i) sum += x[i];
  return sum;
}

// Σ exp((x - max) · factor) of all logits, and of each block.
double sum_exp(std::span<const float> x, float max, float factor, std::vector<double>& block_sums) {
  float weights[kBlock];
  block_sums.clear();
  double total = 0;
  for (size_t i = 0; i < x.size(); i += kBlock) {
    const size_t n = std::min(kBlock, x.size() - i);
    exp_block(x.data() + i, n, max, factor, weights);
    block_sums.push_back(sum_block(weights, n));
    total += block_sums.back();
  }
  return total;
}

int32_t first_equal(std::span<const float> x, float value) {
  return static_cast<int32_t>(std::find(x.begin(), x.end(), value) - x.begin());
}

std::span<const int32_t> slice(std::span<const int32_t> values, std::span<const int32_t> offsets,
                               size_t entry) {
  const size_t first = static_cast<size_t>(offsets[entry]);
  return values.subspan(first, static_cast<size_t>(offsets[entry + 1]) - first);
}

bool changes_logits(const StepPlan& plan, size_t entry) {
  const float* params = &plan.entry_params[entry * kEntryParams];
  const bool penalties =
      params[kRepetition] != 1.0f || params[kFrequency] != 0.0f || params[kPresence] != 0.0f;
  return plan.entry_mask[entry] >= 0 || plan.entry_bias[entry] != plan.entry_bias[entry + 1] ||
         (penalties && plan.entry_history[entry] != plan.entry_history[entry + 1]);
}

}  // namespace

void prepare_result(const StepPlan& plan, int32_t vocab, StepResult& result) {
  const size_t entries = static_cast<size_t>(plan.entries());
  size_t tops = 0, raws = 0;
  for (size_t e = 0; e < entries; ++e) {
    tops += static_cast<size_t>(std::max(0, plan.entry_top_logprobs[e]));
    raws += plan.entry_target[e] == kTargetRaw ? 1 : 0;
  }
  result.tokens.assign(entries, kTokenNone);
  result.logprobs.assign(entries, std::numeric_limits<float>::quiet_NaN());
  result.ranks.assign(entries, 0);
  result.top_ids.assign(tops, kTokenNone);
  result.top_logprobs.assign(tops, std::numeric_limits<float>::quiet_NaN());
  result.raw_logits.resize(raws * static_cast<size_t>(vocab));
}

double uniform_draw(uint32_t seed_low, uint32_t seed_high, uint32_t choice, uint32_t output_index) {
  uint32_t counter[4] = {output_index, choice, 0, 0};
  uint32_t key[2] = {seed_low, seed_high};
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * counter[0];
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * counter[2];
    const uint32_t next[4] = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
                              static_cast<uint32_t>(product1),
                              static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
                              static_cast<uint32_t>(product0)};
    std::copy(next, next + 4, counter);
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  const uint64_t bits = (static_cast<uint64_t>(counter[0]) << 32 | counter[1]) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

void Sampler::sample(const StepPlan& plan, int32_t entry, std::span<const float> logits,
                     StepResult& result) {
  const size_t e = static_cast<size_t>(entry);
  const int32_t target = plan.entry_target[e];
  if (target == kTargetRaw) {
    size_t place = 0;
    for (size_t before = 0; before < e; ++before)
      place += plan.entry_target[before] == kTargetRaw ? 1 : 0;
    std::copy(logits.begin(), logits.end(),
              result.raw_logits.begin() + static_cast<ptrdiff_t>(place * logits.size()));
    return;
  }
  const Scan scan = scan_logits(logits);
  int32_t token = kTokenImpossible;
  if (scan.finite) token = target >= 0 ? target : choose(plan, e, logits, scan.max);
  result.tokens[e] = token;
  if (token >= 0 && plan.entry_top_logprobs[e] >= 0)
    write_logprobs(plan, e, logits, scan.max, token, result);
}

int32_t Sampler::choose(const StepPlan& plan, size_t entry, std::span<const float> logits,
                        float raw_max) {
  float max = raw_max;
  if (changes_logits(plan, entry)) {
    logits = adjust(plan, entry, logits);
    const Scan scan = scan_logits(logits);
    if (!scan.finite) return kTokenImpossible;
    max = scan.max;
  }
  const float* params = &plan.entry_params[entry * kEntryParams];
  const float temperature = params[kTemperature];
  if (temperature < kLeastTemperature) return first_equal(logits, max);
  const uint32_t* seed = &plan.entry_seed[entry * 4];
  const double uniform = uniform_draw(seed[0], seed[1], seed[2], seed[3]);
  const bool all_tokens =
      params[kMinP] == 0.0f && params[kTopP] >= 1.0f &&
      (params[kTopK] == 0.0f || params[kTopK] >= static_cast<float>(logits.size()));
  if (all_tokens) return draw_from_all(logits, max, 1.0f / temperature, uniform);
  return draw_from_some(logits, max, params, uniform);
}

std::span<const float> Sampler::adjust(const StepPlan& plan, size_t entry,
                                       std::span<const float> logits) {
  adjusted_.assign(logits.begin(), logits.end());
  if (plan.entry_mask[entry] >= 0) {
    const size_t words = (logits.size() + 31) / 32;
    const uint32_t* mask = plan.masks.data() + static_cast<size_t>(plan.entry_mask[entry]) * words;
    for (size_t t = 0; t < logits.size(); ++t) {
      if ((mask[t / 32] >> (t % 32) & 1u) == 0) adjusted_[t] = -kInfinity;
    }
  }
  const size_t first_bias = static_cast<size_t>(plan.entry_bias[entry]);
  const std::span<const int32_t> bias_ids = slice(plan.bias_ids, plan.entry_bias, entry);
  for (size_t i = 0; i < bias_ids.size(); ++i) {
    adjusted_[static_cast<size_t>(bias_ids[i])] += plan.bias_values[first_bias + i];
  }
  const float* params = &plan.entry_params[entry * kEntryParams];
  const size_t first_history = static_cast<size_t>(plan.entry_history[entry]);
  const std::span<const int32_t> history = slice(plan.history_ids, plan.entry_history, entry);
  for (size_t i = 0; i < history.size(); ++i) {
    float& logit = adjusted_[static_cast<size_t>(history[i])];
    const int32_t count = plan.history_counts[first_history + i];
    logit = logit > 0 ? logit / params[kRepetition] : logit * params[kRepetition];
    logit -= params[kFrequency] * static_cast<float>(count);
    if (count > 0) logit -= params[kPresence];
  }
  return adjusted_;
}

int32_t Sampler::draw_from_all(std::span<const float> logits, float max, float inverse_temperature,
                               double uniform) {
  double left = uniform * sum_exp(logits, max, inverse_temperature, block_sums_);
  size_t block = 0;
  while (block + 1 < block_sums_.size() && left >= block_sums_[block]) left -= block_sums_[block++];
  float weights[kBlock];
  const size_t first = block * kBlock;
  const size_t n = std::min(kBlock, logits.size() - first);
  exp_block(logits.data() + first, n, max, inverse_temperature, weights);
  int32_t last = -1;  // rounding may leave a little over: then it is the last possible token
  for (size_t i = 0; i < n; ++i) {
    if (weights[i] == 0.0f) continue;
    last = static_cast<int32_t>(first + i);
    if (left < weights[i]) return last;
    left -= weights[i];
  }
  return last >= 0 ? last : first_equal(logits, max);
}

int32_t Sampler::draw_from_some(std::span<const float> logits, float max, const float* params,
                                double uniform) {
  const float temperature = params[kTemperature];
  const float inverse_temperature = 1.0f / temperature;
  // p >= minP · p_max is a bound on the logit: both are the same exponential divided by the same
  // sum.
  float cut = params[kMinP] > 0.0f ? max + temperature * std::log(params[kMinP]) : -kInfinity;
  const int32_t k = static_cast<int32_t>(params[kTopK]);
  if (k > 0 && static_cast<size_t>(k) < logits.size()) cut = std::max(cut, top_k_cut(logits, k));
  const double top_p = params[kTopP];
  if (top_p >= 1.0) {
    gather(logits, cut);
  } else if (cut != -kInfinity) {
    gather(logits, cut);
    const double whole = weigh(max, inverse_temperature);
    keep_nucleus(top_p * whole, max, inverse_temperature);
  } else {
    const double mass = top_p * sum_exp(logits, max, inverse_temperature, block_sums_);
    // The far tail is only gathered when the head has too little mass.
    for (const float reach : {8.0f, kInfinity}) {
      gather(logits, max - reach * temperature);
      if (weigh(max, inverse_temperature) >= mass) break;
    }
    keep_nucleus(mass, max, inverse_temperature);
  }
  double left = uniform * weigh(max, inverse_temperature);
  int32_t last = first_equal(logits, max);
  for (const Candidate& c : candidates_) {
    if (c.weight == 0.0f) continue;
    last = c.id;
    if (left < c.weight) break;
    left -= c.weight;
  }
  return last;
}

void Sampler::gather(std::span<const float> logits, float cut) {
  candidates_.clear();
  for (size_t t = 0; t < logits.size(); ++t) {
    if (logits[t] >= cut) candidates_.push_back({logits[t], 0.0f, static_cast<int32_t>(t)});
  }
}

// Gathers a set that holds the k best. The k-th best of the blocks' maxima is a lower bound of the
// k-th best logit, so only a handful more than k is gathered.
void Sampler::gather_best(std::span<const float> logits, int32_t k) {
  constexpr size_t kWidth = 32;
  const size_t blocks = logits.size() / kWidth;
  float cut = -kInfinity;
  if (static_cast<size_t>(k) <= blocks) {
    block_maxima_.resize(blocks);
    for (size_t b = 0; b < blocks; ++b) {
      float lanes[kLanes];
      const float* x = logits.data() + b * kWidth;
      for (size_t l = 0; l < kLanes; ++l) lanes[l] = x[l] > x[l + kLanes] ? x[l] : x[l + kLanes];
      for (size_t half = kLanes / 2; half > 0; half /= 2) {
        for (size_t l = 0; l < half; ++l)
          lanes[l] = lanes[l] > lanes[l + half] ? lanes[l] : lanes[l + half];
      }
      block_maxima_[b] = lanes[0];
    }
    std::nth_element(block_maxima_.begin(), block_maxima_.begin() + (k - 1), block_maxima_.end(),
                     std::greater<>());
    cut = block_maxima_[static_cast<size_t>(k - 1)];
  }
  gather(logits, cut);
}

// Fills the candidates' weights and returns their sum.
double Sampler::weigh(float max, float inverse_temperature) {
  weights_.resize(candidates_.size());
  for (size_t i = 0; i < candidates_.size(); ++i) weights_[i] = candidates_[i].value;
  exp_block(weights_.data(), weights_.size(), max, inverse_temperature, weights_.data());
  double sum = 0;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    candidates_[i].weight = weights_[i];
    sum += weights_[i];
  }
  return sum;
}

bool Sampler::better(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// The k-th best logit: tokens equal to it are all kept.
float Sampler::top_k_cut(std::span<const float> logits, int32_t k) {
  gather_best(logits, k);
  std::nth_element(candidates_.begin(), candidates_.begin() + (k - 1), candidates_.end(),
                   [](const Candidate& a, const Candidate& b) { return a.value > b.value; });
  return candidates_[static_cast<size_t>(k - 1)].value;
}

// Leaves in candidates_ the fewest best tokens whose weights reach `mass`, in id order. Their
// weights are summed up by bins of the exponent, best first, to find the bin that holds the border;
// only that bin is sorted.
void Sampler::keep_nucleus(double mass, float max, float inverse_temperature) {
  constexpr size_t kBins = 1024;
  constexpr float kBinsPerUnit =
      12.0f;  // of the exponent; the last bin begins where weights are 1e-37
  const auto bin_of = [&](const Candidate& c) {
    const float place = (max - c.value) * inverse_temperature * kBinsPerUnit;
    return static_cast<size_t>(place < kBins - 1 ? place : kBins - 1);
  };
  bin_masses_.assign(kBins, 0.0);
  for (const Candidate& c : candidates_) bin_masses_[bin_of(c)] += c.weight;
  size_t bin = 0;
  double before = 0;
  while (bin + 1 < kBins && before + bin_masses_[bin] < mass) before += bin_masses_[bin++];
  border_.clear();
  for (const Candidate& c : candidates_) {
    if (bin_of(c) == bin) border_.push_back(c);
  }
  std::sort(border_.begin(), border_.end(), better);
  size_t last = 0;
  while (last + 1 < border_.size() && before + border_[last].weight < mass)
    before += border_[last++].weight;
  if (border_.empty()) return;  // rounding: the sum of all fell short of `mass`, so all stay
  const Candidate border = border_[last];
  std::erase_if(candidates_, [&](const Candidate& c) { return better(border, c); });
}

void Sampler::write_logprobs(const StepPlan& plan, size_t entry, std::span<const float> logits,
                             float max, int32_t token, StepResult& result) {
  const double log_sum =
      static_cast<double>(max) + std::log(sum_exp(logits, max, 1.0f, block_sums_));
  const float value = logits[static_cast<size_t>(token)];
  result.logprobs[entry] = static_cast<float>(value - log_sum);
  int32_t above = 0;
  for (size_t t = 0; t < logits.size(); ++t) above += static_cast<int32_t>(logits[t] > value);
  for (size_t t = 0; t < static_cast<size_t>(token); ++t)
    above += static_cast<int32_t>(logits[t] == value);
  result.ranks[entry] = above + 1;
  const int32_t count = plan.entry_top_logprobs[entry];
  if (count == 0) return;
  size_t place = 0;
  for (size_t e = 0; e < entry; ++e)
    place += static_cast<size_t>(std::max(0, plan.entry_top_logprobs[e]));
  gather_best(logits, count);
  std::partial_sort(candidates_.begin(), candidates_.begin() + count, candidates_.end(), better);
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    result.top_ids[place + i] = candidates_[i].id;
    result.top_logprobs[place + i] = static_cast<float>(candidates_[i].value - log_sum);
  }
}

}  // namespace manyfold
