// The bounds' loops of the avx512 tier; see machine_loops.h.
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

const MachineLoops& avx512_loops() {
  static constexpr MachineLoops kLoops{Simd::kLanes, multiply_chains<Simd>, nullptr,
                                       read_all<Simd>};
  return kLoops;
}

}  // namespace manyfold::bench
