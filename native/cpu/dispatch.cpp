#include "dispatch.h"

#include <vector>

#include "../core/backend.h"
#include "../core/error.h"
#include "isa/tiers.h"

namespace manyfold {
namespace {

// __builtin_cpu_supports asks CPUID and, through XGETBV, whether the system saves the wide
// registers.
std::vector<const Kernels*> find_tiers() {
  std::vector<const Kernels*> tiers;
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) tiers.push_back(&avx512bf16_kernels());
  if (avx512) tiers.push_back(&avx512_kernels());
  if (avx2) tiers.push_back(&avx2_kernels());
  return tiers;
}

const std::vector<const Kernels*>& tiers() {
  static const std::vector<const Kernels*> kTiers = find_tiers();
  return kTiers;
}

std::vector<std::string> tier_names() {
  std::vector<std::string> names;
  for (const Kernels* tier : tiers()) names.emplace_back(tier->isa);
  names.emplace_back("scalar");
  return names;
}

}  // namespace

std::span<const std::string> cpu_isas() {
  static const std::vector<std::string> kNames = tier_names();
  return kNames;
}

const Kernels& kernels_for(const std::string& isa) {
  std::string known;
  for (const Kernels* tier : tiers()) {
    if (isa == "auto" || isa == tier->isa) return *tier;
    known += std::string(known.empty() ? "" : ", ") + tier->isa;
  }
  fail(ErrorCode::kUnavailable, "expected an instruction set with fast kernels on this machine (" +
                                    (known.empty() ? std::string("none") : known) + "), found '" +
                                    isa + "'; 'scalar' runs everywhere");
}

}  // namespace manyfold
