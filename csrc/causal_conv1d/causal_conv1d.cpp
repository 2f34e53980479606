// causal_conv1d_forward and causal_conv1d_backward: schema, checks, allocation and the CPU kernels' registration.
#include "causal_conv1d/causal_conv1d.h"

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/runtime.h"

namespace bdam_fast {

namespace {
constexpr const char* kOp = "causal_conv1d";
CallCounter forward_calls("causal_conv1d.cpu.forward");
CallCounter backward_calls("causal_conv1d.cpu.backward");

struct Arguments {
  const Tensor &x, &weight;
  const OptionalTensor &bias, &initial_states, &seq_idx;
  bool silu, reverse;
};

// (B, D, L) as (batch, time, channel), in processing order
Stream sequence(const char* name, const Tensor& t, const ConvParams& p) {
  check_shape(kOp, name, t, {p.B, p.D, p.L});
  const Stream s = stream_of(kOp, name, t, 0, 2, 1);
  return p.reverse ? s.reversed(p.L) : s;
}
Stream state(const char* name, const Tensor& t, const ConvParams& p) {
  check_shape(kOp, name, t, {p.B, p.D, p.width - 1});
  return stream_of(kOp, name, t, 0, 2, 1);
}

// What a call keeps alive besides its arguments.
struct Workspace {
  Tensor taps;
  std::vector<int64_t> last_step;
};

// For each tile the last step before it that is no padding, or -1: a window is found without a walk over the padding.
std::vector<int64_t> last_steps(const ConvParams& p) {
  std::vector<int64_t> last(p.B * p.tiles());
  for (int64_t b = 0; b < p.B; ++b) {
    int64_t found = -1;
    for (int64_t t = 0; t < p.L; ++t) {
      if (t % kConvTile == 0) last[b * p.tiles() + t / kConvTile] = found;
      if (p.seq_idx[b * p.seq_batch + t * p.seq_time] >= 0) found = t;
    }
  }
  return last;
}

bool steps_adjacent(const Stream& s) { return s.time == 1 || s.time == -1; }

ConvParams parameters(const Arguments& a, const Stream* dout, Workspace& workspace) {
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
    workspace.last_step = last_steps(p);
    p.last_step = workspace.last_step.data();
  }
  p.rows = steps_adjacent(p.x) && (!dout || steps_adjacent(*dout)) && !p.seq_idx && p.L >= kConvRowMinimum &&
           p.width <= kConvRowMaxWidth;
  cut_into_tasks(p, conv_lanes(p.is_double));
  workspace.taps = allocate({p.width + 1, p.padded_D}, accumulate_type(a.x));
  p.taps = workspace.taps.data_ptr();
  return p;
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& initial_states, const OptionalTensor& seq_idx, bool silu,
                                   bool reverse, bool return_final_states) {
  forward_calls.increment();
  Workspace workspace{x, {}};
  ConvParams p = parameters({x, weight, bias, initial_states, seq_idx, silu, reverse}, nullptr, workspace);
  Tensor out = allocate_like(x);
  p.out = sequence("out", out, p);
  Tensor final_states =
      return_final_states ? allocate({p.B, p.D, p.width - 1}, accumulate_type(x)) : allocate({0}, accumulate_type(x));
  if (return_final_states) p.final_state = state("final_states", final_states, p);
  causal_conv1d_forward_cpu(p);
  return {out, final_states};
}

// An upstream gradient with neither steps nor channels adjacent (an expanded scalar, mostly) is laid out like x first.
Tensor readable(const Tensor& dout, const Tensor& x) {
  if (dout.stride(1) == 1 || dout.stride(2) == 1) return dout;
  Tensor copy = allocate_like(x);
  torch::stable::copy_(copy, dout);
  return copy;
}

// The gradient of an optional input: empty where the input is absent.
Tensor like_or_empty(const OptionalTensor& t, const Tensor& x) {
  return t ? allocate_like(*t) : allocate({0}, x.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& dout, const OptionalTensor& dfinal_states,
                                                    const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                                    const OptionalTensor& initial_states, const OptionalTensor& seq_idx,
                                                    bool silu, bool reverse) {
  backward_calls.increment();
  Workspace workspace{x, {}};
  STD_TORCH_CHECK(dout.dim() == 3, kOp, ": dout must have the shape of x, got ", shape_text(dout.sizes()));
  const Tensor upstream = readable(dout, x);
  const Stream gradient = stream_of(kOp, "dout", upstream, 0, 2, 1);
  ConvParams p = parameters({x, weight, bias, initial_states, seq_idx, silu, reverse}, &gradient, workspace);
  p.dout = sequence("dout", upstream, p);
  if (dfinal_states) p.dfinal = state("dfinal_states", *dfinal_states, p);
  Tensor dx = allocate_like(x), dweight = allocate_like(weight), dbias = like_or_empty(bias, x);
  Tensor dinitial = like_or_empty(initial_states, x);
  p.dx = sequence("dx", dx, p);
  p.dweight = stream_of(kOp, "dweight", dweight, -1, 1, 0);
  if (bias) p.dbias = stream_of(kOp, "dbias", dbias, -1, -1, 0);
  if (initial_states) p.dinitial = state("dinitial_states", dinitial, p);
  const Tensor partial = allocate({p.B * p.pieces, p.width + 1, p.padded_D}, accumulate_type(x));
  p.partial = partial.data_ptr();
  causal_conv1d_backward_cpu(p);
  return {dx, dweight, dbias, dinitial};
}
}  // namespace

}  // namespace bdam_fast

STABLE_TORCH_LIBRARY_FRAGMENT(bdam_fast, m) {
  m.def(
      "causal_conv1d_forward(Tensor x, Tensor weight, Tensor? bias, Tensor? initial_states, Tensor? seq_idx, bool "
      "silu, "
      "bool reverse, bool return_final_states) -> (Tensor out, Tensor final_states)");
  m.def(
      "causal_conv1d_backward(Tensor dout, Tensor? dfinal_states, Tensor x, Tensor weight, Tensor? bias, "
      "Tensor? initial_states, Tensor? seq_idx, bool silu, bool reverse) "
      "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dinitial_states)");
}

STABLE_TORCH_LIBRARY_IMPL(bdam_fast, CPU, m) {
  m.impl("causal_conv1d_forward", TORCH_BOX(&bdam_fast::forward));
  m.impl("causal_conv1d_backward", TORCH_BOX(&bdam_fast::backward));
}
