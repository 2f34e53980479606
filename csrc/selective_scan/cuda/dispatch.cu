// Selective scan on a GPU: the entries of forward and backward, which choose the element type.
#include "selective_scan/cuda/launch.cuh"

namespace bdam_fast {
namespace device {
template <class T>
void forward(const CudaScanParams& p);
template <class T>
void carry(const CudaScanParams& p);
template <class T>
void backward(const CudaScanParams& p);
}  // namespace device

void selective_scan_forward_cuda(const CudaScanParams& p) {
  BDAM_SWITCH_DEVICE_DTYPE(p.dtype, T, device::forward<T>(p));
}

void selective_scan_backward_cuda(const CudaScanParams& p) {
  device::find_steps(p, static_cast<cudaStream_t>(p.stream));
  if (p.chunks() > 1 && p.call.batch > 0) BDAM_SWITCH_DEVICE_DTYPE(p.dtype, T, device::carry<T>(p));
  BDAM_SWITCH_DEVICE_DTYPE(p.dtype, T, device::backward<T>(p));
}

}  // namespace bdam_fast
