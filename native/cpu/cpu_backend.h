// Which CPU backend an isa name means. Callers: cpu_factory.cpp; defined by reference/ and
// fast_backend.cpp.
#pragma once

#include <memory>

#include "../core/backend.h"

namespace manyfold {

// isa 'scalar': plain loops, one thread; the oracle of the fast kernels.
std::unique_ptr<Backend> make_reference_backend(const BackendOptions& options);

// isa 'auto' or a tier of cpu_isas() other than 'scalar'.
std::unique_ptr<Backend> make_fast_cpu_backend(const BackendOptions& options);

}  // namespace manyfold
