// The launch of the convolution's step on a GPU. No torch and no CUDA in here.
#pragma once
#include "causal_conv1d_update/causal_conv1d_update.h"

namespace bdam_fast::causal_conv1d_update {

// `stream` is a cudaStream_t.
void causal_conv1d_update_cuda(const ConvUpdateParams& p, void* stream);

}  // namespace bdam_fast::causal_conv1d_update
