// selective_scan_forward and selective_scan_backward: schema, checks, allocation and the CPU kernels' registration.
#include "selective_scan/selective_scan.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/runtime.h"

namespace bdam_fast {

namespace {
constexpr const char* kOp = "selective_scan";
CallCounter forward_calls("selective_scan.cpu.forward");
CallCounter backward_calls("selective_scan.cpu.backward");

struct Arguments {
  const Tensor &u, &delta, &A, &B, &C;
  const OptionalTensor &D, &z, &delta_bias, &initial_state, &seq_idx;
};

// B or C: constant (D, N), or per step (B, N, L) or (B, G, N, L)
struct Projection {
  Stream view;
  int64_t groups = 1, group_stride = 0;
  bool constant = false;
};
Projection projection_of(const char* name, const Tensor& t, const ScanParams& p) {
  Projection q;
  const int64_t dim = t.dim();
  if (dim == 2) {
    check_shape(kOp, name, t, {p.channels, p.states});
    q.view = stream_of(kOp, name, t, -1, 1, 0);
    q.constant = true;
  } else if (dim == 3) {
    check_shape(kOp, name, t, {p.batch, p.states, p.length});
    q.view = stream_of(kOp, name, t, 0, 2, 1);
  } else {
    STD_TORCH_CHECK(dim == 4, kOp, ": ", name, " must have 2, 3 or 4 dimensions, got ", dim);
    q.groups = t.size(1);
    q.group_stride = t.stride(1);
    STD_TORCH_CHECK(q.groups > 0 && p.channels % q.groups == 0, kOp, ": ", name, " has ", q.groups,
                    " groups, which must divide the ", p.channels, " channels");
    check_shape(kOp, name, t, {p.batch, q.groups, p.states, p.length});
    q.view = stream_of(kOp, name, t, 0, 3, 2);
  }
  return q;
}

// (B, D, L) as (batch, time, channel), in processed order
Stream sequence(const char* name, const Tensor& t, const ScanParams& p, bool reverse) {
  check_shape(kOp, name, t, {p.batch, p.channels, p.length});
  const Stream s = stream_of(kOp, name, t, 0, 2, 1);
  return reverse ? s.reversed(p.length) : s;
}
Stream state(const char* name, const Tensor& t, const ScanParams& p) {
  check_shape(kOp, name, t, {p.batch, p.channels, p.states});
  return stream_of(kOp, name, t, 0, 2, 1);
}
Stream vector(const char* name, const Tensor& t, const ScanParams& p) {
  check_shape(kOp, name, t, {p.channels});
  return stream_of(kOp, name, t, -1, -1, 0);
}

// Channels go to tasks in units of 16: few enough units that 64 tasks come together for the threads, at most 16 (more
// gains nothing: 9.4 ms against 9.5), at least 2 (one alone costs 13.6: B and C are converted, dB and dC stored, once
// per task).
int64_t units_per_task(const ScanParams& p) {
  return std::max<int64_t>(1, std::min(p.group_units(), std::clamp<int64_t>(p.batch * p.units() / 64, 2, 16)));
}

ScanParams parameters(const Arguments& x, bool softplus, bool reverse) {
  ScanParams p;
  STD_TORCH_CHECK(x.u.dim() == 3, kOp, ": u must have shape (B, D, L), got ", shape_text(x.u.sizes()));
  STD_TORCH_CHECK(x.A.dim() == 2, kOp, ": A must have shape (D, N), got ", shape_text(x.A.sizes()));
  p.batch = x.u.size(0), p.channels = x.u.size(1), p.length = x.u.size(2), p.states = x.A.size(1);
  STD_TORCH_CHECK(p.channels >= 1 && p.states >= 1 && p.states <= 256, kOp,
                  ": needs D >= 1 and 1 <= N <= 256, got D = ", p.channels, ", N = ", p.states);
  p.softplus = softplus;
  p.is_double = x.u.scalar_type() == ScalarType::Double;
  p.u = sequence("u", x.u, p, reverse);
  p.delta = sequence("delta", x.delta, p, reverse);
  if (x.z) p.z = sequence("z", *x.z, p, reverse);
  check_shape(kOp, "A", x.A, {p.channels, p.states});
  p.A = stream_of(kOp, "A", x.A, -1, 1, 0);
  if (x.D) p.skip = vector("D", *x.D, p);
  if (x.delta_bias) p.bias = vector("delta_bias", *x.delta_bias, p);
  if (x.initial_state) p.h0 = state("initial_state", *x.initial_state, p);
  const Projection B = projection_of("B", x.B, p), C = projection_of("C", x.C, p);
  STD_TORCH_CHECK(B.groups == C.groups || B.groups == 1 || C.groups == 1, kOp,
                  ": B and C must have as many groups, got ", B.groups, " and ", C.groups);
  p.B_constant = B.constant, p.B_groups = B.groups, p.B_group = B.group_stride;
  p.C_constant = C.constant, p.C_groups = C.groups, p.C_group = C.group_stride;
  p.B = reverse && !B.constant ? B.view.reversed(p.length) : B.view;
  p.C = reverse && !C.constant ? C.view.reversed(p.length) : C.view;
  p.groups = std::max(B.groups, C.groups);
  p.units_per_task = units_per_task(p);
  return p;
}

// seq_idx as kinds of steps in processed order. A padded step (negative) is skipped; a step whose index differs from
// that of the step processed before it starts from a zero state.
std::vector<int8_t> steps_of(const OptionalTensor& seq_idx, const ScanParams& p, bool reverse) {
  if (!seq_idx) return {};
  check_shape(kOp, "seq_idx", *seq_idx, {p.batch, p.length});
  STD_TORCH_CHECK(seq_idx->scalar_type() == ScalarType::Int, kOp, ": seq_idx must be int32");
  const int32_t* data = static_cast<const int32_t*>(seq_idx->data_ptr());
  const int64_t batch_stride = seq_idx->stride(0), time_stride = seq_idx->stride(1);
  std::vector<int8_t> steps(p.batch * p.length);
  for (int64_t b = 0; b < p.batch; ++b) {
    bool started = false;
    int32_t current = 0;
    for (int64_t t = 0; t < p.length; ++t) {
      const int32_t index = data[b * batch_stride + (reverse ? p.length - 1 - t : t) * time_stride];
      int8_t& step = steps[b * p.length + t];
      if (index < 0) {
        step = kPadding;
        continue;
      }
      step = started && index != current ? kReset : kStep;
      started = true;
      current = index;
    }
  }
  return steps;
}

Tensor empty_checkpoint(const ScanParams& p, const Tensor& u, bool save) {
  if (!save) return allocate({0}, accumulate_type(u));
  return allocate({p.batch, std::max<int64_t>(p.tiles() - 1, 0), p.units(), p.states, kScanUnit}, accumulate_type(u));
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                           const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                                           const OptionalTensor& delta_bias, const OptionalTensor& initial_state,
                                           const OptionalTensor& seq_idx, bool delta_softplus, bool reverse,
                                           bool return_last_state, bool save_states) {
  forward_calls.increment();
  ScanParams p = parameters({u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx}, delta_softplus, reverse);
  const std::vector<int8_t> steps = steps_of(seq_idx, p, reverse);
  if (seq_idx) p.steps = steps.data();
  Tensor out = allocate_like(u);
  p.out = sequence("out", out, p, reverse);
  Tensor last = return_last_state ? allocate({p.batch, p.channels, p.states}, accumulate_type(u))
                                  : allocate({0}, accumulate_type(u));
  if (return_last_state) p.last = state("last_state", last, p);
  Tensor checkpoint = empty_checkpoint(p, u, save_states);
  if (save_states) p.checkpoint = checkpoint.data_ptr();
  selective_scan_forward_cpu(p);
  return {out, last, checkpoint};
}

// Gradients of the optional inputs: empty where the input is absent.
Tensor like_or_empty(const OptionalTensor& t, const Tensor& u) {
  return t ? allocate_like(*t) : allocate({0}, u.scalar_type());
}

// One allocation for every partial sum; the tensor must outlive the kernel.
Tensor allocate_sums(ScanParams& p, const Arguments& x) {
  const int64_t rows = p.batch * p.units() * kScanUnit, ranges = p.batch * p.groups * p.ranges() * p.length;
  const int64_t sizes[] = {p.single() ? 0 : rows * p.states, x.D ? rows : 0, x.delta_bias ? rows : 0,
                           p.states * (p.B_constant ? rows : ranges), p.states * (p.C_constant ? rows : ranges)};
  void** const fields[] = {&p.sum_A, &p.sum_skip, &p.sum_bias, &p.sum_B, &p.sum_C};
  int64_t total = 0;
  for (int64_t size : sizes) total += (size + kScanUnit - 1) / kScanUnit * kScanUnit;
  Tensor sums = allocate({total}, accumulate_type(x.u));
  char* next = static_cast<char*>(sums.data_ptr());
  for (int i = 0; i < 5; ++i) {
    if (sizes[i] == 0) continue;
    *fields[i] = next;
    next += (sizes[i] + kScanUnit - 1) / kScanUnit * kScanUnit * sums.element_size();
  }
  return sums;
}

using NineTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
NineTensors backward(const Tensor& dout, const OptionalTensor& dlast, const Tensor& u, const Tensor& delta,
                     const Tensor& A, const Tensor& B, const Tensor& C, const OptionalTensor& D,
                     const OptionalTensor& z, const OptionalTensor& delta_bias, const OptionalTensor& initial_state,
                     const OptionalTensor& seq_idx, const Tensor& checkpoint, bool delta_softplus, bool reverse) {
  backward_calls.increment();
  const Arguments x{u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx};
  ScanParams p = parameters(x, delta_softplus, reverse);
  const std::vector<int8_t> steps = steps_of(seq_idx, p, reverse);
  if (seq_idx) p.steps = steps.data();
  check_shape(kOp, "checkpoint", checkpoint,
              {p.batch, std::max<int64_t>(p.tiles() - 1, 0), p.units(), p.states, kScanUnit});
  STD_TORCH_CHECK(checkpoint.scalar_type() == accumulate_type(u) && checkpoint.is_contiguous(), kOp,
                  ": checkpoint must come from the forward of the same call");
  p.checkpoint = checkpoint.data_ptr();
  p.dout = sequence("dout", dout, p, reverse);
  if (dlast) p.dlast = state("dlast_state", *dlast, p);

  Tensor du = allocate_like(u), ddelta = allocate_like(delta), dA = allocate_like(A);
  Tensor dB = allocate_like(B), dC = allocate_like(C), dD = like_or_empty(D, u);
  Tensor dz = like_or_empty(z, u), dbias = like_or_empty(delta_bias, u), dh0 = like_or_empty(initial_state, u);
  p.du = sequence("du", du, p, reverse);
  p.ddelta = sequence("ddelta", ddelta, p, reverse);
  p.dA = stream_of(kOp, "dA", dA, -1, 1, 0);
  const Projection gB = projection_of("dB", dB, p), gC = projection_of("dC", dC, p);
  p.dB = reverse && !gB.constant ? gB.view.reversed(p.length) : gB.view;
  p.dC = reverse && !gC.constant ? gC.view.reversed(p.length) : gC.view;
  p.dB_group = gB.group_stride, p.dC_group = gC.group_stride;
  if (D) p.dskip = vector("dD", dD, p);
  if (delta_bias) p.dbias = vector("ddelta_bias", dbias, p);
  if (z) p.dz = sequence("dz", dz, p, reverse);
  if (initial_state) p.dh0 = state("dinitial_state", dh0, p);
  const Tensor sums = allocate_sums(p, x);
  if (p.single()) std::memset(dA.data_ptr(), 0, dA.numel() * dA.element_size());  // no exponential, nothing to add up
  selective_scan_backward_cpu(p);
  return {du, ddelta, dA, dB, dC, dD, dz, dbias, dh0};
}
}  // namespace

}  // namespace bdam_fast

STABLE_TORCH_LIBRARY_FRAGMENT(bdam_fast, m) {
  m.def(
      "selective_scan_forward(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? "
      "delta_bias, "
      "Tensor? initial_state, Tensor? seq_idx, bool delta_softplus, bool reverse, bool return_last_state, bool "
      "save_states) "
      "-> (Tensor out, Tensor last_state, Tensor checkpoint)");
  m.def(
      "selective_scan_backward(Tensor dout, Tensor? dlast_state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
      "Tensor? D, Tensor? z, Tensor? delta_bias, Tensor? initial_state, Tensor? seq_idx, Tensor checkpoint, "
      "bool delta_softplus, bool reverse) -> (Tensor du, Tensor ddelta, Tensor dA, Tensor dB, Tensor dC, Tensor dD, "
      "Tensor dz, "
      "Tensor ddelta_bias, Tensor dinitial_state)");
}

STABLE_TORCH_LIBRARY_IMPL(bdam_fast, CPU, m) {
  m.impl("selective_scan_forward", TORCH_BOX(&bdam_fast::forward));
  m.impl("selective_scan_backward", TORCH_BOX(&bdam_fast::backward));
}
