// Selective scan, forward: every thread walks the steps of one channel in order, its states in registers, while B and C
// of a tile of steps stand in shared memory.
//
// Counted on sm_90, 16 states, bf16: 17 ex2, 16 of them the states', and 5 further special functions a step make the
// special function unit the limit (10.5 cycles per 32 states), the issue slots come next.
//
// Three passes use one source. `scan` is the whole thing. With a length that is split in chunks, `state` only brings a
// chunk's last state from a zero first state, and `carry` does the same for the gradient of the state, from the last
// step to the first, with C for B and d y for dt u. The states that enter the chunks follow from those by
// combine_chunks.
#pragma once
#include <type_traits>

#include "selective_scan/cuda/device.cuh"

namespace bdam_fast::device {

enum class Pass { scan, state, carry };

template <class T>
struct ForwardViews : ScanViews<T> {
  View<T> out;
  View<float> last;  // (B, D, N); data may be null
};

// The states of one thread.
template <class T, int NS, int LN, Pass P, Case K>
struct Lane {
  static constexpr int NP = NS * LN;
  static constexpr bool Constant = K == Case::constant;
  float a[NS], h[NS];
  float fixed[Constant ? NS : 1], read[Constant ? NS : 1];  // constant B and C

  BDAM_DEVICE Lane(const ForwardViews<T>& p, const Place& at, int channel, int s) {
#pragma unroll
    for (int i = 0; i < NS; ++i) {
      const int n = state_index<LN>(s, i);
      const bool present = n < p.states;
      a[i] = present ? decay_rate(*p.A.at(0, n, channel)) : 0.f;
      h[i] = 0.f;
      if (P == Pass::scan && at.chunk > 0)
        h[i] = p.chunk_state[((static_cast<int64_t>(at.chunk) * p.batch + at.batch) * p.channels + channel) * NP + n];
      else if (P == Pass::scan && p.first.data && present)
        h[i] = *p.first.at(at.batch, n, channel);
      if (Constant) {
        fixed[Constant ? i : 0] = present && p.B.constant ? *p.B.channel.at(0, n, channel) : 0.f;
        read[Constant ? i : 0] = present && p.C.constant ? *p.C.channel.at(0, n, channel) : 0.f;
      }
    }
  }
  // One step, B and C of it at `bc`: the states move on; returns this thread's share of <C, h>.
  BDAM_DEVICE float advance(const ForwardViews<T>& p, const float* bc, int s, float dt, float xu) {
    float y = 0.f;
#pragma unroll
    for (int j = 0; j < NS / 4; ++j) {
      float vb[4], vc[4];
      load<4>(bc + (j * LN + s) * 4, vb);
      load<4>(bc + NP + (j * LN + s) * 4, vc);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = 4 * j + i;
        const float b = Constant && p.B.constant ? fixed[Constant ? n : 0] : vb[i],
                    c = Constant && p.C.constant ? read[Constant ? n : 0] : vc[i];
        const float e = ex2(dt * a[n]);
        if (P == Pass::carry) {
          h[n] = e * fmaf(xu, c, h[n]);
        } else {
          h[n] = fmaf(e, h[n], xu * b);
          if (P == Pass::scan) y = fmaf(h[n], c, y);
        }
      }
    }
    return y;
  }
  BDAM_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < NS; ++i) h[i] = 0.f;
  }
  // Saves the state before tile `tile` of the whole length.
  BDAM_DEVICE void save(const ForwardViews<T>& p, const Place& at, int channel, int s, int64_t tile) const {
    const int64_t tiles = (p.length + kCudaTile - 1) / kCudaTile;
    float* q = p.checkpoint + (((at.batch * tiles + tile) * (NP / 4) + s) * p.channels + channel) * 4;
#pragma unroll
    for (int j = 0; j < NS / 4; ++j) {
      const float v[4] = {h[4 * j], h[4 * j + 1], h[4 * j + 2], h[4 * j + 3]};
      store<4>(q + static_cast<int64_t>(j * LN) * p.channels * 4, v);
    }
  }
  // After the chunk's last step.
  BDAM_DEVICE void finish(const ForwardViews<T>& p, const Place& at, int channel, int s, float sum, bool kept) const {
    const int64_t row = (static_cast<int64_t>(at.chunk) * p.batch + at.batch) * p.channels + channel;
#pragma unroll
    for (int i = 0; i < NS; ++i) {
      const int n = state_index<LN>(s, i);
      if (P != Pass::scan)
        p.chunk_state[row * NP + n] = h[i];
      else if (p.last.data && at.begin + at.steps == p.length && n < p.states)
        *p.last.at(at.batch, n, channel) = h[i];
    }
    if (P != Pass::scan && s == 0) {
      p.chunk_decay[row * 2] = sum;
      p.chunk_decay[row * 2 + 1] = kept ? 1.f : 0.f;
    }
  }
};

// A channel's parameters besides its states, and the elementwise part of a step.
template <class T, Pass P, Case K>
struct Channel {
  float skip, bias;

