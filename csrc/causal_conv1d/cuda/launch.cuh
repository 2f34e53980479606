// Which instance of a kernel a call takes, and its grid; the forward's and the backward's are the same.
#pragma once
#include "causal_conv1d/cuda/forward.cuh"

namespace bdam_fast::causal_conv1d {

template <int N>
using Int = std::integral_constant<int, N>;

template <class F>
void for_row_width(int width, const F& f) {
  if (width == 2) return f(Int<2>{});
  if (width == 3) return f(Int<3>{});
  f(Int<4>{});
}

// f(channels a thread, width, packed). Vectors have every width of their own but for packed sequences, which
// have 4 and any; single channels take the kernel for any width.
template <class F>
void for_channels_kernel(const ConvParams& p, const ConvPlan& plan, const F& f) {
  if (p.seq_idx != nullptr) {
    if (plan.vector == 1) return f(Int<1>{}, Int<kGeneric>{}, std::true_type{});
    if (p.width == 4) return f(Int<kVector>{}, Int<4>{}, std::true_type{});
    return f(Int<kVector>{}, Int<kGeneric>{}, std::true_type{});
  }
  if (plan.vector == 1) return f(Int<1>{}, Int<kGeneric>{}, std::false_type{});
  switch (p.width) {
    case 2:
      return f(Int<kVector>{}, Int<2>{}, std::false_type{});
    case 3:
      return f(Int<kVector>{}, Int<3>{}, std::false_type{});
    case 4:
      return f(Int<kVector>{}, Int<4>{}, std::false_type{});
    default:
      return f(Int<kVector>{}, Int<kGeneric>{}, std::false_type{});
  }
}

inline unsigned grid_of(int64_t blocks) {
  if (blocks > 0x7fffffff) throw std::runtime_error("causal_conv1d: the tensor needs more blocks than a grid has");
  return static_cast<unsigned>(blocks);
}
inline unsigned channel_blocks(const ConvParams& p, const ConvPlan& plan) {
  return grid_of(p.B * plan.partials * ceil_div(p.D, 32 * plan.vector));
}
inline unsigned row_blocks(const ConvParams& p, const ConvPlan& plan) {
  return grid_of(p.B * plan.runs * ceil_div(p.D, kThreads / plan.lanes));
}

}  // namespace bdam_fast::causal_conv1d
