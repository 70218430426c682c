// Which kernels this machine runs. Callers: fast_backend.cpp, native/test, native/bench.
#pragma once

#include <string>

#include "kernels/kernels.h"

namespace manyfold {

// isa: 'auto' for the best, or a name of cpu_isas(). Throws kUnavailable for any other, 'scalar'
// included.
const Kernels& kernels_for(const std::string& isa);

}  // namespace manyfold
