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

// Vectors and rows are compiled for up to 64 states; for the passes over chunks, which are few blocks, for up to 16 in
// the usual case. Else elements are read one by one.
template <class T, Pass P>
void start_pass(const CudaScanParams& p, const ForwardViews<T>& v, Access access, int64_t blocks, int64_t chunks,
                cudaStream_t stream) {
  const Case which = P == Pass::state && p.call.softplus && !p.steps ? Case::usual : case_of(p);
  BDAM_SWITCH_STATES(p.padded(), NP, {
    constexpr bool kScan = P == Pass::scan, kVectors = NP <= (kScan ? 64 : 16);
    constexpr Access kChannels = kVectors ? Access::channel_vectors : Access::scalar;
    constexpr Access kRows = kVectors ? Access::rows : Access::scalar;
    constexpr Case kUsual = kVectors ? Case::usual : Case::general;
    constexpr Case kConstant = kScan ? Case::constant : Case::general;
    const bool usual = which == Case::usual, vectors = kVectors && (kScan || usual) && access != Access::scalar;
    if (which == Case::constant)
      start_forward<T, NP, Access::scalar, P, kConstant>(v, blocks, chunks, stream);
    else if (vectors && access == Access::channel_vectors && usual)
      start_forward<T, NP, kChannels, P, kUsual>(v, blocks, chunks, stream);
    else if (vectors && access == Access::channel_vectors)
      start_forward<T, NP, kScan ? kChannels : Access::scalar, P, Case::general>(v, blocks, chunks, stream);
    else if (vectors && usual)
      start_forward<T, NP, kRows, P, kUsual>(v, blocks, chunks, stream);
    else if (vectors)
      start_forward<T, NP, kScan ? kRows : Access::scalar, P, Case::general>(v, blocks, chunks, stream);
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
  const ScanParams& c = p.call;
  const int64_t channels = forward_channels(p.padded()), vector = 16 / static_cast<int64_t>(sizeof(T));
  ForwardViews<T> v{};
  fill(v, p, channels);
  v.u = view_of<const T>(c.dout);
  if (!c.z) v.z = v.u;
  const Access access = access_of({&c.u, &c.delta, &c.z, &c.dout}, p, std::min(vector, channels / 4), vector);
  start_pass<T, Pass::carry>(p, v, access, p.blocks(channels), p.chunks(), stream);
  combine(p, c.dlast, true, stream);
}

}  // namespace bdam_fast::device
