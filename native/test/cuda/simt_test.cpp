// The emulation that stands for a GPU: order of threads, warp functions, tiles of tensor cores,
// asynchronous copies and graphs do what CUDA's documents say, and a missing barrier shows.
#include "../../cuda/device/tensor_core.cuh"
#include "../check.h"

namespace manyfold {
namespace {

using namespace cuda;

// Sums 256 numbers through shared memory; without the barrier some are read before they are there.
template <bool kWithBarrier>
void sum_kernel(const float* in, float* out) {
  MF_SHARED(float, values, 256);
  const unsigned i = threadIdx.x;
  values[i] = in[blockIdx.x * 256 + i];
  if (kWithBarrier) __syncthreads();
  float sum = 0.0f;
  for (unsigned j = 0; j < 256; ++j) sum += values[(i + j) % 256];
  out[blockIdx.x * 256 + i] = sum;
}

template <bool kWithBarrier>
bool sums_are_right(uint64_t seed) {
  simt::set_seed(seed);
  std::vector<float> in(512), out(512, -1.0f);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 7);
  MF_LAUNCH((sum_kernel<kWithBarrier>), 2, 256, 0, nullptr, in.data(), out.data());
  for (size_t b = 0; b < 2; ++b) {
    float expected = 0.0f;
    for (size_t i = 0; i < 256; ++i) expected += in[b * 256 + i];
    for (size_t i = 0; i < 256; ++i) {
      if (out[b * 256 + i] != expected) return false;
    }
  }
  return true;
}

TEST(simt_barrier) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    CHECK(sums_are_right<true>(seed));
    CHECK(!sums_are_right<false>(seed));
  }
  simt::set_seed(1);
}

void warp_kernel(float* sums, int* from_left, unsigned* ballots) {
  const int i = static_cast<int>(threadIdx.x);
  sums[i] = warp_sum(static_cast<float>(i));
  from_left[i] = __shfl_up_sync(kFullWarp, i, 1);
  ballots[i] = __ballot_sync(kFullWarp, i % 3 == 0);
}

TEST(simt_warp) {
  float sums[64];
  int from_left[64];
  unsigned ballots[64];
  MF_LAUNCH(warp_kernel, 1, 64, 0, nullptr, sums, from_left, ballots);
  for (int i = 0; i < 64; ++i) {
    CHECK(sums[i] == (i < 32 ? 496.0f : 1520.0f));
    CHECK(from_left[i] == (i % 32 == 0 ? i : i - 1));
    CHECK((ballots[i] >> (i % 32) & 1u) == (i % 3 == 0 ? 1u : 0u));
  }
}

// d = a b with both operands fetched from shared memory as kernels do.
void tile_kernel(const Bf16* a, const Bf16* b, float* d) {
  MF_SHARED(Bf16, tile_a, 16 * 16);
  MF_SHARED(Bf16, tile_b, 8 * 16);
  const int lane = static_cast<int>(threadIdx.x);
  copy_async_16(tile_a + lane * 8, a + lane * 8, true);
  copy_async_16(tile_b + lane % 16 * 8, b + lane % 16 * 8, true);
  copy_commit();
  copy_wait<0>();
  __syncthreads();
  uint32_t words_a[4], words_b[4];
  load_matrices(words_a, tile_a + (lane % 16) * 16 + lane / 16 * 8);
  load_matrices(words_b, tile_b + (lane % 8) * 16 + lane / 8 % 2 * 8);
  float sums[4] = {};
  const uint32_t pair[2] = {words_b[0], words_b[1]};
  mma_16x8x16<Bf16>(sums, words_a, pair);
  for (int i = 0; i < 4; ++i) d[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = sums[i];
}

TEST(simt_tensor_core) {
  std::vector<Bf16> a(256), b(128);
  for (size_t i = 0; i < a.size(); ++i) a[i] = round_to<Bf16>(static_cast<float>(i * 7 % 11) - 5);
  for (size_t i = 0; i < b.size(); ++i) b[i] = round_to<Bf16>(static_cast<float>(i * 5 % 13) - 6);
  std::vector<float> d(128);
  MF_LAUNCH(tile_kernel, 1, 32, 0, nullptr, a.data(), b.data(), d.data());
  for (size_t row = 0; row < 16; ++row) {
    for (size_t column = 0; column < 8; ++column) {
      float expected = 0.0f;
      for (size_t k = 0; k < 16; ++k) expected += load(a[row * 16 + k]) * load(b[column * 16 + k]);
      CHECK(d[row * 8 + column] == expected);
    }
  }
}

void double_kernel(float* values) {
  values[threadIdx.x] *= 2.0f;
}

TEST(simt_graph) {
  std::vector<float> values(32, 1.0f);
  cudaStream_t stream = nullptr, side = nullptr;
  cudaEvent_t fork = nullptr, join = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking);
  cudaEventCreateWithFlags(&fork, cudaEventDisableTiming);
  cudaEventCreateWithFlags(&join, cudaEventDisableTiming);
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  MF_LAUNCH(double_kernel, 1, 32, 0, stream, values.data());
  cudaEventRecord(fork, stream);
  cudaStreamWaitEvent(side, fork);
  MF_LAUNCH(double_kernel, 1, 32, 0, side, values.data());
  cudaEventRecord(join, side);
  cudaStreamWaitEvent(stream, join);
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(values[0] == 1.0f);
  cudaGraphExec_t exec = nullptr;
  cudaGraphInstantiate(&exec, graph);
  cudaGraphLaunch(exec, stream);
  cudaGraphLaunch(exec, stream);
  CHECK(values[31] == 16.0f);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaEventDestroy(fork);
  cudaEventDestroy(join);
  cudaStreamDestroy(side);
  cudaStreamDestroy(stream);
}

TEST(simt_shared_memory_limit) {
  cudaGetLastError();
  std::vector<float> values(32, 1.0f);
  MF_LAUNCH(double_kernel, 1, 32, 64 * 1024, nullptr, values.data());
  CHECK(cudaGetLastError() == cudaErrorInvalidValue);
  CHECK(values[0] == 1.0f);
}

}  // namespace
}  // namespace manyfold
