// Launches the backward kernels of causal_conv1d.
#include "causal_conv1d/cuda/backward.cuh"
#include "causal_conv1d/cuda/launch.cuh"

namespace bdam_fast::causal_conv1d {

namespace {
void sum_gradients(const ConvParams& p, const ConvPlan& plan, cudaStream_t queue) {
  const dim3 grid(static_cast<unsigned>(ceil_div(p.D, 32)), p.width + 1);
  BDAM_LAUNCH((sum_partials<>), grid, dim3(32, kSumRows), 0, queue, p, p.B * plan.partials);
}
}  // namespace

void causal_conv1d_backward_cuda(const ConvParams& p, const ConvPlan& plan, void* stream) {
  const auto queue = static_cast<cudaStream_t>(stream);
  if (p.B == 0) return sum_gradients(p, plan, queue);
  BDAM_SWITCH_DEVICE_DTYPE(p.x.dtype, T, {
    if (plan.rows)
      for_row_width(p.width, [&](auto width) {
        BDAM_LAUNCH((backward_rows<T, width>), row_blocks(p, plan), kThreads, 0, queue, p, plan);
      });
    else
      for_channels_kernel(p, plan, [&](auto vector, auto width, auto packed) {
        const size_t bytes = kThreads * vector * (width + 1) * sizeof(float);
        BDAM_LAUNCH((backward_channels<T, vector, width, packed>), channel_blocks(p, plan), dim3(32, kRunsPerBlock),
                    bytes, queue, p, plan);
      });
  })
  sum_gradients(p, plan, queue);
}

}  // namespace bdam_fast::causal_conv1d
