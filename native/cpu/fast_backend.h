// The fast CPU backend. make_fast_cpu_backend (cpu_backend.h) is the door of the product; this one
// lets native tests and benches choose the kernels.
#pragma once

#include <memory>

#include "../core/backend.h"
#include "kernels/kernels.h"

namespace manyfold {

std::unique_ptr<Backend> make_backend_with(const Kernels& kernels, const BackendOptions& options);

}  // namespace manyfold
