// selective_state_update on a GPU: checks, conversions and allocation.
#include "common/cuda_binding.h"
#include "selective_state_update/call.h"

namespace bdam_fast {

namespace {
using namespace selective_state_update;
CallCounter calls("selective_state_update.cuda.forward");

Tensor update(Tensor state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
              const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& dt_bias, bool dt_softplus) {
  calls.increment();
  const std::pair<const char*, const Tensor*> present[] = {{"x", &x}, {"dt", &dt}, {"A", &A}, {"B", &B}, {"C", &C}};
  for (const auto& [name, t] : present) check_device(kOp, name, *t, state);
  check_device(kOp, "D", D, state);
  check_device(kOp, "z", z, state);
  check_device(kOp, "dt_bias", dt_bias, state);
  ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type != ScalarType::Double, kOp, ": the CUDA kernels take no float64 activations");
  for (const Tensor* t : {&dt, &B, &C})
    if (t->scalar_type() != type) type = ScalarType::Float;
  if (z && z->scalar_type() != type) type = ScalarType::Float;
  const CudaScope scope(state);
  const Tensor own_x = converted(kOp, "x", x, type), own_dt = converted(kOp, "dt", dt, type),
               own_B = converted(kOp, "B", B, type);
  const Tensor own_C = converted(kOp, "C", C, type), own_A = converted(kOp, "A", A, ScalarType::Float);
  const OptionalTensor own_z = converted(kOp, "z", z, type), own_D = converted(kOp, "D", D, ScalarType::Float);
  const OptionalTensor own_bias = converted(kOp, "dt_bias", dt_bias, ScalarType::Float);
  StateUpdateParams p = parameters(state, own_x, own_dt, own_A, own_B, own_C, own_D, own_z, own_bias, dt_softplus);
  Tensor out = allocate_like(x), own_out = type == x.scalar_type() ? out : allocate_like(own_x);
  p.out = step("out", own_out, p);
  selective_state_update_cuda(p, scope.stream());
  if (type != x.scalar_type()) torch::stable::copy_(out, own_out);
  return out;
}
}  // namespace

}  // namespace bdam_fast

STABLE_TORCH_LIBRARY_IMPL(BDAM_OPS, BDAM_KEY, m) { m.impl("selective_state_update", TORCH_BOX(&bdam_fast::update)); }
