// The entry that tests call through ctypes: probe(name, in, out, n) runs one of probe_kernels.cuh. 0, or -1 and the
// text of the error in probe_error().
#include <functional>
#include <map>

#include "probe_kernels.cuh"

namespace bdam_fast::probe {
namespace {
using Entry = std::function<void(const float*, float*, int)>;

const std::map<std::string, Entry>& entries() {
  constexpr size_t bytes = kThreads * sizeof(float);
  static const std::map<std::string, Entry> all = {
      {"reverse_block",
       [](auto* i, auto* o, int n) { BDAM_LAUNCH((reverse_block<true>), n / kThreads, kThreads, bytes, 0, i, o); }},
      {"no_barrier",
       [](auto* i, auto* o, int n) { BDAM_LAUNCH((reverse_block<false>), n / kThreads, kThreads, bytes, 0, i, o); }},
      {"divergent_barrier", [](auto*, auto* o, int) { BDAM_LAUNCH(divergent_barrier, 1, kThreads, 0, 0, o); }},
      {"two_barriers", [](auto*, auto* o, int) { BDAM_LAUNCH(two_barriers, 1, kThreads, 0, 0, o); }},
      {"past_the_end", [](auto*, auto* o, int n) { BDAM_LAUNCH(past_the_end, 1, kThreads, 0, 0, o, n); }},
      {"past_the_shared_end", [](auto*, auto* o, int) { BDAM_LAUNCH(past_the_shared_end, 1, kThreads, bytes, 0, o); }},
      {"misaligned", [](auto* i, auto* o, int) { BDAM_LAUNCH(misaligned, 1, kThreads, 0, 0, i, o); }},
      {"shuffles", [](auto*, auto* o, int) { BDAM_LAUNCH(shuffles, 1, 32, 0, 0, o); }},
      {"half_warp_sums", [](auto*, auto* o, int) { BDAM_LAUNCH(half_warp_sums, 1, 32, 0, 0, o); }},
      {"bf16", [](auto* i, auto* o, int n) { BDAM_LAUNCH((convert<__nv_bfloat16>), 1, kThreads, 0, 0, i, o, n); }},
      {"half", [](auto* i, auto* o, int n) { BDAM_LAUNCH((convert<__half>), 1, kThreads, 0, 0, i, o, n); }},
      {"functions", [](auto* i, auto* o, int n) { BDAM_LAUNCH(functions, 1, kThreads, 0, 0, i, o, n); }},
      {"matrix_product", [](auto* i, auto* o, int) { BDAM_LAUNCH(matrix_product, 1, 32, 0, 0, i, i + 128, o); }},
      {"copy_async", [](auto* i, auto* o, int) { BDAM_LAUNCH((copy_async<true>), 1, kThreads, 4 * bytes, 0, i, o); }},
      {"no_wait", [](auto* i, auto* o, int) { BDAM_LAUNCH((copy_async<false>), 1, kThreads, 4 * bytes, 0, i, o); }},
      {"empty_grid", [](auto*, auto* o, int) { BDAM_LAUNCH(two_barriers, 0, kThreads, 0, 0, o); }},
      {"much_shared", [](auto* i, auto* o, int n) { BDAM_LAUNCH((reverse_block<true>), 1, kThreads, n, 0, i, o); }},
  };
  return all;
}
std::string error;
}  // namespace
}  // namespace bdam_fast::probe

extern "C" __attribute__((visibility("default"))) int probe(const char* name, const float* in, float* out, int n) {
  try {
    bdam_fast::probe::entries().at(name)(in, out, n);
    return 0;
  } catch (const std::exception& e) {
    bdam_fast::probe::error = e.what();
    return -1;
  }
}
extern "C" __attribute__((visibility("default"))) const char* probe_error() { return bdam_fast::probe::error.c_str(); }
