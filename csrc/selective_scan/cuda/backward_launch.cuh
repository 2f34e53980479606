// Launches the backward and the sums of its partial results. Compiled for each element type in a file of its own.
#pragma once
#include "selective_scan/cuda/backward.cuh"
#include "selective_scan/cuda/launch.cuh"
#include "selective_scan/cuda/sums.cuh"

namespace bdam_fast::device {

// Elements that a thread handles at once in the elementwise parts: as many as leave work for every thread.
constexpr int backward_vector(int padded) { return padded <= 16 ? 4 : padded <= 64 ? 2 : 1; }

template <class T, int NP, Access A, Case K, int Every = 1, bool Narrow = false>
void start_backward(const BackwardViews<T>& v, int64_t blocks, int64_t chunks, cudaStream_t stream) {
  constexpr int NS = NP < 16 ? NP / 4 : 4, LN = NP / NS, NC = K == Case::constant || Narrow ? 2 : 4;
  constexpr int V = A == Access::scalar ? 1 : Narrow ? 2 : backward_vector(NP);
  BDAM_LAUNCH((scan_backward<T, NC, NS, LN, V, A, K, Every>),
              dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(chunks)), dim3(kScanThreads),
              (BackwardLayout<T, NC, NS, LN, V, A, K>::bytes), stream, v);
}

// The variants of the usual case with 16 states.
template <class T>
bool start_variant(const CudaScanParams& p, const BackwardViews<T>& v, Access access, int64_t blocks,
                   cudaStream_t stream) {
  constexpr Access kSteps = sizeof(T) == 2 ? Access::rows : Access::time_vectors;
  const int64_t chunks = p.chunks();
  if (p.narrow && p.save_every == 1)
    start_backward<T, 16, Access::channel_vectors, Case::usual, 1, true>(v, blocks, chunks, stream);
  else if (p.narrow)
    start_backward<T, 16, Access::channel_vectors, Case::usual, 2, true>(v, blocks, chunks, stream);
  else if (p.save_every == 1)
    return false;
  else if (access == Access::channel_vectors)
    start_backward<T, 16, Access::channel_vectors, Case::usual, 2>(v, blocks, chunks, stream);
  else if (access == Access::time_vectors || access == kSteps)
    start_backward<T, 16, kSteps, Case::usual, 2>(v, blocks, chunks, stream);
  else
    start_backward<T, 16, Access::scalar, Case::usual, 2>(v, blocks, chunks, stream);
  return true;
}

template <class T>
void start_cases(const CudaScanParams& p, const BackwardViews<T>& v, Access access, int64_t blocks,
                 cudaStream_t stream) {
  if (start_variant<T>(p, v, access, blocks, stream)) return;
  const Case which = case_of(p);
  const int64_t chunks = p.chunks();
  BDAM_SWITCH_STATES(p.padded(), NP, {
    constexpr bool kVectors = NP <= 64, kHasRows = NP <= 16 && sizeof(T) == 2;
    constexpr Access kChannels = kVectors ? Access::channel_vectors : Access::scalar;
    constexpr Access kSteps = kVectors ? Access::time_vectors : Access::scalar;
    constexpr Access kRows = kHasRows ? Access::rows : Access::scalar;
    constexpr Case kUsual = kVectors ? Case::usual : Case::general;
    const bool usual = which == Case::usual, steps = access == Access::time_vectors;
    if (which == Case::constant)
      start_backward<T, NP, Access::scalar, Case::constant>(v, blocks, chunks, stream);
    else if (kVectors && access == Access::channel_vectors && usual)
      start_backward<T, NP, kChannels, kUsual>(v, blocks, chunks, stream);
    else if (kVectors && access == Access::channel_vectors)
      start_backward<T, NP, kChannels, Case::general>(v, blocks, chunks, stream);
    else if (kVectors && steps && usual)
      start_backward<T, NP, kSteps, kUsual>(v, blocks, chunks, stream);
    else if (kVectors && !kHasRows && steps)
      start_backward<T, NP, kHasRows ? kRows : kSteps, Case::general>(v, blocks, chunks, stream);
    else if (kHasRows && access == Access::rows && usual)
      start_backward<T, NP, kRows, kHasRows ? Case::usual : Case::general>(v, blocks, chunks, stream);
    else if (kHasRows && access != Access::scalar)
      start_backward<T, NP, kRows, Case::general>(v, blocks, chunks, stream);
    else
      start_backward<T, NP, Access::scalar, Case::general>(v, blocks, chunks, stream);
  });
}

