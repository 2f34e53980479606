#include "selective_scan/cuda/backward_launch.cuh"

namespace bdam_fast::device {
template void backward<float>(const CudaScanParams& p);
}  // namespace bdam_fast::device
