// Runs the tasks of one step on PyTorch's own threads. Channels are independent of each other, so the bits do not
// depend on how they are cut into tasks.
#include "causal_conv1d_update/causal_conv1d_update.h"

#include <torch/csrc/stable/ops.h>

#define BDAM_ISA_SOURCE "causal_conv1d_update/cpu/kernel.inl"
#include "common/foreach_isa.h"

namespace bdam_fast {

void causal_conv1d_update_cpu(const ConvUpdateParams& p) {
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) BDAM_FOR_ISA(p.is_double, conv_update_task, p, i);
  };
  // Less than about 10 us of work (16k outputs) is not worth waking a thread for.
  const int64_t work = std::min(p.channels, kConvUpdateTaskChannels) * std::max<int64_t>(1, p.length);
  const int64_t grain = std::max<int64_t>(1, 16384 / work);
  if (p.tasks() <= grain) return run(0, p.tasks());
  torch::stable::parallel_for(0, p.tasks(), grain, run);
}

}  // namespace bdam_fast
