// The state of the extension at run time: the instruction set in use and the calls of each kernel.
#pragma once
#include <atomic>
#include <cstdint>

// Kernels for several instruction sets are in one build, and the processor decides.
#if defined(__x86_64__) && defined(__GNUC__)
#define BDAM_X86_DISPATCH 1
#endif

namespace bdam_fast {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2 };
inline constexpr const char* kIsaNames[] = {"baseline", "avx2", "avx512"};

Isa best_isa();         // the widest that this CPU runs and this build holds
Isa current_isa();      // best_isa(), or less where set_isa() says so
void set_isa(Isa isa);  // at most best_isa()

// While on, results and working memory are filled with NaN bytes before a kernel runs: tests find the
// elements that it fails to write.
bool poison();
void set_poison(bool on);

// A named call count; a kernel's entry holds one as a static object and increments it on each call.
struct CallCounter {
  explicit CallCounter(const char* name);
  void increment() { count.fetch_add(1, std::memory_order_relaxed); }

  const char* name;
  std::atomic<int64_t> count{0};
  CallCounter* next;
};
CallCounter* first_counter();

}  // namespace bdam_fast
