#include "dispatch.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

#include "../core/backend.h"
#include "../core/error.h"
#include "isa/tiers.h"

namespace manyfold {
namespace {

// Bit 4 of EAX of CPUID leaf 7, subleaf 1; GCC 12's libgcc does not tell. The registers are AVX2's.
bool has_avx_vnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1u) != 0;
}

// AMX-TILE and AMX-BF16 (bits 24 and 22 of EDX of CPUID leaf 7), which Linux lends to a process
// that asks for the registers (arch_prctl ARCH_REQ_XCOMP_PERM, since 5.16). Once granted they are
// there for all threads.
bool has_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  constexpr unsigned kBits = 1u << 24 | 1u << 22;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kBits) == kBits &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// The bf16 pair instruction runs at half the float32 rate on the Intel processor that it was
// measured on, at twice that rate on AMD's Zen 4 and Zen 5: so Intel's without AMX take float32.
bool has_slow_bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kGenu = 0x756e6547;  // of GenuineIntel
  return __get_cpuid(0, &eax, &ebx, &ecx, &edx) != 0 && ebx == kGenu;
}

// __builtin_cpu_supports asks CPUID and, through XGETBV, whether the system saves the wide
// registers.
std::vector<const Kernels*> find_tiers() {
  std::vector<const Kernels*> tiers;
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  if (bf16 && has_amx()) tiers.push_back(&amx_kernels());
  const bool slow = bf16 && has_slow_bf16();
  if (bf16 && !slow) tiers.push_back(&avx512bf16_kernels());
  if (vnni) tiers.push_back(&avx512vnni_kernels());
  if (slow) tiers.push_back(&avx512bf16_kernels());
  if (avx512) tiers.push_back(&avx512_kernels());
  if (avx2 && has_avx_vnni()) tiers.push_back(&avxvnni_kernels());
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
