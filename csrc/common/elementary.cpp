// Values and speed of the kernels' elementary functions: tests bound their error, benchmarks state a
// kernel's time as a share of the time that its exponentials alone need.
#include "common/elementary.h"

#include <torch/csrc/stable/library.h>

#include <chrono>
#include <vector>

#include "common/checks.h"

#define BDAM_ISA_SOURCE "common/elementary.inl"
#include "common/foreach_isa.h"

namespace bdam_fast {

namespace {
constexpr int64_t kBlock = 2048;  // floats of input and of output: 16 kB, half of the smallest L1
constexpr int64_t kWidest = 16;

Tensor elementary(const Tensor& x, int64_t function) {
  const char* op = "elementary";
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.is_contiguous(), op, ": x must be contiguous float32");
  STD_TORCH_CHECK(0 <= function && function < kElementaryCount, op, ": function must be within [0, ", kElementaryCount,
                  "), got ", function);
  const int64_t count = x.numel(), padded = (count + kWidest - 1) / kWidest * kWidest;
  std::vector<float> in(padded), out(padded);
  if (count > 0) std::memcpy(in.data(), x.data_ptr(), count * sizeof(float));
  BDAM_FOR_ISA(false, elementary_map, static_cast<int>(function), in.data(), out.data(), padded);
  Tensor y = allocate_like(x);
  if (count > 0) std::memcpy(y.data_ptr(), out.data(), count * sizeof(float));
  return y;
}
}  // namespace

double elementary_rate(int function) {
  // The gap keeps the input from standing a multiple of 4 kB before the output, where each load waits for a store.
  std::vector<float> memory(2 * kBlock + kBlock / 4);
  float *in = memory.data(), *out = in + kBlock + kBlock / 4;
  for (int64_t i = 0; i < kBlock; ++i) in[i] = -8.f * static_cast<float>(i) / kBlock;
  double best = 0;
  // 30 windows of about 1 ms; the fastest, since any disturbance only makes a window slower.
  for (int window = 0; window < 30; ++window) {
    const int64_t rounds = 2000;
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < rounds; ++i) BDAM_FOR_ISA(false, elementary_map, function, in, out, kBlock);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(rounds * kBlock) / seconds.count());
  }
  return best;
}

}  // namespace bdam_fast

STABLE_TORCH_LIBRARY_FRAGMENT(BDAM_OPS, m) { m.def("elementary(Tensor x, int function) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(BDAM_OPS, CPU, m) { m.impl("elementary", TORCH_BOX(&bdam_fast::elementary)); }