// dB or dC
inline SumJob projection_sum(const CudaScanParams& p, const float* from, const Stream& to, int64_t group,
                             int64_t groups, bool constant, int64_t blocks) {
  const ScanParams& c = p.call;
  if (constant)
    return {from, to.data, 1, p.chunks() * c.batch, c.channels, c.states, p.padded(),
            1,    0,       0, to.channel,           to.time,    to.dtype};
  return {from,       to.data, c.batch * groups, c.groups / groups * blocks, c.length, c.states,
          p.padded(), groups,  to.batch,         groups > 1 ? group : 0,     to.time,  to.channel,
          to.dtype};
}
inline void add_partials(const CudaScanParams& p, cudaStream_t stream) {
  const ScanParams& c = p.call;
  const int64_t rows = p.chunks() * c.batch, blocks = p.group_blocks(p.backward_channels());
  SumJobs jobs{};
  int count = 0;
  jobs.job[count++] = {p.sum_A, c.dA.data, 1, rows,         c.channels, c.states,  p.padded(),
                       1,       0,         0, c.dA.channel, c.dA.time,  c.dA.dtype};
  jobs.job[count++] = projection_sum(p, p.sum_B, c.dB, c.dB_group, c.B_groups, c.B_constant, blocks);
  jobs.job[count++] = projection_sum(p, p.sum_C, c.dC, c.dC_group, c.C_groups, c.C_constant, blocks);
  if (c.dskip)
    jobs.job[count++] = {p.sum_skip,      c.dskip.data, 1, rows, 1, c.channels, c.channels, 1, 0, 0, 0,
                         c.dskip.channel, c.dskip.dtype};
  if (c.dbias)
    jobs.job[count++] = {p.sum_bias,      c.dbias.data, 1, rows, 1, c.channels, c.channels, 1, 0, 0, 0,
                         c.dbias.channel, c.dbias.dtype};
  int64_t most = 0;
  for (int i = 0; i < count; ++i) most = std::max(most, jobs.job[i].outer * jobs.job[i].rows * jobs.job[i].columns);
  if (most > 0) BDAM_LAUNCH(sum_partials, grid_of(most, count), dim3(kPlainThreads), 0, stream, jobs);
}

template <class T>
void backward(const CudaScanParams& given) {
  CudaScanParams p = given;
  const cudaStream_t stream = static_cast<cudaStream_t>(p.stream);
  const ScanParams& c = p.call;
  const int64_t vector = 16 / static_cast<int64_t>(sizeof(T));
  const Access access = access_of({&c.u, &c.delta, &c.z, &c.dout, &c.du, &c.ddelta, &c.dz}, p, vector, vector);
  p.narrow = p.narrow && p.has_variants() && access == Access::channel_vectors;
  const int64_t channels = p.backward_channels(), blocks = p.blocks(channels);
  if (blocks > 0) {
    BackwardViews<T> v{};
    fill(v, p, channels);
    v.dout = view_of<const T>(c.dout);
    v.du = view_of<T>(c.du);
    v.ddelta = view_of<T>(c.ddelta);
    v.dz = view_of<T>(c.dz ? c.dz : c.du);
    v.dlast = view_of<const float>(c.dlast);
    v.dfirst = view_of<float>(c.dh0);
    v.sum_A = p.sum_A, v.sum_B = p.sum_B, v.sum_C = p.sum_C, v.sum_skip = p.sum_skip, v.sum_bias = p.sum_bias;
    start_cases<T>(p, v, access, blocks, stream);
  }
  add_partials(p, stream);
}

}  // namespace bdam_fast::device
