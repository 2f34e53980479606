// Launches selective_state_update.
#include "selective_state_update/cuda/forward.cuh"

namespace bdam_fast {

namespace {
template <class T, class S>
void launch(const StateUpdateParams& p, cudaStream_t stream) {
  device::UpdateViews<T, S> v{};
  v.state = device::view_of<S>(p.state);
  v.x = device::view_of<const T>(p.x);
  v.dt = device::view_of<const T>(p.dt);
  v.z = device::view_of<const T>(p.z);
  v.out = device::view_of<T>(p.out);
  v.A = device::view_of<const float>(p.A);
  v.skip = device::view_of<const float>(p.skip);
  v.bias = device::view_of<const float>(p.bias);
  v.B = device::view_of<const T>(p.B);
  v.C = device::view_of<const T>(p.C);
  v.rows = p.batch * p.channels;
  v.channels = static_cast<int>(p.channels);
  v.states = static_cast<int>(p.states);
  v.B_channels = static_cast<int>(p.channels / p.B_groups);
  v.C_channels = static_cast<int>(p.channels / p.C_groups);
  v.softplus = p.softplus;
  constexpr int kRows = device::kUpdateThreads / device::kUpdateLanes;
  BDAM_LAUNCH((device::state_update<T, S>), dim3(static_cast<unsigned>((v.rows + kRows - 1) / kRows)),
              dim3(device::kUpdateThreads), 0, stream, v);
}
}  // namespace

void selective_state_update_cuda(const StateUpdateParams& p, void* stream) {
  if (p.batch == 0) return;
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  BDAM_SWITCH_DEVICE_DTYPE(p.x.dtype, T, {
    if (p.state.dtype == Dtype::f64)
      launch<T, double>(p, s);
    else
      BDAM_SWITCH_DEVICE_DTYPE(p.state.dtype, S, launch<T, S>(p, s));
  });
}

}  // namespace bdam_fast
