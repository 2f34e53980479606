// A causal depthwise convolution that continues from a state and updates it in place: parameters of one call, without
// torch. With q = the state followed by x, out_t = bias + sum_j w_j q_(S + t - W + 1 + j), and the new state is the
// last S entries of q. B batch, D channels, L length, S entries of the state, W width (taps).
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace bdam_fast {

constexpr int kConvUpdateMaxWidth = 8;
constexpr int kConvUpdateTile = 32;
constexpr int64_t kConvUpdateTaskChannels = 256;

struct ConvUpdateParams {
  Stream x, out;        // (B, D, L) as (batch, time, channel)
  Stream state;         // (B, D, S): time = entry, the oldest first
  Stream weight, bias;  // (D, W): time = tap; (D,), may be absent
  int64_t batch = 0, channels = 0, length = 0, entries = 0;
  int width = 0;
  bool silu = false, is_double = false;

  int64_t ranges() const { return (channels + kConvUpdateTaskChannels - 1) / kConvUpdateTaskChannels; }
  int64_t tasks() const { return batch * ranges(); }
};

void causal_conv1d_update_cpu(const ConvUpdateParams& p);

}  // namespace bdam_fast
