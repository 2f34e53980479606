// Shared by the bindings of causal_conv1d_update's CPU and CUDA kernels: the checks of one call, and its
// tensors as streams.
#pragma once
#include "causal_conv1d_update/causal_conv1d_update.h"
#include "common/checks.h"

namespace bdam_fast::causal_conv1d_update {

inline constexpr const char* kOp = "causal_conv1d_update";

// (B, D) or (B, D, L)
inline Stream steps(const char* name, const Tensor& t) { return stream_of(kOp, name, t, 0, t.dim() == 3 ? 2 : -1, 1); }

// The inputs, checked; the output is left to the caller.
inline ConvUpdateParams inputs(const Tensor& x, const Tensor& conv_state, const Tensor& weight,
                               const OptionalTensor& bias, bool silu) {
  ConvUpdateParams p;
  STD_TORCH_CHECK(x.dim() == 2 || x.dim() == 3, kOp, ": x must have shape (B, D) or (B, D, L), got ",
                  shape_text(x.sizes()));
  STD_TORCH_CHECK(conv_state.dim() == 3, kOp, ": conv_state must have shape (B, D, S), got ",
                  shape_text(conv_state.sizes()));
  STD_TORCH_CHECK(weight.dim() == 2, kOp, ": weight must have shape (D, W), got ", shape_text(weight.sizes()));
  p.batch = x.size(0), p.channels = x.size(1), p.length = x.dim() == 3 ? x.size(2) : 1;
  p.entries = conv_state.size(2), p.width = static_cast<int>(weight.size(1));
  STD_TORCH_CHECK(p.channels >= 1 && p.width >= 1 && p.width <= kConvUpdateMaxWidth && p.entries >= p.width - 1, kOp,
                  ": needs D >= 1, a width W of 1 to ", kConvUpdateMaxWidth, " and S >= W - 1, got D = ", p.channels,
                  ", W = ", p.width, ", S = ", p.entries);
  check_shape(kOp, "conv_state", conv_state, {p.batch, p.channels, p.entries});
  check_writable(kOp, "conv_state", conv_state);
  check_shape(kOp, "weight", weight, {p.channels, p.width});
  p.silu = silu;
  p.is_double = x.scalar_type() == ScalarType::Double;
  p.x = steps("x", x);
  p.state = stream_of(kOp, "conv_state", conv_state, 0, 2, 1);
  p.weight = stream_of(kOp, "weight", weight, -1, 1, 0);
  if (bias) {
    check_shape(kOp, "bias", *bias, {p.channels});
    p.bias = stream_of(kOp, "bias", *bias, -1, -1, 0);
  }
  return p;
}

}  // namespace bdam_fast::causal_conv1d_update
