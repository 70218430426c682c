// Stands for the CUDA backend in builds without it: the same symbols, throwing a sentence.
#include "../core/backend.h"
#include "../core/error.h"

namespace manyfold {

bool has_cuda_backend() {
  return false;
}

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions&) {
  fail(ErrorCode::kUnavailable,
       "backend: this build has no CUDA backend; expected 'cpu', found 'cuda'");
}

}  // namespace manyfold
