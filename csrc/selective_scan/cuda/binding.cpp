// selective_scan_forward and selective_scan_backward on a GPU: checks, conversions and allocation.
#include "selective_scan/cuda/launch.h"

#include "common/cuda_binding.h"
#include "selective_scan/call.h"

namespace bdam_fast {

namespace {
using namespace selective_scan;
CallCounter forward_calls("selective_scan.cuda.forward");
CallCounter backward_calls("selective_scan.cuda.backward");

// The arguments in the types that the kernels take: activations (u, delta, z, per-step B and C, dout) in one of
// float32, bfloat16 and float16, everything else in float32. Where the activations differ among themselves they become
// float32, which copies; nothing else does in the usual case.
struct Converted {
  ScalarType dtype;
  Tensor u, delta, A, B, C;
  OptionalTensor D, z, delta_bias, initial_state, seq_idx;

  explicit Converted(const Arguments& x, const OptionalTensor& dout = std::nullopt)
      : dtype(common_type(x, dout)),
        u(converted(kOp, "u", x.u, dtype)),
        delta(converted(kOp, "delta", x.delta, dtype)),
        A(converted(kOp, "A", x.A, ScalarType::Float)),
        B(converted(kOp, "B", x.B, x.B.dim() == 2 ? ScalarType::Float : dtype)),
        C(converted(kOp, "C", x.C, x.C.dim() == 2 ? ScalarType::Float : dtype)),
        D(converted(kOp, "D", x.D, ScalarType::Float)),
        z(converted(kOp, "z", x.z, dtype)),
        delta_bias(converted(kOp, "delta_bias", x.delta_bias, ScalarType::Float)),
        initial_state(converted(kOp, "initial_state", x.initial_state, ScalarType::Float)),
        seq_idx(x.seq_idx) {}
  Arguments arguments() const { return {u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx}; }

 private:
  static ScalarType common_type(const Arguments& x, const OptionalTensor& dout) {
    const ScalarType type = x.u.scalar_type();
    bool same =
        x.delta.scalar_type() == type && (!x.z || x.z->scalar_type() == type) && (!dout || dout->scalar_type() == type);
    for (const Tensor* t : {&x.B, &x.C}) same = same && (t->dim() == 2 || t->scalar_type() == type);
    return same && type != ScalarType::Double ? type : ScalarType::Float;
  }
};

void check_devices(const Arguments& x) {
  const std::pair<const char*, const Tensor*> present[] = {{"delta", &x.delta}, {"A", &x.A}, {"B", &x.B}, {"C", &x.C}};
  for (const auto& [name, t] : present) check_device(kOp, name, *t, x.u);
  const std::pair<const char*, const OptionalTensor*> optional[] = {{"D", &x.D},
                                                                    {"z", &x.z},
                                                                    {"delta_bias", &x.delta_bias},
                                                                    {"initial_state", &x.initial_state},
                                                                    {"seq_idx", &x.seq_idx}};
  for (const auto& [name, t] : optional) check_device(kOp, name, *t, x.u);
  STD_TORCH_CHECK(x.u.scalar_type() != ScalarType::Double, kOp, ": the CUDA kernels take no float64 activations");
}

// Parameters of either direction, and the memory that they point to.
struct Call {
  CudaScanParams p;
  Device device;
  std::vector<Tensor> memory;

