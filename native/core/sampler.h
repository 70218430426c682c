// From one entry's raw logits to its token and log-probabilities. Called by every backend's
// StepOps::finish, once for each entry, from several threads if it likes: entries write disjoint
// places of the result.
//
// Order of operations, as in vLLM: mask, bias, repetition, frequency and presence penalties,
// temperature, min-p, top-k, top-p, draw. Log-probabilities and ranks come from the raw logits.
// Equal logits are ordered by id, lowest first. A draw uses only (seed, choice, output index), so a
// replay repeats whatever its neighbours are.
#pragma once

#include <span>
#include <vector>

#include "step.h"

namespace manyfold {

// Sizes the arrays of a result for the plan's entries; before the first sample().
void prepare_result(const StepPlan& plan, int32_t vocab, StepResult& result);

// Uniform in [0, 1): Philox 4x32-10 of key (seed) and counter (output index, choice).
double uniform_draw(uint32_t seed_low, uint32_t seed_high, uint32_t choice, uint32_t output_index);

// Holds scratch only; one for each thread.
class Sampler {
 public:
  // The plan must have passed check_plan; logits [vocab].
  void sample(const StepPlan& plan, int32_t entry, std::span<const float> logits,
              StepResult& result);

 private:
  struct Candidate {
    float value, weight;  // logit; exp((logit - max) / temperature)
    int32_t id;
  };

  int32_t choose(const StepPlan& plan, size_t entry, std::span<const float> logits, float raw_max);
  std::span<const float> adjust(const StepPlan& plan, size_t entry, std::span<const float> logits);
  int32_t draw_from_all(std::span<const float> logits, float max, float inverse_temperature,
                        double uniform);
  int32_t draw_from_some(std::span<const float> logits, float max, const float* params,
                         double uniform);
  float top_k_cut(std::span<const float> logits, int32_t k);
  void gather(std::span<const float> logits, float cut);
  static bool better(const Candidate& a, const Candidate& b);
  double weigh(float max, float inverse_temperature);
  void gather_best(std::span<const float> logits, int32_t k);
  void keep_nucleus(double mass, float max, float inverse_temperature);
  void write_logprobs(const StepPlan& plan, size_t entry, std::span<const float> logits, float max,
                      int32_t token, StepResult& result);

  std::vector<float> adjusted_;  // [vocab] logits after mask, bias and penalties
  std::vector<float> weights_;   // of the candidates, while they are made
  std::vector<double> block_sums_;
  std::vector<double> bin_masses_;
  std::vector<float> block_maxima_;
  std::vector<Candidate> candidates_;  // in id order
  std::vector<Candidate> border_;      // those among which the nucleus ends
};

}  // namespace manyfold
