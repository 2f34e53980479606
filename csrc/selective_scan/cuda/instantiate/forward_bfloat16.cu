#include "selective_scan/cuda/forward_launch.cuh"

namespace bdam_fast::device {
template void forward<__nv_bfloat16>(const CudaScanParams& p);
template void carry<__nv_bfloat16>(const CudaScanParams& p);
}  // namespace bdam_fast::device