  Call(const Converted& x, bool softplus, bool reverse, void* stream) {
    p.call = parameters(x.arguments(), softplus, reverse);
    device = device_of(x.u);
    p.dtype = p.call.u.dtype;
    p.stream = stream;
    const ScanParams& c = p.call;
    if (x.seq_idx) {
      check_seq_idx(*x.seq_idx, c);
      const int64_t time = x.seq_idx->stride(1);
      p.seq_idx = static_cast<const int32_t*>(x.seq_idx->data_ptr()) + (reverse ? (c.length - 1) * time : 0);
      p.seq_batch = x.seq_idx->stride(0);
      p.seq_time = reverse ? -time : time;
      memory.push_back(allocate({c.batch * c.length}, ScalarType::Char, device));
      p.steps = static_cast<int8_t*>(memory.back().data_ptr());
    }
    if (p.chunks() > 1) {
      p.chunk_state = workspace(p.chunks() * c.batch * c.channels * p.padded());
      p.chunk_decay = workspace(p.chunks() * c.batch * c.channels * 2);
    }
  }
  float* workspace(int64_t floats) {
    memory.push_back(allocate({floats}, ScalarType::Float, device));
    return static_cast<float*>(memory.back().data_ptr());
  }
};

void check_saving(int64_t save_states, const CudaScanParams& p) {
  STD_TORCH_CHECK(save_states >= 0 && save_states <= 2, kOp, ": save_states must be 0, 1 or 2, got ", save_states);
  STD_TORCH_CHECK(save_states < 2 || p.has_variants(), kOp,
                  ": save_states = 2 needs z, softplus, B and C per step, 9 to 16 states and no seq_idx");
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                           const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                                           const OptionalTensor& delta_bias, const OptionalTensor& initial_state,
                                           const OptionalTensor& seq_idx, bool delta_softplus, bool reverse,
                                           bool return_last_state, int64_t save_states) {
  forward_calls.increment();
  const Arguments given{u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx};
  check_devices(given);
  const CudaScope scope(u);
  const Converted x(given);
  Call call(x, delta_softplus, reverse, scope.stream());
  ScanParams& c = call.p.call;
  Tensor out = allocate_like(u), own = x.dtype == u.scalar_type() ? out : allocate_like(x.u);
  c.out = sequence("out", own, c, reverse);
  Tensor last = return_last_state ? allocate({c.batch, c.channels, c.states}, ScalarType::Float, call.device)
                                  : allocate({0}, ScalarType::Float, call.device);
  if (return_last_state) c.last = state("last_state", last, c);
  check_saving(save_states, call.p);
  call.p.save_every = save_states == 2 ? 2 : 1;
  Tensor checkpoint = save_states ? allocate({c.batch, call.p.saved_size()}, ScalarType::Float, call.device)
                                  : allocate({0}, ScalarType::Float, call.device);
  if (save_states) call.p.checkpoint = static_cast<float*>(checkpoint.data_ptr());
  selective_scan_forward_cuda(call.p);
  if (x.dtype != u.scalar_type()) torch::stable::copy_(out, own);
  return {out, last, checkpoint};
}

// Memory for all partial sums
void allocate_sums(Call& call) {
  CudaScanParams& p = call.p;
  const ScanParams& c = p.call;
  const int64_t rows = p.chunks() * c.batch * c.channels;
  const int64_t blocks = p.blocks(p.backward_channels()) * c.length * p.padded();
  p.sum_A = call.workspace(rows * p.padded());
  p.sum_B = call.workspace(c.B_constant ? rows * p.padded() : blocks);
  p.sum_C = call.workspace(c.C_constant ? rows * p.padded() : blocks);
  if (c.dskip) p.sum_skip = call.workspace(rows);
  if (c.dbias) p.sum_bias = call.workspace(rows);
}

NineTensors backward(const Tensor& dout, const OptionalTensor& dlast, const Tensor& u, const Tensor& delta,
                     const Tensor& A, const Tensor& B, const Tensor& C, const OptionalTensor& D,
                     const OptionalTensor& z, const OptionalTensor& delta_bias, const OptionalTensor& initial_state,
                     const OptionalTensor& seq_idx, const Tensor& checkpoint, bool delta_softplus, bool reverse) {
  backward_calls.increment();
  const Arguments given{u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx};
  check_devices(given);
  check_device(kOp, "dout", dout, u);
  check_device(kOp, "dlast_state", dlast, u);
  check_device(kOp, "checkpoint", checkpoint, u);
  const CudaScope scope(u);
  const Converted x(given, dout);
  const Arguments arguments = x.arguments();
  Call call(x, delta_softplus, reverse, scope.stream());
  ScanParams& c = call.p.call;
  // Half of the states are there if half of the size is.
  call.p.save_every =
      call.p.has_variants() && checkpoint.dim() == 2 && checkpoint.size(1) < call.p.saved_size() ? 2 : 1;
  call.p.narrow = narrow_backward(call.device.index);
  check_shape(kOp, "checkpoint", checkpoint, {c.batch, call.p.saved_size()});
  STD_TORCH_CHECK(checkpoint.scalar_type() == ScalarType::Float && checkpoint.is_contiguous(), kOp,
                  ": checkpoint must come from the forward of the same call");
  call.p.checkpoint = static_cast<float*>(checkpoint.data_ptr());
  const Tensor own_dout = converted(kOp, "dout", dout, x.dtype);
  const OptionalTensor own_dlast = converted(kOp, "dlast_state", dlast, ScalarType::Float);
  c.dout = sequence("dout", own_dout, c, reverse);
  if (own_dlast) c.dlast = state("dlast_state", *own_dlast, c);

  // The sums of the partial results are stored in any type; du, ddelta, dz and dh0 only in the kernels' own.
  Gradients grads(given);
  Gradients own = grads;
  if (x.dtype != u.scalar_type()) own.du = allocate_like(x.u);
  if (x.dtype != delta.scalar_type()) own.ddelta = allocate_like(x.delta);
  if (z && x.dtype != z->scalar_type()) own.dz = allocate_like(*x.z);
  if (initial_state && initial_state->scalar_type() != ScalarType::Float) own.dh0 = allocate_like(*x.initial_state);
  own.point(c, arguments, reverse);
  allocate_sums(call);
  selective_scan_backward_cuda(call.p);
  const std::pair<Tensor*, const Tensor*> results[] = {
      {&grads.du, &own.du}, {&grads.ddelta, &own.ddelta}, {&grads.dz, &own.dz}, {&grads.dh0, &own.dh0}};
  for (const auto& [to, from] : results)
    if (to->data_ptr() != from->data_ptr()) torch::stable::copy_(*to, *from);
  return grads.results();
}
}  // namespace

}  // namespace bdam_fast

STABLE_TORCH_LIBRARY_IMPL(BDAM_OPS, BDAM_KEY, m) {
  m.impl("selective_scan_forward", TORCH_BOX(&bdam_fast::forward));
  m.impl("selective_scan_backward", TORCH_BOX(&bdam_fast::backward));
}
