// Selective scan on the CPU: parameters of one call, without torch. Equations, for every channel d and state n:
//   dt_t = softplus(delta_t + bias),  h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,  y_t = <C_t, h_t> + D u_t,  out = y
//   silu(z).
// B batch, L length, D channels, N states, G groups of channels that share B and C.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/dtype.h"

namespace bdam_fast {

constexpr int kScanTile = 32;  // steps worked on at a time; states are saved at the tiles' starts
constexpr int kScanUnit =
    16;  // channels: tasks, saved states and partial sums are cut in units, whatever the vector width
constexpr int kScanChunk = 4;  // states held in registers

enum ScanStep : int8_t { kStep = 0, kReset = 1, kPadding = 2 };

struct ScanParams {
  Stream u, delta, z, out;          // (B, D, L) as (batch, time, channel)
  Stream dout, du, ddelta, dz;      //
  Stream A, dA;                     // (D, N): time = state
  Stream skip, bias, dskip, dbias;  // (D,): D and delta_bias
  Stream h0, dh0, last, dlast;      // (B, D, N): time = state
  Stream B, C, dB, dC;              // (B, G, N, L): channel = state; constant (D, N): time = state
  int64_t B_group = 0, C_group = 0, dB_group = 0, dC_group = 0;  // strides between groups, in elements
  int64_t B_groups = 1, C_groups = 1;
  bool B_constant = false, C_constant = false;  // (D, N)
  bool softplus = false, is_double = false;
  const int8_t* steps = nullptr;  // [B][L] ScanStep in processed order; null without seq_idx

  void* checkpoint = nullptr;  // [B][saved_size]: [tiles - 1][units][N][16], h before the tiles from the second on
  // Partial sums, added up in index order: [B][units][rows][16] over batches, [B][G][ranges][L][N] over channels.
  void *sum_A = nullptr, *sum_skip = nullptr, *sum_bias = nullptr, *sum_B = nullptr, *sum_C = nullptr;

  int64_t batch = 0, length = 0, channels = 0, states = 0, groups = 1;
  int64_t units_per_task = 1;

  int64_t group_channels() const { return channels / groups; }
  int64_t group_units() const { return (group_channels() + kScanUnit - 1) / kScanUnit; }
  int64_t units() const { return groups * group_units(); }
  int64_t ranges() const {
    return (group_units() + units_per_task - 1) / units_per_task;
  }  // tasks of one batch and group
  int64_t tasks() const { return batch * groups * ranges(); }
  int64_t tiles() const { return (length + kScanTile - 1) / kScanTile; }
  // Elements of a batch item's saved states, and a unit of zeros behind them: a size that is 0 for some lengths would
  // have a traced graph tell these from the others.
  int64_t saved_size() const { return std::max<int64_t>(tiles() - 1, 0) * units() * states * kScanUnit + kScanUnit; }
  // One step from a zero state has a closed form, y = dt u <B, C>, without any exponential.
  bool single() const { return length == 1 && !h0; }
};

void selective_scan_forward_cpu(const ScanParams& p);
void selective_scan_backward_cpu(const ScanParams& p);

}  // namespace bdam_fast
