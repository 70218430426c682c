// See machine.h.
#include "machine.h"

#include "../cpu/huge_memory.h"
#include "timing.h"

namespace manyfold::bench {
namespace {

constexpr int64_t kRounds = 1000000;
constexpr size_t kReadBytes = size_t{256} << 20;

const MachineLoops& loops_of(const std::string& isa) {
  if (isa == "avx2") return avx2_loops();
  if (isa == "avxvnni") return avxvnni_loops();
  if (isa == "avx512") return avx512_loops();
  if (isa == "amx") return amx_loops();
  return isa == "avx512vnni" ? avx512vnni_loops() : avx512bf16_loops();
}

double gflops(ThreadPool& pool, float (*loop)(int64_t), double per_round) {
  volatile float sink = 0;
  const Timing t = time_of(
      [&] { pool.run_items(pool.threads(), [&](int32_t, int32_t) { sink = loop(kRounds); }); });
  (void)sink;
  return per_round * static_cast<double>(kRounds) * pool.threads() / t.seconds / 1e9;
}

}  // namespace

Bounds measure_bounds(const std::string& isa, ThreadPool& pool) {
  const MachineLoops& loops = loops_of(isa);
  ThreadPool::Session session(pool);
  Bounds bounds;
  bounds.f32_gflops = gflops(pool, loops.multiply, 2.0 * kChains * loops.lanes);
  if (loops.dot != nullptr)
    bounds.bf16_gflops = gflops(pool, loops.dot, 4.0 * kChains * loops.lanes);
  bounds.int8_gops = gflops(pool, loops.int8, 2.0 * loops.int8_depth * kChains * loops.lanes);
  HugeBuffer memory(kReadBytes, "the read benchmark");
  const auto floats = static_cast<int64_t>(kReadBytes / 4);
  std::fill_n(memory.as<float>(), floats, 1.0f);
  const Timing t = time_of([&] {
    pool.run_items(pool.threads(), [&](int32_t item, int32_t) {
      const int64_t part = floats / pool.threads() / 1024 * 1024;
      volatile float sink = loops.read(memory.as<float>() + item * part, part);
      (void)sink;
    });
  });
  bounds.read_gbs = static_cast<double>(kReadBytes) / t.seconds / 1e9;
  return bounds;
}

}  // namespace manyfold::bench
