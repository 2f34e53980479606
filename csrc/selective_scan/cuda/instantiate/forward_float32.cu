#include "selective_scan/cuda/forward_launch.cuh"

namespace bdam_fast::device {
template void forward<float>(const CudaScanParams& p);
template void carry<float>(const CudaScanParams& p);
}  // namespace bdam_fast::device
