#include "common/runtime.h"

namespace bdam_fast {

namespace {
CallCounter* counters = nullptr;
std::atomic<bool> poisoned{false};

Isa detect() {
#ifdef BDAM_X86_DISPATCH
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
    return Isa::avx2;
#endif
  return Isa::baseline;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}
}  // namespace

Isa best_isa() {
  static const Isa isa = detect();
  return isa;
}
Isa current_isa() { return chosen().load(std::memory_order_relaxed); }
void set_isa(Isa isa) { chosen().store(isa <= best_isa() ? isa : best_isa()); }

bool poison() { return poisoned.load(std::memory_order_relaxed); }
void set_poison(bool on) { poisoned.store(on); }

CallCounter::CallCounter(const char* counter_name) : name(counter_name), next(counters) { counters = this; }
CallCounter* first_counter() { return counters; }

}  // namespace bdam_fast
