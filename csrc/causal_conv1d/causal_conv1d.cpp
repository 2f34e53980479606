// causal_conv1d_forward and causal_conv1d_backward: schema, checks, allocation and the CPU kernels' registration.
#include "causal_conv1d/causal_conv1d.h"

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "causal_conv1d/call.h"

namespace bdam_fast {

namespace {
using namespace causal_conv1d;

CallCounter forward_calls("causal_conv1d.cpu.forward");
CallCounter backward_calls("causal_conv1d.cpu.backward");

// Memory that a call keeps alive besides its arguments.
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
  ConvParams p = inputs(a);
  if (p.seq_idx) {
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
  Tensor final_states = allocate_final_states(x, return_final_states, p);
  causal_conv1d_forward_cpu(p);
  return {out, final_states};
}

// An upstream gradient with neither steps nor channels adjacent (an expanded scalar, mostly) is laid out like x first.
Tensor readable(const Tensor& dout, const Tensor& x) {
  return dout.stride(1) == 1 || dout.stride(2) == 1 ? dout : laid_out_like(dout, x);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& dout, const OptionalTensor& dfinal_states,
                                                    const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                                    const OptionalTensor& initial_states, const OptionalTensor& seq_idx,
                                                    bool silu, bool reverse) {
  backward_calls.increment();
  Workspace workspace{x, {}};
  const Arguments arguments{x, weight, bias, initial_states, seq_idx, silu, reverse};
  STD_TORCH_CHECK(dout.dim() == 3, kOp, ": dout must have the shape of x, got ", shape_text(dout.sizes()));
  const Tensor upstream = readable(dout, x);
  const Stream gradient = stream_of(kOp, "dout", upstream, 0, 2, 1);
  ConvParams p = parameters(arguments, &gradient, workspace);
  p.dout = sequence("dout", upstream, p);
  if (dfinal_states) p.dfinal = state("dfinal_states", *dfinal_states, p);
  const Gradients g = allocate_gradients(arguments, p);
  const Tensor partial = allocate({p.B * p.pieces, p.width + 1, p.padded_D}, accumulate_type(x));
  p.partial = partial.data_ptr();
  causal_conv1d_backward_cpu(p);
  return {g.x, g.weight, g.bias, g.initial_states};
}
}  // namespace

}  // namespace bdam_fast

STABLE_TORCH_LIBRARY_FRAGMENT(BDAM_OPS, m) {
  m.def(
      "causal_conv1d_forward(Tensor x, Tensor weight, Tensor? bias, Tensor? initial_states, Tensor? seq_idx, bool "
      "silu, "
      "bool reverse, bool return_final_states) -> (Tensor out, Tensor final_states)");
  m.def(
      "causal_conv1d_backward(Tensor dout, Tensor? dfinal_states, Tensor x, Tensor weight, Tensor? bias, "
      "Tensor? initial_states, Tensor? seq_idx, bool silu, bool reverse) "
      "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dinitial_states)");
}

STABLE_TORCH_LIBRARY_IMPL(BDAM_OPS, CPU, m) {
  m.impl("causal_conv1d_forward", TORCH_BOX(&bdam_fast::forward));
  m.impl("causal_conv1d_backward", TORCH_BOX(&bdam_fast::backward));
}
