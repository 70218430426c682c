#include "profile.h"

#include "timing.h"

namespace manyfold::bench {
namespace {

Op linear_op(Site site) {
  switch (site) {
    case Site::kQ:
      return Op::kQkv;
    case Site::kO:
      return Op::kOut;
    case Site::kGate:
      return Op::kGateUp;
    default:
      return Op::kDown;
  }
}

}  // namespace

const char* op_name(Op op) {
  static constexpr const char* kNames[kOpCount] = {
      "begin", "embed", "norm",     "q, k, v",  "rope_append", "attention",
      "o",     "add",   "gate, up", "activate", "down",        "finish (norm, head, sample)"};
  return kNames[static_cast<size_t>(op)];
}

Profile ProfiledOps::take() {
  const Profile taken = seconds_;
  seconds_ = {};
  return taken;
}

template <class Call>
void ProfiledOps::time(Op op, const Call& call) {
  const clockid_t clock = use_cpu_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
  const double start = seconds_of(clock);
  call();
  seconds_[static_cast<size_t>(op)] += seconds_of(clock) - start;
}

void ProfiledOps::begin(const StepPlan& plan) {
  time(Op::kBegin, [&] { ops_.begin(plan); });
}
void ProfiledOps::embed() {
  time(Op::kEmbed, [&] { ops_.embed(); });
}
void ProfiledOps::norm(SiteRef site, Buffer in, Buffer out) {
  time(Op::kNorm, [&] { ops_.norm(site, in, out); });
}
void ProfiledOps::linear(std::span<const LinearOut> outs, Buffer in) {
  time(linear_op(outs.front().site.site), [&] { ops_.linear(outs, in); });
}
void ProfiledOps::rope_append(int32_t layer) {
  time(Op::kRopeAppend, [&] { ops_.rope_append(layer); });
}
void ProfiledOps::attention(int32_t layer) {
  time(Op::kAttention, [&] { ops_.attention(layer); });
}
void ProfiledOps::activate() {
  time(Op::kActivate, [&] { ops_.activate(); });
}
void ProfiledOps::add(SiteRef residual_site) {
  time(Op::kAdd, [&] { ops_.add(residual_site); });
}
void ProfiledOps::finish(StepResult& result) {
  time(Op::kFinish, [&] { ops_.finish(result); });
}

}  // namespace manyfold::bench
