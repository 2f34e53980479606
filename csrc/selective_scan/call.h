// The arguments of selective_scan_forward and selective_scan_backward, checked, as the parameters of a kernel: the same
// for the CPU and for a GPU.
#pragma once
#include <algorithm>
#include <tuple>

#include "common/checks.h"
#include "selective_scan/selective_scan.h"

namespace bdam_fast::selective_scan {

constexpr const char* kOp = "selective_scan";

using NineTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

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
inline Projection projection_of(const char* name, const Tensor& t, const ScanParams& p) {
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
inline Stream sequence(const char* name, const Tensor& t, const ScanParams& p, bool reverse) {
  check_shape(kOp, name, t, {p.batch, p.channels, p.length});
  const Stream s = stream_of(kOp, name, t, 0, 2, 1);
  return reverse ? s.reversed(p.length) : s;
}
inline Stream state(const char* name, const Tensor& t, const ScanParams& p) {
  check_shape(kOp, name, t, {p.batch, p.channels, p.states});
  return stream_of(kOp, name, t, 0, 2, 1);
}
inline Stream vector(const char* name, const Tensor& t, const ScanParams& p) {
  check_shape(kOp, name, t, {p.channels});
  return stream_of(kOp, name, t, -1, -1, 0);
}

inline ScanParams parameters(const Arguments& x, bool softplus, bool reverse) {
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
  return p;
}

// Gradients of the optional inputs: empty where the input is absent.
inline Tensor like_or_empty(const OptionalTensor& t, const Tensor& u) {
  return t ? allocate_like(*t) : allocate({0}, u.scalar_type(), device_of(u));
}

inline void check_seq_idx(const Tensor& seq_idx, const ScanParams& p) {
  check_shape(kOp, "seq_idx", seq_idx, {p.batch, p.length});
  STD_TORCH_CHECK(seq_idx.scalar_type() == ScalarType::Int, kOp, ": seq_idx must be int32");
}

// Results of the backward: their memory, and the streams of the parameters that point to it.
struct Gradients {
  Tensor du, ddelta, dA, dB, dC, dD, dz, dbias, dh0;

  explicit Gradients(const Arguments& x)
      : du(allocate_like(x.u)),
        ddelta(allocate_like(x.delta)),
        dA(allocate_like(x.A)),
        dB(allocate_like(x.B)),
        dC(allocate_like(x.C)),
        dD(like_or_empty(x.D, x.u)),
        dz(like_or_empty(x.z, x.u)),
        dbias(like_or_empty(x.delta_bias, x.u)),
        dh0(like_or_empty(x.initial_state, x.u)) {}
  void point(ScanParams& p, const Arguments& x, bool reverse) const {
    p.du = sequence("du", du, p, reverse);
    p.ddelta = sequence("ddelta", ddelta, p, reverse);
    p.dA = stream_of(kOp, "dA", dA, -1, 1, 0);
    const Projection gB = projection_of("dB", dB, p), gC = projection_of("dC", dC, p);
    p.dB = reverse && !gB.constant ? gB.view.reversed(p.length) : gB.view;
    p.dC = reverse && !gC.constant ? gC.view.reversed(p.length) : gC.view;
    p.dB_group = gB.group_stride, p.dC_group = gC.group_stride;
    if (x.D) p.dskip = vector("dD", dD, p);
    if (x.delta_bias) p.dbias = vector("ddelta_bias", dbias, p);
    if (x.z) p.dz = sequence("dz", dz, p, reverse);
    if (x.initial_state) p.dh0 = state("dinitial_state", dh0, p);
  }
  NineTensors results() const { return {du, ddelta, dA, dB, dC, dD, dz, dbias, dh0}; }
};

}  // namespace bdam_fast::selective_scan
