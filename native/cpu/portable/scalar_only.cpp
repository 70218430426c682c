// Stands for the fast CPU backend on machines that it has no instruction set for: the same symbols;
// 'scalar' is offered alone, so that 'auto' means the reference.
#include "../../core/error.h"
#include "../cpu_backend.h"

namespace manyfold {

std::span<const std::string> cpu_isas() {
  static const std::string kNames[] = {"scalar"};
  return kNames;
}

std::unique_ptr<Backend> make_fast_cpu_backend(const BackendOptions& options) {
  fail(ErrorCode::kUnavailable,
       "isa: this build has the reference only; expected 'scalar', found '" + options.isa + "'");
}

}  // namespace manyfold
