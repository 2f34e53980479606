// Launches the passes that walk forward. They are compiled for each element type in a file of its own, to be compiled
// side by side.
#pragma once
#include "selective_scan/cuda/forward.cuh"
#include "selective_scan/cuda/launch.cuh"

namespace bdam_fast::device {

template <class T, int NP, Access A, Pass P, Case K>
void start_forward(const ForwardViews<T>& v, int64_t blocks, int64_t chunks, cudaStream_t stream) {
  constexpr int NS = NP < 16 ? NP : 16, LN = NP / NS;
  BDAM_LAUNCH((scan_forward<T, NS, LN, A, P, K>), dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(chunks)),
              dim3(kScanThreads), (forward_shared_bytes<T, NS, LN, A>()), stream, v);
}

// The passes over chunks are compiled for the general case and scalar access only: there are few blocks then, and the
// special function unit limits them.
template <class T, Pass P>
void start_pass(const CudaScanParams& p, const ForwardViews<T>& v, Access access, int64_t blocks, int64_t chunks,
                cudaStream_t stream) {
  const Case which = P == Pass::scan ? case_of(p) : Case::general;
  BDAM_SWITCH_STATES(p.padded(), NP, {
    constexpr bool kVectors = NP <= 64 && P == Pass::scan;
    constexpr Access kChannels = kVectors ? Access::channel_vectors : Access::scalar;
    constexpr Access kSteps = kVectors ? Access::time_vectors : Access::scalar;
    constexpr Case kUsual = kVectors ? Case::usual : Case::general;
    constexpr Case kConstant = P == Pass::scan ? Case::constant : Case::general;
    if (which == Case::constant)
      start_forward<T, NP, Access::scalar, P, kConstant>(v, blocks, chunks, stream);
    else if (kVectors && access == Access::channel_vectors && which == Case::usual)
      start_forward<T, NP, kChannels, P, kUsual>(v, blocks, chunks, stream);
    else if (kVectors && access == Access::channel_vectors)
      start_forward<T, NP, kChannels, P, Case::general>(v, blocks, chunks, stream);
    else if (kVectors && access == Access::time_vectors && which == Case::usual)
      start_forward<T, NP, kSteps, P, kUsual>(v, blocks, chunks, stream);
    else if (kVectors && access == Access::time_vectors)
      start_forward<T, NP, kSteps, P, Case::general>(v, blocks, chunks, stream);
    else
      start_forward<T, NP, Access::scalar, P, Case::general>(v, blocks, chunks, stream);
  });
}

template <class T>
void forward(const CudaScanParams& p) {
  const cudaStream_t stream = static_cast<cudaStream_t>(p.stream);
  const ScanParams& c = p.call;
  const int64_t channels = forward_channels(p.padded()), blocks = p.blocks(channels), chunks = p.chunks();
  find_steps(p, stream);
  if (blocks == 0) return;
  ForwardViews<T> v{};
  fill(v, p, channels);
  v.out = view_of<T>(c.out);
  v.last = view_of<float>(c.last);
  // 16 bytes, or as many as the channels of a warp make
  const int64_t vector = 16 / static_cast<int64_t>(sizeof(T)), warp = std::min(vector, channels / 4);
  const Access access = access_of({&c.u, &c.delta, &c.z, &c.out}, p, warp, vector);
  if (chunks > 1) {
    start_pass<T, Pass::state>(p, v, access, blocks, chunks - 1, stream);
    combine(p, c.h0, false, stream);
  }
  start_pass<T, Pass::scan>(p, v, access, blocks, chunks, stream);
}

// The gradient of the state that enters the chunks from behind. Part of the backward, here because it walks forward
// (from the last step to the first).
template <class T>
void carry(const CudaScanParams& p) {
  const cudaStream_t stream = static_cast<cudaStream_t>(p.stream);
  const int64_t channels = forward_channels(p.padded());
  ForwardViews<T> v{};
  fill(v, p, channels);
  v.u = view_of<const T>(p.call.dout);
  if (!p.call.z) v.z = v.u;
  start_pass<T, Pass::carry>(p, v, Access::scalar, p.blocks(channels), p.chunks(), stream);
  combine(p, p.call.dlast, true, stream);
}

}  // namespace bdam_fast::device
