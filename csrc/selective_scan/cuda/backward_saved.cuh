// The saved states in the backward of the selective scan: those that are brought, and those that are computed.
#pragma once
#include "selective_scan/cuda/backward_rows.cuh"

namespace bdam_fast::device {

// Begins to bring the state before the tile from step `first` on, which was saved, as were those before every Every-th
// tile.
template <int Every, class Walk>
BDAM_DEVICE void fetch_saved(const Walk& walk, int first) {
  using Layout = typename Walk::Layout;
  using Offset = typename Walk::Offset;
  constexpr int NC = Layout::kOwn, NS = Layout::kHeld;
  const int own = walk.at.count - walk.g * NC;
  const Offset channels = static_cast<Offset>(walk.p.channels);
  const float* const source = static_cast<const float*>(walk.base(Walk::kSaved)) +
                              (first / (Every * kCudaTile) * (Layout::NP / 4 * channels * 4) +
                               (walk.s * NS / 4 * channels + walk.g * NC) * 4 + walk.s * NS % 4);
#pragma unroll
  for (int c = 0; c < NC; ++c)
    if (own > (Layout::kAccess == Access::channel_vectors ? 0 : c)) cp_async<NS * 4>(walk.saved(c), source + c * 4);
}

// Computes the state before the tile from step `first` on from that before the tile before, whose inputs and state are
// there, and brings the inputs of the tile itself. Only in the usual case; the state's bits are those that a forward
// saves, but for the rounding of dt.
template <class Walk>
BDAM_DEVICE void replay(Walk& walk, int first) {
  using Layout = typename Walk::Layout;
  constexpr int V = Layout::kVector;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < Layout::kEach; ++i) {
      if (!walk.item_exists()) continue;
      const int t = walk.items.step_of(half, i), c = walk.items.channel_of(i);
      float u[V], x[V], bias[V], dt[V], slope[V], xu[V];
      if constexpr (Layout::kAccess == Access::rows) {
        float z[V], go[V];
        typename Walk::Row(walk.p, walk.shared, walk.at).read(half, u, x, z, go);
      } else {
        load<V>(walk.raw(half, i, 0), u);
        load<V>(walk.raw(half, i, 1), x);
      }
      walk.of_channels(1, c, bias);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        softplus(x[v] + bias[v], dt[v], slope[v]);
        xu[v] = c < walk.at.count ? dt[v] * u[v] : 0.f;  // the state of an absent channel stays 0
      }
      walk.items.put(walk.shared + Layout::dt, t, c, dt);
      walk.items.put(walk.shared + Layout::xu, t, c, xu);
    }
  walk.projections.stash(walk.shared + Layout::bc);
  __syncthreads();
  walk.fetch(first);
  walk.restore();
  float none[Layout::kOwn][Layout::kHeld];
#pragma unroll
  for (int t = 0; t < kCudaTile; ++t) walk.template advance<false>(t, none, none);
#pragma unroll
  for (int c = 0; c < Layout::kOwn; ++c) store<Layout::kHeld>(walk.saved(c), walk.h[c]);
  cp_async_wait();
  __syncthreads();
}

}  // namespace bdam_fast::device
