// Picks the CPU backend from an isa name. The options have passed check_options.
#include <algorithm>

#include "../core/error.h"
#include "cpu_backend.h"

namespace manyfold {

namespace {

std::string known_isas() {
  std::string names = "auto";
  for (const std::string& isa : cpu_isas()) names += ", " + isa;
  return names;
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  if (options.isa == "scalar") return make_reference_backend(options);
  const std::span<const std::string> isas = cpu_isas();
  const bool known =
      options.isa == "auto" || std::find(isas.begin(), isas.end(), options.isa) != isas.end();
  if (!known) {
    fail(ErrorCode::kUnavailable, "isa: expected one of " + known_isas() +
                                      " (what this machine runs), found '" + options.isa + "'");
  }
  if (isas.size() == 1) return make_reference_backend(options);  // no fast tier on this machine
  return make_fast_cpu_backend(options);
}

}  // namespace manyfold