  BDAM_DEVICE Channel(const ForwardViews<T>& p, int channel) {
    skip = P == Pass::scan && p.skip.data ? *p.skip.at(0, 0, channel) : 0.f;
    bias = p.bias.data ? *p.bias.at(0, 0, channel) : 0.f;
  }
  BDAM_DEVICE float step_size(const ForwardViews<T>& p, float delta) const {
    float dt, unused;
    softplus(delta + bias, dt, unused);
    return K == Case::usual || p.softplus ? dt : delta + bias;
  }
  // The input of the states at a step: dt u, or d y in the pass `carry`, whose u is d out.
  BDAM_DEVICE float input(const ForwardViews<T>& p, float dt, float u, float z) const {
    if (P == Pass::carry) return u * gate(p, z);
    return dt * u;
  }
  BDAM_DEVICE float output(const ForwardViews<T>& p, float y, float u, float z) const {
    return fmaf(skip, u, y) * gate(p, z);
  }
  // silu(z), or 1 without z, in whose place u is read then. A selection: a branch costs more than it saves.
  BDAM_DEVICE static float gate(const ForwardViews<T>& p, float z) {
    const float silu = z * sigmoid(z);
    return K == Case::usual || p.gated ? silu : 1.f;
  }
};

template <int LN>
BDAM_DEVICE float sum_lanes(float y) {
#pragma unroll
  for (int o = 1; o < LN; o *= 2) y += __shfl_xor_sync(0xffffffffu, y, o);
  return y;
}

// u, delta and z of a warp's channels over a tile of steps, in shared memory: [u, delta, z][step][pitch] or, in vectors
// of steps, [u, delta, z][channel][step]. A warp reads and writes its own part only. The outputs take u's place.
template <class T, int LN, Access A, Pass P>
struct Stage {
  static constexpr int kTile = kCudaTile, kChannels = 32 / LN, kTensors = 3;
  static constexpr int kPitch = kChannels + 16 / sizeof(T);  // neither way of writing it meets a bank twice
  static constexpr int kPlane = A == Access::time_vectors ? kChannels * kTile : kTile * kPitch;
  static constexpr int kBytes = kTensors * kPlane * static_cast<int>(sizeof(T));
  // elements of one vector and vectors of one lane
  static constexpr int kRun = A == Access::scalar ? 1 : A == Access::time_vectors ? kTile : kChannels;
  static constexpr int V = kRun * sizeof(T) > 16 ? 16 / sizeof(T) : kRun, kItems = kTile * kChannels / V;
  static constexpr int kEach = (kItems + 31) / 32;

  const T* source[kTensors];
  T* target;
  int64_t time[kTensors + 1], channel[kTensors + 1];
  int step, own, steps_between, channels_between;  // of the lane's first vector, and between its vectors
  int count;                                       // channels of this warp

  BDAM_DEVICE Stage(const ForwardViews<T>& p, const Place& at, int64_t begin, int direction) {
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * kChannels;
    count = at.count - first;
    if (A == Access::time_vectors || (A == Access::scalar && p.time_first)) {
      constexpr int kVectors = kTile / V;  // of a channel
      step = lane % kVectors * V, own = lane / kVectors, steps_between = 0, channels_between = 32 / kVectors;
    } else {
      constexpr int kVectors = A == Access::time_vectors ? 1 : kChannels / V;  // of a step
      step = lane / kVectors, own = lane % kVectors * V, steps_between = 32 / kVectors, channels_between = 0;
    }
    const View<const T>* const views[] = {&p.u, &p.delta, &p.z};
#pragma unroll
    for (int i = 0; i < kTensors; ++i) {
      const View<const T>& v = *views[i];
      time[i] = direction * v.time, channel[i] = v.channel;
      source[i] = v.at(at.batch, begin, at.first + first) + step * time[i] + own * channel[i];
    }
    time[kTensors] = direction * p.out.time, channel[kTensors] = p.out.channel;
    if (P == Pass::scan)
      target = p.out.at(at.batch, begin, at.first + first) + step * time[kTensors] + own * channel[kTensors];
  }
  BDAM_DEVICE bool present(int i, int first, int length) const {
    if (kItems % 32 != 0 && i * 32 + static_cast<int>(threadIdx.x) % 32 >= kItems) return false;
    return own + i * channels_between < count && first + step + i * steps_between < length;
  }
  BDAM_DEVICE T* slot(T* stage, int i) const {
    const int t = step + i * steps_between, c = own + i * channels_between;
    return stage + (A == Access::time_vectors ? c * kTile + t : t * kPitch + c);
  }
  // Begins to bring the tile from step `first` on; tiles come in order.
  BDAM_DEVICE void fetch(T* stage, int first, int length) {
#pragma unroll
    for (int q = 0; q < kTensors; ++q) {
      if (q == 2 && P == Pass::state) break;
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        if (present(i, first, length))
          cp_async<V * sizeof(T)>(slot(stage + q * kPlane, i),
                                  source[q] + i * (steps_between * time[q] + channels_between * channel[q]));
      source[q] += kTile * time[q];
    }
  }
  BDAM_DEVICE static const T* at(const T* stage, int tensor, int t, int c) {
    return stage + tensor * kPlane + (A == Access::time_vectors ? c * kTile + t : t * kPitch + c);
  }
  // Writes out the tile's outputs.
  BDAM_DEVICE void flush(T* stage, int first, int length) {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (present(i, first, length))
        store_pack(target + i * (steps_between * time[kTensors] + channels_between * channel[kTensors]),
                   load_pack<V>(slot(stage, i)));
    target += kTile * time[kTensors];
  }
};

