// causal_conv1d_update on a GPU: checks, allocation and the kernel's registration. Every check stands before the first
// write, so that a refused call leaves the state as it was.
#include "causal_conv1d_update/cuda/launch.h"

#include "causal_conv1d_update/call.h"
#include "common/cuda_binding.h"

namespace bdam_fast {

namespace {
using namespace causal_conv1d_update;

CallCounter calls("causal_conv1d_update.cuda.forward");

Tensor update(const Tensor& x, Tensor conv_state, const Tensor& weight, const OptionalTensor& bias, bool silu) {
  calls.increment();
  check_device(kOp, "conv_state", conv_state, x);
  check_device(kOp, "weight", weight, x);
  check_device(kOp, "bias", bias, x);
  ConvUpdateParams p = inputs(x, conv_state, weight, bias, silu);
  STD_TORCH_CHECK(!p.is_double, kOp, ": the CUDA kernels take no float64 x");
  STD_TORCH_CHECK(p.channels < 0x7fffffff, kOp, ": x must have less than 2^31 - 1 channels");
  const CudaScope scope(x);
  Tensor out = allocate_like(x);
  p.out = steps("out", out);
  causal_conv1d_update_cuda(p, scope.stream());
  return out;
}
}  // namespace

}  // namespace bdam_fast

STABLE_TORCH_LIBRARY_IMPL(BDAM_OPS, BDAM_KEY, m) { m.impl("causal_conv1d_update", TORCH_BOX(&bdam_fast::update)); }
