// Runs a CUDA grid on the CPU: every thread of a block is a fiber with a stack of its own, blocks run one after
// another. A fiber runs until it waits at a barrier; the scheduler then takes another one. In which order blocks and
// threads run says the environment variable BDAM_HOST_ORDER: forward (the default), reverse, or random[:seed]. A kernel
// whose bits depend on it lacks a barrier. What a GPU would leave undefined is NaN here or stops the process with a
// sentence.
#pragma once
#include <sys/mman.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define HOST_CUDA_ASAN 1
#include <sanitizer/common_interface_defs.h>
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace host_cuda {

[[noreturn]] inline void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::fputs("host_cuda: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  va_end(arguments);
  std::abort();
}

// --- switching stacks

#ifdef __x86_64__
// System V: the callee-saved registers go to the old stack and come from the new one. A tenth of swapcontext's time,
// which makes two system calls.
extern "C" void host_cuda_swap(void** from, void* to);
asm(R"(
.text
.weak host_cuda_swap
.hidden host_cuda_swap
.type host_cuda_swap,@function
host_cuda_swap:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size host_cuda_swap, . - host_cuda_swap
)");
struct Context {
  void* stack_pointer = nullptr;
  void start(char* stack, size_t size, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + size) - 2;  // as after a call: 8 bytes off a multiple of 16
    *top = reinterpret_cast<void*>(entry);
    stack_pointer = top - 6;
  }
  void switch_to(Context& other) { host_cuda_swap(&stack_pointer, other.stack_pointer); }
};
#else
struct Context {
  ucontext_t context;
  void start(char* stack, size_t size, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&context, &other.context); }
};
#endif

// Stacks in one mapping, an inaccessible page below each, so that an overflow is a fault and not a neighbour's data.
class Stacks {
 public:
  static constexpr size_t kSize = 256 << 10, kGuard = 4096, kPitch = kSize + kGuard;
  ~Stacks() { release(); }
  void reserve(size_t count) {
    if (count <= count_) return;
    release();
    void* memory = mmap(nullptr, count * kPitch, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for %zu stacks", count);
    base_ = static_cast<char*>(memory), count_ = count;
    for (size_t i = 0; i < count; ++i) mprotect(base_ + i * kPitch, kGuard, PROT_NONE);
  }
  char* at(size_t i) const { return base_ + i * kPitch + kGuard; }

 private:
  void release() {
    if (base_ != nullptr) munmap(base_, count_ * kPitch);
    base_ = nullptr, count_ = 0;
  }
  char* base_ = nullptr;
  size_t count_ = 0;
};

// --- threads and what they wait for

constexpr int kWarp = 32;

struct Place {  // in the source
  const char* file = "";
  int line = 0;
};

// Opens when `expected` threads have arrived. All of them must come from one place in the source: on a GPU a barrier
// that only a part of a warp reaches is undefined.
struct Barrier {
  unsigned generation = 0;
  int arrived = 0;
  uint32_t mask = 0;
  Place place;
};

struct Copy {  // an asynchronous copy that was begun
  void* to;
  const void* from;
  size_t bytes;
};

struct Fiber {
  Context context;
  dim3 index;
  unsigned linear = 0;
  bool done = false;
  Barrier* barrier = nullptr;  // waits for it to leave this generation
  unsigned generation = 0;
  Place place;
  std::vector<Copy> copies;

