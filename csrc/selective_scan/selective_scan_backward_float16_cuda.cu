#include "selective_scan/selective_scan_backward_launch.cuh"

namespace bdam_fast::device {
template void backward<__half>(const CudaScanParams& p);
}  // namespace bdam_fast::device
