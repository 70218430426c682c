// Runs the threads of a block as fibers. See cuda_runtime.h beside it.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "cuda_runtime.h"
#include "runtime.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr unsigned kLanes = 32;
constexpr unsigned char kPoison = 0xcb;

struct PendingCopy {
  void* to;
  const void* from;
  size_t bytes;
  bool valid;
};

struct Warp {
  alignas(64) unsigned char slots[kLanes][64];
  unsigned arrived = 0, left = 0;
  uint64_t round = 0;
};

struct Fiber {
  std::unique_ptr<unsigned char[]> stack;
#if defined(__x86_64__)
  void* sp = nullptr;
#else
  ucontext_t context;
#endif
  ThreadIndex index;
  unsigned linear = 0;
  bool done = false;
  std::vector<std::vector<PendingCopy>> groups;  // of cp.async; the last one is still open
};

struct Block {
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  std::map<const void*, std::vector<unsigned char>> shared;
  std::vector<unsigned char> dynamic;
  const std::function<void()>* body = nullptr;
  unsigned waiting = 0, alive = 0;
  uint64_t barrier_round = 0;
  uint64_t progress = 0;  // meetings that came about, and fibers that ended
};

Block* block = nullptr;
Fiber* current = nullptr;
std::vector<std::unique_ptr<Fiber>> pool;
uint64_t seed = 1;

#if defined(__x86_64__)
void* scheduler_sp = nullptr;
extern "C" void simt_switch(void** save, void* load);
// Callee-saved registers of the System V ABI go to the old stack and come from the new one.
asm(R"(
.text
.globl simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");
#else
ucontext_t scheduler;
#endif

void to_scheduler() {
  Fiber* me = current;
#if defined(__x86_64__)
  simt_switch(&me->sp, scheduler_sp);
#else
  swapcontext(&me->context, &scheduler);
#endif
  current = me;
}

void run_fiber() {
  (*block->body)();
  for (const std::vector<PendingCopy>& group : current->groups) {
    if (!group.empty()) broken("a thread ended with copies that it did not wait for");
  }
  current->done = true;
  --block->alive;
  ++block->progress;
  if (block->waiting > 0) broken("a thread ended before a barrier that others wait at");
  to_scheduler();
}

void start(Fiber& fiber) {
  if (!fiber.stack) fiber.stack = std::make_unique<unsigned char[]>(kStackBytes);
  fiber.done = false;
  fiber.groups.assign(1, {});
#if defined(__x86_64__)
  auto top = reinterpret_cast<uintptr_t>(fiber.stack.get() + kStackBytes) & ~uintptr_t{15};
  auto** sp = reinterpret_cast<void**>(top);
  *--sp = nullptr;  // keeps the stack as a call would leave it
  *--sp = reinterpret_cast<void*>(&run_fiber);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  fiber.sp = sp;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = &scheduler;
  makecontext(&fiber.context, &run_fiber, 0);
#endif
}

void resume(Fiber& fiber) {
  current = &fiber;
#if defined(__x86_64__)
  simt_switch(&scheduler_sp, fiber.sp);
#else
  swapcontext(&scheduler, &fiber.context);
#endif
}

void run_block(Block& running, std::mt19937_64& random) {
  block = &running;
  std::vector<Fiber*> order = running.fibers;
  while (running.alive > 0) {
    std::shuffle(order.begin(), order.end(), random);
    const uint64_t before = running.progress;
    for (Fiber* fiber : order) {
      if (!fiber->done) resume(*fiber);
    }
    if (running.progress == before) broken("threads wait for each other without end");
  }
  block = nullptr;
}

dim3 unfold(unsigned linear, dim3 shape) {
  return {linear % shape.x, linear / shape.x % shape.y, linear / shape.x / shape.y};
}

}  // namespace

void set_seed(uint64_t value) {
  seed = value;
}

const ThreadIndex& index() {
  return current->index;
}

unsigned lane() {
  return current->linear % kLanes;
}

void broken(const char* rule) {
  const ThreadIndex& at = current->index;
  std::fprintf(stderr, "simt: %s (block %u %u %u, thread %u, seed %llu)\n", rule, at.block.x,
               at.block.y, at.block.z, current->linear, static_cast<unsigned long long>(seed));
  std::abort();
}

void barrier() {
  const uint64_t round = block->barrier_round;
  if (block->alive != block->fibers.size()) {
    broken("a barrier is waited at after a thread of the block ended");
  }
  if (++block->waiting == block->fibers.size()) {
    block->waiting = 0;
    ++block->barrier_round;
    ++block->progress;
    return;
  }
  while (block->barrier_round == round) to_scheduler();
}

const unsigned char* meet_warp(const void* mine, size_t bytes) {
  Warp& warp = block->warps[current->linear / kLanes];
  while (warp.left > 0) to_scheduler();
  std::memcpy(warp.slots[lane()], mine, bytes);
  const uint64_t round = warp.round;
  if (++warp.arrived == kLanes) {
    warp.arrived = 0;
    warp.left = kLanes;
    ++warp.round;
    ++block->progress;
  } else {
    while (warp.round == round) to_scheduler();
  }
  return warp.slots[0];
}

void leave_warp() {
  --block->warps[current->linear / kLanes].left;
  ++block->progress;
}

void* shared_piece(const void* place, size_t bytes) {
  auto& piece = block->shared[place];
  if (piece.empty()) piece.assign(bytes + 128, kPoison);
  const auto at = reinterpret_cast<uintptr_t>(piece.data());
  return reinterpret_cast<void*>((at + 127) & ~uintptr_t{127});
}

void* dynamic_shared() {
  const auto at = reinterpret_cast<uintptr_t>(block->dynamic.data());
  return reinterpret_cast<void*>((at + 127) & ~uintptr_t{127});
}

void copy_async(void* to, const void* from, size_t bytes, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 ||
      (valid && reinterpret_cast<uintptr_t>(from) % bytes != 0)) {
    broken("cp.async needs addresses that are multiples of its size");
  }
  std::memset(to, kPoison, bytes);
  current->groups.back().push_back({to, from, bytes, valid});
}

void copy_commit() {
  current->groups.emplace_back();
}

void copy_wait(int groups_left) {
  auto& groups = current->groups;
  while (groups.size() > static_cast<size_t>(groups_left) + 1) {
    for (const PendingCopy& copy : groups.front()) {
      if (copy.valid) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      } else {
        std::memset(copy.to, 0, copy.bytes);
      }
    }
    groups.erase(groups.begin());
  }
}

void run_grid(dim3 grid, dim3 shape, size_t dynamic_bytes, const std::function<void()>& body) {
  const unsigned threads = shape.x * shape.y * shape.z;
  if (threads == 0 || threads > 1024 || threads % kLanes != 0) {
    std::fprintf(stderr, "simt: a block of %u threads; expected a multiple of 32 up to 1024\n",
                 threads);
    std::abort();
  }
  while (pool.size() < threads) pool.push_back(std::make_unique<Fiber>());
  std::mt19937_64 random(seed);
  for (unsigned b = 0; b < grid.x * grid.y * grid.z; ++b) {
    Block running;
    running.warps.resize(threads / kLanes);
    running.dynamic.assign(dynamic_bytes + 128, kPoison);
    running.body = &body;
    running.alive = threads;
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = *pool[i];
      fiber.linear = i;
      fiber.index = {unfold(i, shape), unfold(b, grid), shape, grid};
      start(fiber);
      running.fibers.push_back(&fiber);
    }
    run_block(running, random);
  }
}

}  // namespace simt
