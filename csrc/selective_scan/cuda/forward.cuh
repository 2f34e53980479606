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

// True in the passes over chunks of the usual case: dt is in units of ln 2 there, which spares two instructions a step.
// So are the states of the pass `state`, whose input is dt u.
template <Pass P, Case K>
constexpr bool kBinary = P != Pass::scan && K == Case::usual;

// The states of one thread.
template <class T, int NS, int LN, Pass P, Case K>
struct Lane {
  static constexpr int NP = NS * LN;
  // Half of NP = 8 would leave threads without a value to bring.
  static constexpr Read kRead = NP < 16 || P == Pass::scan ? Read::both : P == Pass::state ? Read::B : Read::C;
  static constexpr int kRow = kRead == Read::both ? 2 * NP : NP, kC = kRead == Read::both ? NP : 0;
  static constexpr bool Constant = K == Case::constant;
  float a[NS], h[NS];
  float fixed[Constant ? NS : 1], read[Constant ? NS : 1];  // constant B and C

  BDAM_DEVICE Lane(const ForwardViews<T>& p, const Place& at, int channel, int s) {
    clear();
    if (P == Pass::scan && at.chunk > 0) {
      prefer_branch();
      const float* const q = p.chunk_state + row(p, at, channel) * NP;
#pragma unroll
      for (int i = 0; i < NS; ++i) h[i] = q[state_index<LN>(s, i)];
    } else if (P == Pass::scan && p.first.data) {
      prefer_branch();
#pragma unroll
      for (int i = 0; i < NS; ++i) {
        const int n = state_index<LN>(s, i);
        if (n < p.states) h[i] = *p.first.at(at.batch, n, channel);
      }
    }
    const float* A = p.A.at(0, s * 4, channel);
#pragma unroll
    for (int i = 0; i < NS; ++i) {
      const int n = state_index<LN>(s, i);
      a[i] = next_rate(p, A, n < p.states) * (kBinary<P, K> ? kLn2 : 1.f);
      if (i % 4 == 3) A += (LN - 1) * 4 * p.A.time;
      if (Constant) {
        const bool present = n < p.states;
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
      load<4>(bc + kC + (j * LN + s) * 4, vc);
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
  // log2 of the steps from one saved state to the next.
  BDAM_DEVICE static int shift(const ForwardViews<T>& p) {
    return K == Case::constant ? kCudaTileShift : p.saved_shift;
  }
  // Saves the state before the chunk's step `first`, if it is one of those.
  BDAM_DEVICE void save(const ForwardViews<T>& p, const Place& at, int channel, int s, int first) const {
    if (K != Case::constant && first >> shift(p) << shift(p) != first) return;
    const int64_t row = at.batch * p.saved_rows + ((at.begin + first) >> shift(p));
    float* q = p.checkpoint + ((row * (NP / 4) + s) * p.channels + channel) * 4;
#pragma unroll
    for (int j = 0; j < NS / 4; ++j) {
      const float v[4] = {h[4 * j], h[4 * j + 1], h[4 * j + 2], h[4 * j + 3]};
      store<4>(q + static_cast<int64_t>(j * LN) * p.channels * 4, v);
    }
  }
  // In the arrays of chunks
  BDAM_DEVICE static int64_t row(const ForwardViews<T>& p, const Place& at, int channel) {
    return (static_cast<int64_t>(at.chunk) * p.batch + at.batch) * p.channels + channel;
  }
  // After the chunk's last step.
  BDAM_DEVICE void finish(const ForwardViews<T>& p, const Place& at, int channel, int s, float sum, bool kept) const {
    if (P != Pass::scan) {
      const float unit = kBinary<P, K> && P == Pass::state ? kLn2 : 1.f;
#pragma unroll
      for (int j = 0; j < NS / 4; ++j) {
        const float v[4] = {h[4 * j] * unit, h[4 * j + 1] * unit, h[4 * j + 2] * unit, h[4 * j + 3] * unit};
        store<4>(p.chunk_state + row(p, at, channel) * NP + (j * LN + s) * 4, v);
      }
      if (s == 0) {
        float* const decay = p.chunk_decay + row(p, at, channel) * 2;
        decay[0] = sum * (kBinary<P, K> ? kLn2 : 1.f), decay[1] = kept ? 1.f : 0.f;
      }
    } else if (p.last.data && at.begin + at.steps == p.length) {
#pragma unroll
      for (int i = 0; i < NS; ++i) {
        const int n = state_index<LN>(s, i);
        if (n < p.states) *p.last.at(at.batch, n, channel) = h[i];
      }
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
    if (kBinary<P, K>) bias *= kLog2e;
  }
  BDAM_DEVICE float step_size(const ForwardViews<T>& p, float delta) const {
    if (kBinary<P, K>) return binary_softplus(fmaf(delta, kLog2e, bias));
    const float x = delta + bias, dt = softplus(x);
    return K == Case::usual || p.softplus ? dt : x;
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

// u, delta and z of a warp's channels over a tile of steps, in shared memory: [u, delta, z][step][pitch]. A warp reads
// and writes its own part only. The outputs take u's place.
template <class T, int LN, Access A, Pass P>
struct Stage {
  static constexpr int kTile = kCudaTile, kChannels = 32 / LN, kTensors = 3;
  static constexpr int kPitch = kChannels + 16 / sizeof(T);  // neither way of writing it meets a bank twice
  static constexpr int kPlane = kTile * kPitch, kBytes = kTensors * kPlane * static_cast<int>(sizeof(T));
  // elements of one vector and vectors of one lane
  static constexpr int kRun = A == Access::scalar ? 1 : kChannels;
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
    if (A == Access::scalar && p.time_first) {
      step = lane % kTile, own = lane / kTile, steps_between = 0, channels_between = 32 / kTile;
    } else {
      constexpr int kVectors = kChannels / V;  // of a step
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
    return stage + (step + i * steps_between) * kPitch + own + i * channels_between;
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
    return stage + tensor * kPlane + t * kPitch + c;
  }
  BDAM_DEVICE static T* result(T* stage, int t, int c) { return const_cast<T*>(at(stage, 0, t, c)); }
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

// The same for rows of adjacent steps: [u, delta, z][channel][Rows::kElements].
template <class T, int LN, Pass P>
struct RowStage {
  using Row = Rows<T>;
  static constexpr int kTile = kCudaTile, kChannels = 32 / LN, kTensors = 3, kPlane = kChannels * Row::kElements;
  static constexpr int kBytes = kTensors * kPlane * static_cast<int>(sizeof(T));
  static constexpr int kApart = 32 / kTile;  // channels between two outputs of a lane

  static constexpr int kRead = P == Pass::state ? 2 : kTensors;

  const T* source[kRead];  // the words
  T* target;
  int64_t target_channel;
  int own, count, direction, place;  // direction in memory, of processed steps

  BDAM_DEVICE RowStage(const ForwardViews<T>& p, const Place& at, int64_t begin, int walk) {
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * kChannels;
    own = lane / LN;
    count = at.count - first;
    direction = p.u.time > 0 ? walk : -walk;
    const View<const T>* const views[] = {&p.u, &p.delta, &p.z};
#pragma unroll
    for (int q = 0; q < kRead; ++q)
      source[q] = views[q]->at(at.batch, begin, at.first) + (first + own) * static_cast<int>(views[q]->channel);
    place = Row::place(source[0], direction);
#pragma unroll
    for (int q = 0; q < kRead; ++q) source[q] -= place;
    target_channel = kApart * p.out.channel;
    if (P == Pass::scan)
      target = p.out.at(at.batch, begin, at.first + first + lane / kTile) + direction * (lane % kTile);
  }
  BDAM_DEVICE void fetch(T* stage, int first, int length) {
    if (threadIdx.x % LN == 0 && own < count)
      Row::copy(stage + own * Row::kElements, kPlane, source, place, direction, length - first,
                Row::inside(first, length));
#pragma unroll
    for (int q = 0; q < kRead; ++q) source[q] += direction * kTile;
  }
  BDAM_DEVICE const T* at(const T* stage, int tensor, int t, int) const {
    return stage + (own * Row::kElements + place + direction * t) + tensor * kPlane;
  }
  // Outputs lie from the end on that leaves the later steps of u as they are.
  BDAM_DEVICE T* result(T* stage, int t, int c) const {
    return stage + c * Row::kElements + (direction > 0 ? 0 : Row::kElements - 1) + direction * t;
  }
  // Lanes go along the steps: words of 16 bytes would hold steps of two tiles.
  BDAM_DEVICE void flush(T* stage, int first, int length) {
    const int lane = threadIdx.x % 32;
    const T* const from = result(stage, lane % kTile, lane / kTile);
    T* to = target;
    if (count >= kChannels && first + kTile <= length) {
#pragma unroll
      for (int i = 0; i < kChannels / kApart; ++i, to += target_channel) *to = from[i * kApart * Row::kElements];
    } else if (first + lane % kTile < length) {
      prefer_branch();
#pragma unroll 1
      for (int c = lane / kTile, i = 0; c < count && c < kChannels; c += kApart, ++i, to += target_channel)
        *to = from[i * kApart * Row::kElements];
    }
    target += direction * kTile;
  }
};
template <class T, int LN, Access A, Pass P>
using StageOf = std::conditional_t<A == Access::rows, RowStage<T, LN, P>, Stage<T, LN, A, P>>;

template <class T, int NS, int LN, Access A>
constexpr size_t forward_shared_bytes() {
  return 2 * 2 * kCudaTile * NS * LN * sizeof(float) + 2 * (kScanThreads / 32) * StageOf<T, LN, A, Pass::scan>::kBytes;
}

template <class T, int NS, int LN, Access A, Pass P, Case K>
__global__ void __launch_bounds__(kScanThreads, P == Pass::scan && K != Case::constant ? 6 : 4)
    scan_forward(ForwardViews<T> p) {
  using States = Lane<T, NS, LN, P, K>;
  constexpr int NP = NS * LN, kTile = kCudaTile, kUnroll = P == Pass::state ? kTile : 4, kRow = States::kRow;
  constexpr bool Packed = K != Case::usual;
  using Tensors = StageOf<T, LN, A, P>;
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
  States lane(p, at, channel, s);
  Tensors tensors(p, at, begin, direction);
  Projections<T, NP, std::conditional_t<A == Access::scalar, int64_t, int>, States::kRead> projections(
      p, at, begin, direction, length);
  tensors.fetch(stages, 0, length);
  projections.template fetch<K>(p, at, begin, direction, 0, 0);
  projections.stash(shared);
  float sum = 0.f;
  bool kept = true;
#pragma unroll 1
  for (int first = 0, side = 0; first < length; first += kTile, side ^= 1) {
    if (P == Pass::scan && p.checkpoint && live) lane.save(p, at, channel, s, first);
    cp_async_wait();
    __syncthreads();
    T* const stage = stages + side * (Tensors::kTensors * Tensors::kPlane);
    tensors.fetch(stages + (side ^ 1) * (Tensors::kTensors * Tensors::kPlane), first + kTile, length);
    projections.move_on();
    projections.template fetch<K>(p, at, begin, direction, first + kTile, 0);
#pragma unroll 1
    for (int t0 = 0; t0 < kTile && (P == Pass::state || first + t0 < length); t0 += kUnroll) {
      const float* bc = shared + (side * kTile + t0) * kRow;
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int t = t0 + i, l = first + t;
        const float uu = to_f(*tensors.at(stage, 0, t, own));
        const float zz = P == Pass::state ? 0.f : to_f(*tensors.at(stage, 2, t, own));
        float dt = constants.step_size(p, to_f(*tensors.at(stage, 1, t, own))), xu = constants.input(p, dt, uu, zz);
        bool present = P == Pass::state || l < length;  // the last chunk, which may be shorter, is not brought
        int8_t kind = kStep;
        if (Packed && present && p.steps) kind = p.steps[at.batch * p.length + begin + direction * l];
        if (Packed) present = present && kind != kPadding;
        if (!present) dt = xu = 0.f;  // the state stays as it is
        if (Packed && kind == kReset) {
          if (P != Pass::carry) lane.clear();
          kept = false;
        }
        float y = lane.advance(p, bc + i * kRow, s, dt, xu);
        if (Packed && P == Pass::carry && kind == kReset) lane.clear();
        if (P == Pass::scan) {
          y = constants.output(p, sum_lanes<LN>(y), uu, zz);
          if (Packed && !present) y = 0.f;
          if (LN > 1) __syncwarp();  // every thread of the channel has read u
          if (s == 0) *tensors.result(stage, t, own) = from_f<T>(y);
        } else {
          sum += dt;
        }
      }
    }
    projections.stash(shared + (side ^ 1) * kTile * kRow);
    if (P == Pass::scan) {
      __syncwarp();
      tensors.flush(stage, first, length);
    }
  }
  if (live) lane.finish(p, at, channel, s, sum, kept);
}

}  // namespace bdam_fast::device
