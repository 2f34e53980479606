// One step of the selective scan with the state updated in place: parameters of one call, without torch. For every
// channel d and state n: dt = softplus(dt + bias),  h = exp(dt A) h + dt B x,  y = <C, h> + D x,  out = y silu(z).
// B batch, D channels, N states, G groups of channels that share B and C.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace bdam_fast {

constexpr int64_t kUpdateTaskChannels = 128;  // of one task; B and C are converted once a task

struct StateUpdateParams {
  Stream state;          // (B, D, N): time = state
  Stream x, dt, z, out;  // (B, D): a single step
  Stream A;              // (D, N): time = state
  Stream B, C;           // (B, N) or (B, G, N): channel = state, time = group
  Stream skip, bias;     // (D,): D and dt_bias; each may be absent
  int64_t B_groups = 1, C_groups = 1;
  int64_t batch = 0, channels = 0, states = 0, groups = 1;
  bool softplus = false, is_double = false;

  int64_t group_channels() const { return channels / groups; }
  int64_t ranges() const { return (group_channels() + kUpdateTaskChannels - 1) / kUpdateTaskChannels; }  // of a group
  int64_t tasks() const { return batch * groups * ranges(); }
};

void selective_state_update_cpu(const StateUpdateParams& p);
// x, dt, z, out, B and C of one type, A, D and the bias float32, the state of any type; `stream` is a cudaStream_t.
void selective_state_update_cuda(const StateUpdateParams& p, void* stream);

}  // namespace bdam_fast
