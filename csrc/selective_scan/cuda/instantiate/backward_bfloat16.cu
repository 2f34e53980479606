#include "selective_scan/cuda/backward_launch.cuh"

namespace bdam_fast::device {
template void backward<__nv_bfloat16>(const CudaScanParams& p);
}  // namespace bdam_fast::device
