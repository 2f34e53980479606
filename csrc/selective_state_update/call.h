// The arguments of selective_state_update, checked, as the parameters of a kernel: the same for the CPU and for a GPU.
// Every check stands before the first write, so that a refused call leaves the state as it was.
#pragma once
#include <algorithm>

#include "common/checks.h"
#include "selective_state_update/selective_state_update.h"

namespace bdam_fast::selective_state_update {

constexpr const char* kOp = "selective_state_update";

inline Stream step(const char* name, const Tensor& t, const StateUpdateParams& p) {
  check_shape(kOp, name, t, {p.batch, p.channels});
  return stream_of(kOp, name, t, 0, -1, 1);
}
inline Stream vector(const char* name, const Tensor& t, const StateUpdateParams& p) {
  check_shape(kOp, name, t, {p.channels});
  return stream_of(kOp, name, t, -1, -1, 0);
}
// B or C, (B, N) or (B, G, N), with its number of groups
inline Stream projection(const char* name, const Tensor& t, const StateUpdateParams& p, int64_t& groups) {
  if (t.dim() == 2) {
    check_shape(kOp, name, t, {p.batch, p.states});
    return stream_of(kOp, name, t, 0, -1, 1);
  }
  STD_TORCH_CHECK(t.dim() == 3, kOp, ": ", name, " must have 2 or 3 dimensions, got ", t.dim());
  groups = t.size(1);
  STD_TORCH_CHECK(groups > 0 && p.channels % groups == 0, kOp, ": ", name, " has ", groups,
                  " groups, which must divide the ", p.channels, " channels");
  check_shape(kOp, name, t, {p.batch, groups, p.states});
  return stream_of(kOp, name, t, 0, 1, 2);
}

// All but `out`
inline StateUpdateParams parameters(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A,
                                    const Tensor& B, const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                                    const OptionalTensor& dt_bias, bool dt_softplus) {
  StateUpdateParams p;
  STD_TORCH_CHECK(state.dim() == 3, kOp, ": state must have shape (B, D, N), got ", shape_text(state.sizes()));
  p.batch = state.size(0), p.channels = state.size(1), p.states = state.size(2);
  STD_TORCH_CHECK(p.channels >= 1 && p.states >= 1 && p.states <= 256, kOp,
                  ": needs D >= 1 and 1 <= N <= 256, got D = ", p.channels, ", N = ", p.states);
  check_writable(kOp, "state", state);
  p.softplus = dt_softplus;
  p.is_double = x.scalar_type() == ScalarType::Double;
  p.state = stream_of(kOp, "state", state, 0, 2, 1);
  p.x = step("x", x, p);
  p.dt = step("dt", dt, p);
  if (z) p.z = step("z", *z, p);
  check_shape(kOp, "A", A, {p.channels, p.states});
  p.A = stream_of(kOp, "A", A, -1, 1, 0);
  p.B = projection("B", B, p, p.B_groups);
  p.C = projection("C", C, p, p.C_groups);
  STD_TORCH_CHECK(p.B_groups == p.C_groups || p.B_groups == 1 || p.C_groups == 1, kOp,
                  ": B and C must have as many groups, got ", p.B_groups, " and ", p.C_groups);
  p.groups = std::max(p.B_groups, p.C_groups);
  if (D) p.skip = vector("D", *D, p);
  if (dt_bias) p.bias = vector("dt_bias", *dt_bias, p);
  return p;
}

}  // namespace bdam_fast::selective_state_update
