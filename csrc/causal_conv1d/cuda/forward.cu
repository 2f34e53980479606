// Launches the forward kernels of causal_conv1d.
#include "causal_conv1d/cuda/forward.cuh"
#include "causal_conv1d/cuda/launch.cuh"

namespace bdam_fast::causal_conv1d {

void causal_conv1d_forward_cuda(const ConvParams& p, const ConvPlan& plan, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  if (p.B == 0) return;
  BDAM_SWITCH_DEVICE_DTYPE(p.x.dtype, T, {
    if (plan.rows)
      for_row_width(p.width, [&](auto width) {
        BDAM_LAUNCH((forward_rows<T, width>), row_blocks(p, plan), kThreads, 0, queue, p, plan);
      });
    else
      for_channels_kernel(p, plan, [&](auto vector, auto width, auto packed) {
        BDAM_LAUNCH((forward_channels<T, vector, width, packed>), channel_blocks(p, plan), dim3(32, kRunsPerBlock), 0,
                    queue, p, plan);
      });
  })
}

}  // namespace bdam_fast::causal_conv1d
