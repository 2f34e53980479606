#include "selective_scan/cuda/forward_launch.cuh"

namespace bdam_fast::device {
template void forward<__half>(const CudaScanParams& p);
template void carry<__half>(const CudaScanParams& p);
}  // namespace bdam_fast::device
