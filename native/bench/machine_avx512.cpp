// The bounds' loops of the avx512 and avx512vnni tiers; see machine_loops.h.
#include <cstddef>
#include <cstdint>

#include "machine.h"

// GCC 12 warns of its own intrinsics, which leave unused inputs undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")

#include "../cpu/isa/simd_avx512.h"
#include "machine_loops.h"

namespace manyfold::bench {

struct Tier;
using Simd = avx512::Lanes<Tier>;
using Vnni = avx512::Vnni<Simd>;

const MachineLoops& avx512_loops() {
  static constexpr MachineLoops kLoops{Simd::kLanes,      multiply_chains<Simd>, nullptr,
                                       int8_chains<Simd>, Simd::kInt8Depth,      read_all<Simd>};
  return kLoops;
}

const MachineLoops& avx512vnni_loops() {
  static constexpr MachineLoops kLoops{Vnni::kLanes,      multiply_chains<Vnni>, nullptr,
                                       int8_chains<Vnni>, Vnni::kInt8Depth,      read_all<Vnni>};
  return kLoops;
}

}  // namespace manyfold::bench
