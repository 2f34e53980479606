// Launches the kernel of causal_conv1d_update.
#include "causal_conv1d_update/cuda/forward.cuh"

#include "causal_conv1d/cuda/launch.cuh"

namespace bdam_fast::causal_conv1d_update {

void causal_conv1d_update_cuda(const ConvUpdateParams& p, void* stream) {
  if (p.batch == 0) return;
  const auto queue = static_cast<cudaStream_t>(stream);
  const unsigned blocks = causal_conv1d::grid_of(p.batch * causal_conv1d::ceil_div(p.channels, kThreads));
  BDAM_SWITCH_DEVICE_DTYPE(p.x.dtype, T, BDAM_LAUNCH((update<T>), blocks, kThreads, 0, queue, p));
}

}  // namespace bdam_fast::causal_conv1d_update
