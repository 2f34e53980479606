// Host code of the launchers of the selective scan: views of the tensors, and how a tensor can be read.
#pragma once
#include <type_traits>

#include "selective_scan/cuda/chunks.cuh"

namespace bdam_fast::device {

template <class T>
ProjectionView<T> projection_view(const Stream& s, int64_t group, int64_t groups, bool constant) {
  ProjectionView<T> q{};
  q.group = groups > 1 ? group : 0;
  q.constant = constant;
  if (constant)
    q.channel = view_of<const float>(s);
  else
    q.steps = view_of<const T>(s);
  return q;
}

// Views that both directions need; `block_channels` channels of a block.
template <class T>
void fill(ScanViews<T>& v, const CudaScanParams& p, int64_t block_channels) {
  const ScanParams& c = p.call;
  v.u = view_of<const T>(c.u);
  v.delta = view_of<const T>(c.delta);
  v.z = view_of<const T>(c.z ? c.z : c.u);
  v.B = projection_view<T>(c.B, c.B_group, c.B_groups, c.B_constant);
  v.C = projection_view<T>(c.C, c.C_group, c.C_groups, c.C_constant);
  v.A = view_of<const float>(c.A);
  v.skip = view_of<const float>(c.skip);
  v.bias = view_of<const float>(c.bias);
  v.first = view_of<const float>(c.h0);
  v.steps = p.steps;
  v.checkpoint = p.checkpoint;
  v.saved_rows = p.saved_rows();
  v.saved_shift = kCudaTileShift + (p.save_every == 2 ? 1 : 0);
  v.chunk_state = p.chunk_state;
  v.chunk_decay = p.chunk_decay;
  v.length = c.length;
  v.chunk = p.chunk();
  v.batch = static_cast<int>(c.batch);
  v.channels = static_cast<int>(c.channels);
  v.states = static_cast<int>(c.states);
  v.groups = static_cast<int>(c.groups);
  v.group_channels = static_cast<int>(c.group_channels());
  v.blocks = static_cast<int>(p.group_blocks(block_channels));
  v.softplus = c.softplus;
  v.gated = static_cast<bool>(c.z);
  v.time_first = std::abs(c.u.time) < std::abs(c.u.channel);
}

inline Case case_of(const CudaScanParams& p) {
  if (p.constant()) return Case::constant;
  return p.call.z && p.call.softplus && !p.steps ? Case::usual : Case::general;
}

// True if vectors of `elements` adjacent channels, or steps, can be read: they are adjacent, each begins at a multiple
// of its size, and a group of channels, or the length, holds whole ones.
inline bool vectors_of_channels(const Stream& s, const ScanParams& p, int64_t elements) {
  return s.channel == 1 && p.group_channels() % elements == 0 && (p.batch < 2 || s.batch % elements == 0) &&
         (p.length < 2 || s.time % elements == 0) &&
         reinterpret_cast<uintptr_t>(s.data) % (elements * s.element_size()) == 0;
}
inline bool vectors_of_steps(const Stream& s, const ScanParams& p, int64_t elements) {
  return s.time == 1 && p.length % elements == 0 && (p.batch < 2 || s.batch % elements == 0) &&
         (p.channels < 2 || s.channel % elements == 0) &&
         reinterpret_cast<uintptr_t>(s.data) % (elements * s.element_size()) == 0;
}
// True if the steps of both are adjacent, in one direction, and those of a channel begin at the same place of a vector.
inline bool rows_like(const Stream& s, const Stream& u, const ScanParams& p, int64_t elements) {
  const auto place = [&](const Stream& x) { return reinterpret_cast<uintptr_t>(x.data) / x.element_size() % elements; };
  return s.time == u.time && (u.time == 1 || u.time == -1) && place(s) == place(u) &&
         (p.batch < 2 || (s.batch - u.batch) % elements == 0) &&
         (p.channels < 2 || (s.channel - u.channel) % elements == 0);
}
// Offsets in bytes within a batch item fit an int, whatever the type.
inline bool is_narrow(const Stream& s, const ScanParams& p) {
  return p.length * std::abs(s.time) + p.channels * std::abs(s.channel) < int64_t{1} << 29;
}
inline Access access_of(std::initializer_list<const Stream*> streams, const CudaScanParams& p, int64_t channels,
                        int64_t steps) {
  bool by_channels = channels > 1 && !p.constant(), by_steps = steps > 1 && !p.constant(), by_rows = !p.constant();
  for (const Stream* s : streams) {
    if (!*s) continue;
    by_channels = by_channels && is_narrow(*s, p.call) && vectors_of_channels(*s, p.call, channels);
    by_steps = by_steps && is_narrow(*s, p.call) && vectors_of_steps(*s, p.call, steps);
    by_rows = by_rows && is_narrow(*s, p.call) && rows_like(*s, p.call.u, p.call, steps);
  }
  const bool narrow = is_narrow(p.call.B, p.call) && is_narrow(p.call.C, p.call) &&
                      p.tiles() * p.padded() * p.call.channels < int64_t{1} << 31;
  if (!narrow) return Access::scalar;
  return by_channels ? Access::channel_vectors
         : by_steps  ? Access::time_vectors
         : by_rows   ? Access::rows
                     : Access::scalar;
}

inline dim3 grid_of(int64_t count, int64_t rows = 1) {
  const int64_t blocks = (count + kPlainThreads - 1) / kPlainThreads;
  return dim3(static_cast<unsigned>(blocks < 65535 ? blocks : 65535), static_cast<unsigned>(rows));
}
inline void find_steps(const CudaScanParams& p, cudaStream_t stream) {
  const int64_t count = p.call.batch * p.call.length;
  if (p.steps && count > 0)
    BDAM_LAUNCH(scan_steps, grid_of(count), dim3(kPlainThreads), 0, stream, p.seq_idx, p.seq_batch, p.seq_time,
                p.call.batch, p.call.length, p.steps);
}
inline void combine(const CudaScanParams& p, const Stream& first, bool backward, cudaStream_t stream) {
  ChunkViews v{};
  v.A = view_of<const float>(p.call.A);
  v.first = view_of<const float>(first);
  v.state = p.chunk_state, v.decay = p.chunk_decay;
  v.chunks = static_cast<int>(p.chunks()), v.batch = static_cast<int>(p.call.batch);
  v.channels = static_cast<int>(p.call.channels), v.states = static_cast<int>(p.call.states);
  v.padded = static_cast<int>(p.padded());
  v.backward = backward;
  const int64_t count = p.call.batch * p.call.channels * p.padded();
  if (count > 0) BDAM_LAUNCH(combine_chunks, grid_of(count), dim3(kPlainThreads), 0, stream, v);
}

// Runs the statement with NP, a constant, bound to the number of states held.
#define BDAM_SWITCH_STATES(padded, NP, ...) \
  switch (padded) {                         \
    case 8: {                               \
      constexpr int NP = 8;                 \
      __VA_ARGS__;                          \
      break;                                \
    }                                       \
    case 16: {                              \
      constexpr int NP = 16;                \
      __VA_ARGS__;                          \
      break;                                \
    }                                       \
    case 32: {                              \
      constexpr int NP = 32;                \
      __VA_ARGS__;                          \
      break;                                \
    }                                       \
    case 64: {                              \
      constexpr int NP = 64;                \
      __VA_ARGS__;                          \
      break;                                \
    }                                       \
    case 128: {                             \
      constexpr int NP = 128;               \
      __VA_ARGS__;                          \
      break;                                \
    }                                       \
    default: {                              \
      constexpr int NP = 256;               \
      __VA_ARGS__;                          \
      break;                                \
    }                                       \
  }

}  // namespace bdam_fast::device
