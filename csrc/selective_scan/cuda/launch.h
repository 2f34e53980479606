// Selective scan on a GPU: parameters and cuts that its binding and its launchers share, without torch and without
// CUDA.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "selective_scan/selective_scan.h"

namespace bdam_fast {

// Steps between saved states: 8 bytes of saved state per element at 16 states.
constexpr int kCudaTileShift = 3, kCudaTile = 1 << kCudaTileShift;
constexpr int kCudaChunkUnit = 32;  // a chunk of a split length is a multiple of it

// States held for N of them: the next of 8, 16, 32, 64, 128 and 256.
inline int64_t padded_states(int64_t states) {
  int64_t padded = 8;
  while (padded < states) padded *= 2;
  return padded;
}
// Channels of a block of 128 threads, of which padded / 16 share a channel in the forward.
inline int64_t forward_channels(int64_t padded) { return padded <= 16 ? 128 : 128 * 16 / padded; }

// The split of one length for small batches. A block walks its steps one after another, so that fewer blocks than
// multiprocessors (132 on an H100) leave the others idle. Below 128 blocks and from 512 steps on, the length is cut in
// chunks of at least 128 steps until 512 blocks come together; they cost one more pass over u, delta and B (about 0.6
// of a forward), so that a split in two would gain nothing and three chunks are the least. Shapes alone decide: the
// bits of a result do not depend on the GPU.
inline int64_t chunk_length(int64_t blocks, int64_t length) {
  if (blocks >= 128 || length < 512) return std::max<int64_t>(length, 1);
  const int64_t chunks = std::min<int64_t>(512 / std::max<int64_t>(blocks, 1), length / 128);
  const int64_t steps = (length + chunks - 1) / chunks;
  return (steps + kCudaChunkUnit - 1) / kCudaChunkUnit * kCudaChunkUnit;
}

// True where the backward with fewer channels a block is the faster one on a card, by its index: set from the table of
// what was measured (bdam_fast/_tuning.py).
inline std::atomic<bool>& narrow_backward(int card) {
  static std::atomic<bool> narrow[64];
  return narrow[std::max(card, 0) % 64];
}

struct CudaScanParams {
  ScanParams call;  // A, D, delta_bias, constant B and C and all states in float32; the activations in one dtype
  const int32_t* seq_idx = nullptr;
  int64_t seq_batch = 0, seq_time = 0;  // strides, in processed order
  int8_t* steps = nullptr;              // [B][L] ScanStep, filled by the launcher
  float* checkpoint = nullptr;          // [B][saved tiles * padded states / 4 * D * 4]: the states before the tiles
  int save_every = 1;                   // tiles from one saved state to the next
  bool narrow = false;                  // the backward with more warps, where there is one
  float *chunk_state = nullptr, *chunk_decay = nullptr;  // [chunks][B][D][padded states], [chunks][B][D][2]
  // Partial sums: of channel blocks, [B][G][blocks][L][padded states]; of chunks, [chunks][B][D][padded states or 1].
  float *sum_B = nullptr, *sum_C = nullptr, *sum_A = nullptr, *sum_skip = nullptr, *sum_bias = nullptr;
  Dtype dtype = Dtype::f32;
  void* stream = nullptr;

  int64_t padded() const { return padded_states(call.states); }
  int64_t tiles() const { return (call.length + kCudaTile - 1) / kCudaTile; }
  // Saved states of one batch item, and their size.
  int64_t saved_rows() const { return (tiles() + save_every - 1) / save_every; }
  int64_t saved_size() const { return saved_rows() * padded() * call.channels; }
  int64_t group_blocks(int64_t block_channels) const {
    return (call.group_channels() + block_channels - 1) / block_channels;
  }
  int64_t blocks(int64_t block_channels) const { return call.batch * call.groups * group_blocks(block_channels); }
  // Constant B and C are left whole, which spares the compiler a sixth of its work.
  int64_t chunk() const {
    if (constant()) return std::max<int64_t>(call.length, 1);
    return chunk_length(blocks(forward_channels(padded())), call.length);
  }
  int64_t chunks() const { return std::max<int64_t>(1, (call.length + chunk() - 1) / chunk()); }
  bool constant() const { return call.B_constant || call.C_constant; }
  // The case whose backward has variants: states saved before every second tile, fewer channels a block.
  bool has_variants() const { return call.z && call.softplus && !seq_idx && !constant() && padded() == 16; }
  // Channels of a block of the backward: 4 (with constant B or C, whose sums take registers, and where it is narrow: 2)
  // for each group of padded / 4 threads (at least 4).
  int64_t backward_channels() const {
    return (constant() || (narrow && has_variants()) ? 2 : 4) * 128 / std::max<int64_t>(padded() / 4, 4);
  }
};

void selective_scan_forward_cuda(const CudaScanParams& p);
void selective_scan_backward_cuda(const CudaScanParams& p);

}  // namespace bdam_fast
