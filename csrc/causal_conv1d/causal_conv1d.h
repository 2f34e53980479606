// Parameters of the causal depthwise convolution, and the rules by which its work is cut into tasks. No torch in here.
#pragma once
#include <algorithm>
#include <cstdint>

#include "common/dtype.h"

namespace bdam_fast {

constexpr int kConvMaxWidth = 8;
constexpr int kConvTile = 32;        // steps of one block of channels that are worked on at once
constexpr int kConvRowTile = 512;    // steps of one channel, where steps are adjacent in memory
constexpr int kConvRowMinimum = 16;  // below so many steps lanes are channels in any memory order
constexpr int kConvRowMaxWidth = 4;

// Streams are in processing order: a reversed convolution has negative time strides. Sums are formed in float, or in
// double for double streams.
struct ConvParams {
  Stream x, out, dout, dx;  // (B, D, L) as (batch, time, channel)
  Stream initial, final_state, dfinal,
      dinitial;                         // (B, D, width - 1), time = entry, oldest step first; each may be absent
  Stream weight, bias, dweight, dbias;  // (D, width), time = tap; (D,), may be absent
  void* taps = nullptr;                 // [width + 1][padded D], in the type of the sums: weights by tap, then the bias
  void* partial = nullptr;              // [B * pieces][width + 1][padded D]: gradients of the taps
  const int32_t* seq_idx = nullptr;     // null: one sequence, no padding
  const int64_t* last_step =
      nullptr;  // with seq_idx, [B][tiles]: the last step before the tile that is no padding, or -1
  int64_t seq_batch = 0, seq_time = 0;
  int64_t B = 0, D = 0, L = 0, padded_D = 0;
  int width = 0;
  bool silu = false, reverse = false, is_double = false;
  bool rows = false;               // lanes are steps of one channel: adjacent in memory in every stream, and no seq_idx
  int64_t blocks = 1, groups = 1;  // blocks of channels a task, groups of blocks over D
  int64_t piece = 1, pieces = 1;   // steps a task, pieces over L

  int64_t tasks() const { return B * groups * pieces; }
  int64_t tiles() const { return (L + kConvTile - 1) / kConvTile; }
};

// Cuts (B, D, L) into tasks by the shape alone, so that every sum has one order for any number of threads: about 64
// tasks or more, and no time piece below 64 steps, whose width - 1 steps at the border are computed twice. Packed
// sequences are not cut in time (how far back a window reaches depends on the padding), nor are rows. Where time can be
// cut, tasks are wide: each row of one block alone is a page of its own (2048 steps of 1536 channels forward, 2.4
// to 1.1 ms).
inline void cut_into_tasks(ConvParams& p, int lanes) {
  const int64_t n_blocks = (p.D + lanes - 1) / lanes;
  p.padded_D = n_blocks * lanes;
  const int64_t longest = p.seq_idx || p.rows ? 1 : std::max<int64_t>(1, p.L / 64);
  p.blocks = std::clamp<int64_t>(p.B * n_blocks * longest / 64, 1, 16);
  p.groups = (n_blocks + p.blocks - 1) / p.blocks;
  const int64_t wanted = std::max<int64_t>(1, 64 / std::max<int64_t>(1, p.B * p.groups));
  const int64_t most = std::min(wanted, longest);
  p.piece = std::max<int64_t>(1, (p.L + most - 1) / most);
  p.pieces = std::max<int64_t>(1, (p.L + p.piece - 1) / p.piece);
}

int conv_lanes(bool is_double);  // of the instruction set in use
// Both fill p.taps first; the buffers behind the pointers are the caller's.
void causal_conv1d_forward_cpu(const ConvParams& p);
void causal_conv1d_backward_cpu(const ConvParams& p);

}  // namespace bdam_fast
