// selective_state_update: schema, allocation and the CPU kernel's registration.
#include "selective_state_update/selective_state_update.h"

#include <torch/csrc/stable/library.h>

#include "common/checks.h"
#include "common/runtime.h"
#include "selective_state_update/call.h"

namespace bdam_fast {

namespace {
using namespace selective_state_update;
CallCounter calls("selective_state_update.cpu.forward");

Tensor update(Tensor state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
              const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& dt_bias, bool dt_softplus) {
  calls.increment();
  StateUpdateParams p = parameters(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus);
  Tensor out = allocate_like(x);
  p.out = step("out", out, p);
  selective_state_update_cpu(p);
  return out;
}
}  // namespace

}  // namespace bdam_fast

STABLE_TORCH_LIBRARY_FRAGMENT(BDAM_OPS, m) {
  m.def(
      "selective_state_update(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, "
      "Tensor? z, Tensor? dt_bias, bool dt_softplus) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(BDAM_OPS, CPU, m) { m.impl("selective_state_update", TORCH_BOX(&bdam_fast::update)); }
