// Runs the convolution's tasks on PyTorch's own threads. The division into tasks, and the order of every sum, depend on
// shapes only, so that the bits do not depend on the number of threads.
#include "causal_conv1d/causal_conv1d.h"

#include <torch/csrc/stable/ops.h>

#define BDAM_ISA_SOURCE "causal_conv1d/cpu/kernel.inl"
#include "common/foreach_isa.h"

namespace bdam_fast {

namespace {
template <class F>
void parallel(int64_t tasks, int64_t elements_per_task, const F& f) {
  // Less than about 10 us of work (16k outputs) is not worth waking a thread for.
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, elements_per_task));
  if (tasks <= grain) {
    for (int64_t i = 0; i < tasks; ++i) f(i);
    return;
  }
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

int64_t task_elements(const ConvParams& p) { return p.blocks * conv_lanes(p.is_double) * p.piece; }
int64_t blocks(const ConvParams& p) { return p.padded_D / conv_lanes(p.is_double); }

void prepare(const ConvParams& p) {
  for (int64_t i = 0; i < blocks(p); ++i) BDAM_FOR_ISA(p.is_double, read_taps, p, i);
}
}  // namespace

int conv_lanes(bool is_double) {
  int n = 0;
  BDAM_FOR_ISA(is_double, count_lanes, n);
  return n;
}

void causal_conv1d_forward_cpu(const ConvParams& p) {
  prepare(p);
  parallel(p.tasks(), task_elements(p), [&](int64_t i) { BDAM_FOR_ISA(p.is_double, forward_any, p, i); });
}

void causal_conv1d_backward_cpu(const ConvParams& p) {
  prepare(p);
  parallel(p.tasks(), task_elements(p), [&](int64_t i) { BDAM_FOR_ISA(p.is_double, backward_any, p, i); });
  parallel(blocks(p), p.B * p.pieces * (p.width + 1) * conv_lanes(p.is_double),
           [&](int64_t i) { BDAM_FOR_ISA(p.is_double, sum_tap_gradients, p, i); });
}

}  // namespace bdam_fast