  bool runnable() const { return !done && (barrier == nullptr || barrier->generation != generation); }
  unsigned warp() const { return linear / kWarp; }
  unsigned lane() const { return linear % kWarp; }
};

struct Slot {  // what a thread shows to its warp
  alignas(16) unsigned char bytes[32];
};

struct State {
  std::mutex mutex;  // one grid at a time
  Stacks stacks;
  std::vector<Fiber> fibers;
  std::vector<Barrier> warp_barriers;  // [warp][lowest lane of the mask]
  std::vector<Slot> slots;             // by thread
  Barrier block_barrier;
  Context scheduler;
  Fiber* current = nullptr;
  dim3 block_index, block, grid;
  unsigned alive = 0;
  std::function<void()> body;
  unsigned char* shared = nullptr;  // dynamic shared memory
  size_t shared_bytes = 0;
  const char* kernel = "";
  uint64_t random = 0;
#ifdef HOST_CUDA_ASAN
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
#endif
};
inline State state;

inline unsigned threads_of(const dim3& d) { return d.x * d.y * d.z; }
// The lanes that a warp has: all 32 but in the last warp of a block.
inline uint32_t lanes_of_warp(unsigned warp) {
  const unsigned left = threads_of(state.block) - warp * kWarp;
  return left >= kWarp ? ~0u : (1u << left) - 1;
}

// --- the scheduler's side and the fibers' side of a switch

inline void resume(Fiber& fiber) {
  state.current = &fiber;
#ifdef HOST_CUDA_ASAN
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, state.stacks.at(fiber.linear), Stacks::kSize);
#endif
  state.scheduler.switch_to(fiber.context);
#ifdef HOST_CUDA_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

inline void yield() {
  Fiber& fiber = *state.current;
#ifdef HOST_CUDA_ASAN
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, state.scheduler_stack, state.scheduler_stack_size);
#endif
  asm volatile("" ::: "memory");  // other fibers change what the compiler holds in registers
  fiber.context.switch_to(state.scheduler);
  asm volatile("" ::: "memory");
#ifdef HOST_CUDA_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

__attribute__((no_sanitize("address"))) inline void enter_fiber() {
#ifdef HOST_CUDA_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &state.scheduler_stack, &state.scheduler_stack_size);
#endif
  state.body();
  state.current->done = true;
  --state.alive;
#ifdef HOST_CUDA_ASAN
  __sanitizer_start_switch_fiber(nullptr, state.scheduler_stack, state.scheduler_stack_size);
#endif
  state.current->context.switch_to(state.scheduler);
  fail("a finished thread was resumed");
}

inline void wait(Barrier& barrier, int expected, uint32_t mask, Place place) {
  Fiber& fiber = *state.current;
  if (barrier.arrived == 0) barrier.mask = mask, barrier.place = place;
  if (barrier.place.line != place.line || std::strcmp(barrier.place.file, place.file) != 0)
    fail("%s: threads of block (%u, %u, %u) meet at different barriers, %s:%d and %s:%d", state.kernel,
         state.block_index.x, state.block_index.y, state.block_index.z, barrier.place.file, barrier.place.line,
         place.file, place.line);
  if (barrier.mask != mask)
    fail("%s: %s:%d: masks %08x and %08x meet", state.kernel, place.file, place.line, barrier.mask, mask);
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  fiber.barrier = &barrier, fiber.generation = barrier.generation, fiber.place = place;
  yield();
  fiber.barrier = nullptr;
}

inline void wait_for_block(Place place) {
  wait(state.block_barrier, static_cast<int>(state.fibers.size()), ~0u, place);
}

inline void wait_for_warp(uint32_t mask, Place place) {
  const Fiber& fiber = *state.current;
  if (!(mask >> fiber.lane() & 1))
    fail("%s: %s:%d: lane %u is not in its mask %08x", state.kernel, place.file, place.line, fiber.lane(), mask);
  mask &= lanes_of_warp(fiber.warp());
  wait(state.warp_barriers[fiber.warp() * kWarp + __builtin_ctz(mask)], __builtin_popcount(mask), mask, place);
}

// All lanes of the mask show a value; `read` gets a function from lane to value, of NaN bytes where a lane shows none.
template <class T, class Read>
auto exchange(uint32_t mask, const T& value, Place place, const Read& read) {
  static_assert(sizeof(T) <= sizeof(Slot));
  const Fiber& fiber = *state.current;
  std::memcpy(state.slots[fiber.linear].bytes, &value, sizeof(T));
  wait_for_warp(mask, place);
  const uint32_t present = mask & lanes_of_warp(fiber.warp());
  const auto result = read([&](unsigned lane) {
    T other;
    std::memset(&other, 0xff, sizeof(T));
    if (present >> lane & 1) std::memcpy(&other, state.slots[fiber.warp() * kWarp + lane].bytes, sizeof(T));
    return other;
  });
  wait_for_warp(mask, place);  // nobody shows the next value before all have read this one
  return result;
}

// --- a grid

enum class Order { forward, reverse, random };

inline uint32_t next_random() {
  state.random = state.random * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(state.random >> 33);
}

inline Order chosen_order() {
  const char* name = std::getenv("BDAM_HOST_ORDER");
  if (name == nullptr || std::strcmp(name, "forward") == 0) return Order::forward;
  if (std::strcmp(name, "reverse") == 0) return Order::reverse;
  if (std::strncmp(name, "random", 6) != 0) fail("BDAM_HOST_ORDER must be forward, reverse or random, got %s", name);
  state.random = 1 + (name[6] == ':' ? std::strtoull(name + 7, nullptr, 10) : 0);
  return Order::random;
}

// i, or what stands at place i of `count` in another order
inline uint64_t ordered(uint64_t i, uint64_t count, Order order, uint64_t offset) {
  if (order == Order::forward) return i;
  return order == Order::reverse ? count - 1 - i : (i + offset) % count;
}

[[noreturn]] inline void report_deadlock() {
  const Fiber* waiting = nullptr;
  unsigned finished = 0;
  for (const Fiber& f : state.fibers) {
    if (f.done) ++finished;
    if (!f.done && waiting == nullptr) waiting = &f;
    if (!f.done && f.place.line != waiting->place.line)
      fail("%s: deadlock: thread %u waits at %s:%d, thread %u at %s:%d", state.kernel, waiting->linear,
           waiting->place.file, waiting->place.line, f.linear, f.place.file, f.place.line);
  }
  fail("%s: deadlock: thread %u waits at %s:%d for threads of which %u have finished", state.kernel, waiting->linear,
       waiting->place.file, waiting->place.line, finished);
}

inline void run_block(Order order) {
  const unsigned count = threads_of(state.block), warps = (count + kWarp - 1) / kWarp;
  state.block_barrier = Barrier{};
  state.warp_barriers.assign(warps * kWarp, Barrier{});
  state.alive = count;
  for (unsigned i = 0; i < count; ++i) {
    Fiber& f = state.fibers[i];
    f.index = dim3(i % state.block.x, i / state.block.x % state.block.y, i / (state.block.x * state.block.y));
    f.linear = i, f.done = false, f.barrier = nullptr, f.place = Place{};
    f.copies.clear();
    f.context.start(state.stacks.at(i), Stacks::kSize, enter_fiber);
  }
  unsigned idle = 0;
  while (state.alive > 0) {
    // In random order one warp runs ahead of the others as far as it gets, its lanes in turn.
    const bool one_warp = order == Order::random && idle == 0;
    const unsigned first = one_warp ? next_random() % warps * kWarp : 0;
    const unsigned size = one_warp ? std::min<unsigned>(kWarp, count - first) : count;
    const unsigned offset = order == Order::random ? next_random() % size : 0;
    bool ran = false;
    for (unsigned i = 0; i < size; ++i) {
      Fiber& f = state.fibers[first + ordered(i, size, order, offset)];
      if (!f.runnable()) continue;
      ran = true;
      resume(f);
    }
    idle = ran ? 0 : idle + 1;
    if (idle > 1) report_deadlock();
  }
}

constexpr size_t kCanary = 64;

// Memory of exactly the size asked for, so that AddressSanitizer sees what lies behind it; without the sanitizer some
// bytes behind it are watched.
inline void prepare_shared(size_t bytes) {
  std::free(state.shared);
  void* memory = nullptr;
#ifdef HOST_CUDA_ASAN
  const size_t extra = bytes == 0;
#else
  const size_t extra = kCanary;
#endif
  if (posix_memalign(&memory, 128, bytes + extra) != 0) fail("no memory");
  state.shared = static_cast<unsigned char*>(memory), state.shared_bytes = bytes;
  std::memset(memory, 0xff, bytes + extra);
}
inline void check_shared() {
#ifndef HOST_CUDA_ASAN
  for (size_t i = 0; i < kCanary; ++i)
    if (state.shared[state.shared_bytes + i] != 0xff)
      fail("%s: writes past its %zu bytes of dynamic shared memory", state.kernel, state.shared_bytes);
#endif
}

inline void run_grid(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> body) {
  const std::lock_guard<std::mutex> lock(state.mutex);
  const Order order = chosen_order();
  const unsigned count = threads_of(block);
  state.kernel = kernel, state.grid = grid, state.block = block, state.body = std::move(body);
  state.stacks.reserve(count);
  state.fibers.resize(count);
  state.slots.resize(count);
  prepare_shared(shared_bytes);
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z, offset = order == Order::random ? next_random() : 0;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t b = ordered(i, blocks, order, offset);
    state.block_index = dim3(b % grid.x, b / grid.x % grid.y, b / (uint64_t{grid.x} * grid.y));
    std::memset(state.shared, 0xff, state.shared_bytes);
    run_block(order);
    check_shared();
  }
}

}  // namespace host_cuda
