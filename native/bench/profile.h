// Where the time of a step goes: the operations of a backend with a clock around each.
#pragma once

#include <array>
#include <cstdint>

#include "../core/backend.h"

namespace manyfold::bench {

enum class Op {
  kBegin,
  kEmbed,
  kNorm,
  kQkv,
  kRopeAppend,
  kAttention,
  kOut,
  kAdd,
  kGateUp,
  kActivate,
  kDown,
  kFinish,
};
inline constexpr int32_t kOpCount = 12;
const char* op_name(Op op);

// Seconds by operation.
using Profile = std::array<double, kOpCount>;

// Passes every call on; linears of a layer are told apart by the first site.
class ProfiledOps final : public StepOps {
 public:
  // ops is kept.
  explicit ProfiledOps(StepOps& ops) : ops_(ops) {}

  // Of all calls since the last one, which are forgotten.
  Profile take();

  void begin(const StepPlan& plan) override;
  void embed() override;
  void norm(SiteRef site, Buffer in, Buffer out) override;
  void linear(std::span<const LinearOut> outs, Buffer in) override;
  void rope_append(int32_t layer) override;
  void attention(int32_t layer) override;
  void activate() override;
  void add(SiteRef residual_site) override;
  void finish(StepResult& result) override;

 private:
  template <class Call>
  void time(Op op, const Call& call);

  StepOps& ops_;
  Profile seconds_{};
};

}  // namespace manyfold::bench
