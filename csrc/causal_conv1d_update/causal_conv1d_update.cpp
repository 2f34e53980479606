// causal_conv1d_update: schema, checks, allocation and the CPU kernel's registration. Every check stands before the
// first write, so that a refused call leaves the state as it was.
#include "causal_conv1d_update/causal_conv1d_update.h"

#include <torch/csrc/stable/library.h>

#include "causal_conv1d_update/call.h"

namespace bdam_fast {

namespace {
CallCounter calls("causal_conv1d_update.cpu.forward");

Tensor update(const Tensor& x, Tensor conv_state, const Tensor& weight, const OptionalTensor& bias, bool silu) {
  calls.increment();
  ConvUpdateParams p = causal_conv1d_update::inputs(x, conv_state, weight, bias, silu);
  Tensor out = allocate_like(x);
  p.out = causal_conv1d_update::steps("out", out);
  causal_conv1d_update_cpu(p);
  return out;
}
}  // namespace

}  // namespace bdam_fast

STABLE_TORCH_LIBRARY_FRAGMENT(BDAM_OPS, m) {
  m.def("causal_conv1d_update(Tensor x, Tensor(a!) conv_state, Tensor weight, Tensor? bias, bool silu) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(BDAM_OPS, CPU, m) { m.impl("causal_conv1d_update", TORCH_BOX(&bdam_fast::update)); }