template <class T, int NS, int LN, Access A>
constexpr size_t forward_shared_bytes() {
  return 2 * 2 * kCudaTile * NS * LN * sizeof(float) + 2 * (kScanThreads / 32) * Stage<T, LN, A, Pass::scan>::kBytes;
}

template <class T, int NS, int LN, Access A, Pass P, Case K>
__global__ void __launch_bounds__(kScanThreads, K == Case::constant ? 4 : 6) scan_forward(ForwardViews<T> p) {
  constexpr int NP = NS * LN, kTile = kCudaTile, kUnroll = 4;
  constexpr bool Packed = K != Case::usual;
  using Tensors = Stage<T, LN, A, P>;
  BDAM_SHARED(float, shared);  // [2][kTile][2][NP]: B and C of this tile and the next; then the stages, two a warp
  const Place at = place_of(p, kScanThreads / LN);
  const int s = threadIdx.x % LN, length = at.steps, direction = P == Pass::carry ? -1 : 1;
  const int own = threadIdx.x % 32 / LN;  // channel of the warp
  const bool live = static_cast<int>(threadIdx.x) / LN < at.count;
  const int channel = at.first + (live ? static_cast<int>(threadIdx.x) / LN : 0);
  const int64_t begin = at.begin + (P == Pass::carry ? length - 1 : 0);
  T* const stages =
      reinterpret_cast<T*>(shared + 2 * kTile * 2 * NP) + threadIdx.x / 32 * 2 * (Tensors::kTensors * Tensors::kPlane);
  const Channel<T, P, K> constants(p, channel);
  Lane<T, NS, LN, P, K> lane(p, at, channel, s);
  Tensors tensors(p, at, begin, direction);
  Projections<T, NP, std::conditional_t<A == Access::scalar, int64_t, int>> projections(p, at, begin, direction,
                                                                                        length);
  tensors.fetch(stages, 0, length);
  projections.template fetch<K>(p, at, begin, direction, 0);
  projections.stash(shared);
  float sum = 0.f;
  bool kept = true;
#pragma unroll 1
  for (int first = 0, side = 0; first < length; first += kTile, side ^= 1) {
    if (P == Pass::scan && p.checkpoint && live) lane.save(p, at, channel, s, (at.begin + first) / kTile);
    cp_async_wait();
    __syncthreads();
    T* const stage = stages + side * (Tensors::kTensors * Tensors::kPlane);
    tensors.fetch(stages + (side ^ 1) * (Tensors::kTensors * Tensors::kPlane), first + kTile, length);
    projections.template fetch<K>(p, at, begin, direction, first + kTile);
#pragma unroll 1
    for (int t0 = 0; t0 < kTile && first + t0 < length; t0 += kUnroll) {
      const float* bc = shared + (side * kTile + t0) * 2 * NP;
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int t = t0 + i, l = first + t;
        const float uu = to_f(*Tensors::at(stage, 0, t, own));
        const float zz = P == Pass::state ? 0.f : to_f(*Tensors::at(stage, 2, t, own));
        float dt = constants.step_size(p, to_f(*Tensors::at(stage, 1, t, own))), xu = constants.input(p, dt, uu, zz);
        bool present = l < length;
        int8_t kind = kStep;
        if (Packed && present && p.steps) kind = p.steps[at.batch * p.length + begin + direction * l];
        if (Packed) present = present && kind != kPadding;
        if (!present) dt = xu = 0.f;  // the state stays as it is
        if (Packed && kind == kReset) {
          if (P != Pass::carry) lane.clear();
          kept = false;
        }
        float y = lane.advance(p, bc + i * 2 * NP, s, dt, xu);
        if (Packed && P == Pass::carry && kind == kReset) lane.clear();
        if (P == Pass::scan) {
          y = constants.output(p, sum_lanes<LN>(y), uu, zz);
          if (Packed && !present) y = 0.f;
          if (LN > 1) __syncwarp();  // every thread of the channel has read u
          if (s == 0) *const_cast<T*>(Tensors::at(stage, 0, t, own)) = from_f<T>(y);
        } else {
          sum += dt;
        }
      }
    }
    projections.stash(shared + (side ^ 1) * kTile * 2 * NP);
    if (P == Pass::scan) {
      __syncwarp();
      tensors.flush(stage, first, length);
    }
  }
  if (live) lane.finish(p, at, channel, s, sum, kept);
}

}  // namespace bdam_fast::device
