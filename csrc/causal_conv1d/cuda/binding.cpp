// causal_conv1d_forward and causal_conv1d_backward on a GPU: checks, allocation and the kernels' registration.
#include "causal_conv1d/cuda/launch.h"

#include <tuple>

#include "causal_conv1d/call.h"
#include "common/cuda_binding.h"

namespace bdam_fast {

namespace {
using namespace causal_conv1d;

CallCounter forward_calls("causal_conv1d.cuda.forward");
CallCounter backward_calls("causal_conv1d.cuda.backward");

// Inside a kernel steps and channels are 32-bit numbers, of which the longest run is the margin.
constexpr int64_t kMost = 0x7fffffff - 1024;

ConvParams checked_inputs(const Arguments& a) {
  check_device(kOp, "weight", a.weight, a.x);
  check_device(kOp, "bias", a.bias, a.x);
  check_device(kOp, "initial_states", a.initial_states, a.x);
  check_device(kOp, "seq_idx", a.seq_idx, a.x);
  STD_TORCH_CHECK(a.x.scalar_type() != ScalarType::Double, kOp, ": the CUDA kernels take no float64 x");
  const ConvParams p = inputs(a);
  STD_TORCH_CHECK(p.D < kMost && p.L < kMost, kOp, ": x must have less than 2^31 - 1024 channels and steps");
  return p;
}

// States of other types are converted: kernels see float32.
OptionalTensor as_float(const OptionalTensor& t) {
  if (!t || t->scalar_type() == ScalarType::Float) return t;
  Tensor copy = allocate({t->size(0), t->size(1), t->size(2)}, ScalarType::Float, device_of(*t));
  torch::stable::copy_(copy, *t);
  return copy;
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& initial_states, const OptionalTensor& seq_idx, bool silu,
                                   bool reverse, bool return_final_states) {
  forward_calls.increment();
  ConvParams p = checked_inputs({x, weight, bias, initial_states, seq_idx, silu, reverse});
  const CudaScope scope(x);
  const OptionalTensor initial = as_float(initial_states);
  if (initial) p.initial = state("initial_states", *initial, p);
  Tensor out = allocate_like(x);
  p.out = sequence("out", out, p);
  Tensor final_states = allocate_final_states(x, return_final_states, p);
  causal_conv1d_forward_cuda(p, plan_of(p), scope.stream());
  return {out, final_states};
}

// dout as it is where it lies in memory like x, so that both are read along the same dimension.
Tensor readable(const Tensor& dout, const Tensor& x) {
  const int along = x.stride(1) == 1 ? 1 : 2;
  const bool alike = dout.stride(along) == x.stride(along) && dout.scalar_type() == x.scalar_type();
  return alike ? dout : laid_out_like(dout, x);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& dout, const OptionalTensor& dfinal_states,
                                                    const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                                    const OptionalTensor& initial_states, const OptionalTensor& seq_idx,
                                                    bool silu, bool reverse) {
  backward_calls.increment();
  const Arguments arguments{x, weight, bias, initial_states, seq_idx, silu, reverse};
  ConvParams p = checked_inputs(arguments);
  check_device(kOp, "dout", dout, x);
  check_device(kOp, "dfinal_states", dfinal_states, x);
  check_shape(kOp, "dout", dout, {p.B, p.D, p.L});
  const CudaScope scope(x);
  const Tensor upstream = readable(dout, x);
  p.dout = sequence("dout", upstream, p);
  const OptionalTensor initial = as_float(initial_states), dfinal = as_float(dfinal_states);
  if (initial) p.initial = state("initial_states", *initial, p);
  if (dfinal) p.dfinal = state("dfinal_states", *dfinal, p);
  Gradients g = allocate_gradients(arguments, p);
  OptionalTensor dinitial;
  if (initial_states && p.dinitial.dtype != Dtype::f32) {
    dinitial = allocate({p.B, p.D, p.width - 1}, ScalarType::Float, device_of(x));
    p.dinitial = state("dinitial_states", *dinitial, p);
  }
  const ConvPlan plan = plan_of(p);
  const Tensor partial = allocate({p.B * plan.partials, p.width + 1, p.D}, ScalarType::Float, device_of(x));
  p.partial = partial.data_ptr();
  causal_conv1d_backward_cuda(p, plan, scope.stream());
  if (dinitial) torch::stable::copy_(g.initial_states, *dinitial);
  return {g.x, g.weight, g.bias, g.initial_states};
}
}  // namespace

}  // namespace bdam_fast

STABLE_TORCH_LIBRARY_IMPL(BDAM_OPS, BDAM_KEY, m) {
  m.impl("causal_conv1d_forward", TORCH_BOX(&bdam_fast::forward));
  m.impl("causal_conv1d_backward", TORCH_BOX(&bdam_fast::backward));
}
