// How the backward of the selective scan reads and writes rows of adjacent steps (Rows). A thread brings and uses the
// inputs of one channel; the results change hands, so that lanes write along the steps of a tile.
#pragma once
#include "selective_scan/cuda/backward_parts.cuh"

namespace bdam_fast::device {

template <class T, class Layout>
struct BackwardRows {
  static constexpr int V = kHalf, kTile = kCudaTile;
  static constexpr int kApart = 32 / kTile, kTurns = 32 / kApart;  // channels between two results of a lane

  const BackwardViews<T>& p;
  float* const shared;
  const Place& at;
  const int direction, place;

  BDAM_DEVICE BackwardRows(const BackwardViews<T>& views, float* memory, const Place& block)
      : p(views),
        shared(memory),
        at(block),
        direction(views.u.time > 0 ? 1 : -1),
        place(Rows<T>::place(static_cast<const T*>(own_pointers<Layout>(memory, 0).first), direction)) {
    static_assert(Layout::kChannels == Layout::kThreads && Layout::kEach == 1);
  }
  BDAM_DEVICE T* own() const {
    return reinterpret_cast<T*>(shared + Layout::raw) + static_cast<int>(threadIdx.x) * Rows<T>::kElements;
  }
  BDAM_DEVICE void fetch(int first) const {
    const TwoPointers x = own_pointers<Layout>(shared, 0), y = own_pointers<Layout>(shared, 1);
    const T* const words[] = {later(x.first, p.u, first) - place, later(x.second, p.delta, first) - place,
                              later(y.first, p.z, first) - place, later(y.second, p.dout, first) - place};
    Rows<T>::copy(own(), Layout::kRaw, words, place, direction, at.steps - first, Rows<T>::inside(first, at.steps));
  }
  // The steps of a half tile
  BDAM_DEVICE void read(int half, float (&u)[V], float (&x)[V], float (&z)[V], float (&go)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const T* const from = own() + (place + direction * (half * V + v));
      u[v] = to_f(from[0]), x[v] = to_f(from[Layout::kRaw]);
      z[v] = to_f(from[2 * Layout::kRaw]), go[v] = to_f(from[3 * Layout::kRaw]);
    }
  }

  BDAM_DEVICE static int result_step() { return threadIdx.x % kTile; }
  BDAM_DEVICE static int result_channel() { return threadIdx.x / 32 * 32 + threadIdx.x % 32 / kTile; }
  // A warp's results of a half tile, [channel][step], in the place of what the warp kept
  BDAM_DEVICE T* results(int half, int which) const {
    return reinterpret_cast<T*>(shared + Layout::kept + (half * Layout::kKept + which) * Layout::kThreads * V +
                                threadIdx.x / 32 * 32 * V);
  }
  BDAM_DEVICE void put(int half, int which, const float (&x)[V]) const {
    store(results(half, which) + threadIdx.x % 32 * V, x);
  }
  BDAM_DEVICE void write(int which, T* to, const View<T>& v, int first) const {
    const T* const from = results(result_step() / V, which) + threadIdx.x % 32 / kTile * V + result_step() % V;
    const int64_t stride = kApart * v.channel;
    if (first + kTile <= at.steps && at.count >= Layout::kChannels) {
#pragma unroll
      for (int i = 0; i < kTurns; ++i, to += stride) *to = from[i * kApart * V];
    } else if (first + result_step() < at.steps) {
      prefer_branch();
#pragma unroll 1
      for (int i = 0; i < kTurns && result_channel() + i * kApart < at.count; ++i, to += stride)
        *to = from[i * kApart * V];
    }
  }
  // Writes the results of the tile from step `first` on.
  BDAM_DEVICE void leave(int first, bool gated) const {
    const TwoPointers to = own_pointers<Layout>(shared, 2);
    __syncwarp();
    write(0, later(to.first, p.du, first), p.du, first);
    write(1, later(to.second, p.ddelta, first), p.ddelta, first);
    if (gated) write(2, later(last_pointer<Layout>(shared), p.dz, first), p.dz, first);
    __syncwarp();  // before the next tile takes their place
  }
};

}  // namespace bdam_fast::device
