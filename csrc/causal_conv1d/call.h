// Shared by the bindings of the CPU and the CUDA kernels: the checks of one call, and its tensors as streams.
#pragma once
#include "causal_conv1d/causal_conv1d.h"
#include "common/checks.h"

namespace bdam_fast::causal_conv1d {

inline constexpr const char* kOp = "causal_conv1d";

struct Arguments {
  const Tensor &x, &weight;
  const OptionalTensor &bias, &initial_states, &seq_idx;
  bool silu, reverse;
};

// (B, D, L) as (batch, time, channel), in processing order
inline Stream sequence(const char* name, const Tensor& t, const ConvParams& p) {
  check_shape(kOp, name, t, {p.B, p.D, p.L});
  const Stream s = stream_of(kOp, name, t, 0, 2, 1);
  return p.reverse ? s.reversed(p.L) : s;
}
inline Stream state(const char* name, const Tensor& t, const ConvParams& p) {
  check_shape(kOp, name, t, {p.B, p.D, p.width - 1});
  return stream_of(kOp, name, t, 0, 2, 1);
}

// The inputs, checked. How the work is cut, and every result, is left to the caller.
inline ConvParams inputs(const Arguments& a) {
  ConvParams p;
  STD_TORCH_CHECK(a.x.dim() == 3, kOp, ": x must have shape (B, D, L), got ", shape_text(a.x.sizes()));
  STD_TORCH_CHECK(a.weight.dim() == 2, kOp, ": weight must have shape (D, W), got ", shape_text(a.weight.sizes()));
  p.B = a.x.size(0), p.D = a.x.size(1), p.L = a.x.size(2);
  p.width = static_cast<int>(a.weight.size(1));
  p.silu = a.silu, p.reverse = a.reverse, p.is_double = a.x.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(p.D >= 1 && p.width >= 1 && p.width <= kConvMaxWidth, kOp, ": needs D >= 1 and a width of 1 to ",
                  kConvMaxWidth, ", got D = ", p.D, ", width = ", p.width);
  p.x = sequence("x", a.x, p);
  check_shape(kOp, "weight", a.weight, {p.D, p.width});
  p.weight = stream_of(kOp, "weight", a.weight, -1, 1, 0);
  if (a.bias) {
    check_shape(kOp, "bias", *a.bias, {p.D});
    p.bias = stream_of(kOp, "bias", *a.bias, -1, -1, 0);
  }
  if (a.initial_states) p.initial = state("initial_states", *a.initial_states, p);
  if (a.seq_idx) {
    check_shape(kOp, "seq_idx", *a.seq_idx, {p.B, p.L});
    STD_TORCH_CHECK(a.seq_idx->scalar_type() == ScalarType::Int, kOp, ": seq_idx must be int32");
    p.seq_batch = a.seq_idx->stride(0), p.seq_time = p.reverse ? -a.seq_idx->stride(1) : a.seq_idx->stride(1);
    p.seq_idx = static_cast<const int32_t*>(a.seq_idx->data_ptr()) + (p.reverse ? (p.L - 1) * a.seq_idx->stride(1) : 0);
  }
  return p;
}

inline Tensor allocate_final_states(const Tensor& x, bool wanted, ConvParams& p) {
  if (!wanted) return allocate({0}, accumulate_type(x), device_of(x));
  Tensor final_states = allocate({p.B, p.D, p.width - 1}, accumulate_type(x), device_of(x));
  p.final_state = state("final_states", final_states, p);
  return final_states;
}

// A copy of `t` that lies in memory like x and has its dtype.
inline Tensor laid_out_like(const Tensor& t, const Tensor& x) {
  Tensor copy = allocate_like(x);
  torch::stable::copy_(copy, t);
  return copy;
}

struct Gradients {
  Tensor x, weight, bias, initial_states;  // the optional ones are empty where the input is absent
};
inline Gradients allocate_gradients(const Arguments& a, ConvParams& p) {
  const auto like_or_empty = [&](const OptionalTensor& t) {
    return t ? allocate_like(*t) : allocate({0}, a.x.scalar_type(), device_of(a.x));
  };
  Gradients g{allocate_like(a.x), allocate_like(a.weight), like_or_empty(a.bias), like_or_empty(a.initial_states)};
  p.dx = sequence("dx", g.x, p);
  p.dweight = stream_of(kOp, "dweight", g.weight, -1, 1, 0);
  if (a.bias) p.dbias = stream_of(kOp, "dbias", g.bias, -1, -1, 0);
  if (a.initial_states) p.dinitial = state("dinitial_states", g.initial_states, p);
  return g;
}

}  // namespace bdam_fast::causal_conv1d
