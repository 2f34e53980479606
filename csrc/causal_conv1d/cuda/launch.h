// The division of a causal convolution into CUDA blocks, by shapes and addresses alone: every sum has one order on
// every GPU. No torch and no CUDA in here.
#pragma once
#include <algorithm>
#include <cstdint>

#include "causal_conv1d/causal_conv1d.h"

namespace bdam_fast::causal_conv1d {

constexpr int kVector = 4;            // channels of a thread, where channels are adjacent
constexpr int kThreads = 128;         // of a block
constexpr int kRunsPerBlock = 4;      // channels kernels: 32 threads side by side, this many runs
constexpr int kMostLanes = 8;         // rows kernels: 8 x 16 bytes are one cache line
constexpr int kRowMaxTaps = 4;        // rows kernels
constexpr int64_t kWanted = 1 << 17;  // threads: half of those an H100 holds, more than an A100 needs

struct ConvPlan {
  bool rows = false;     // groups of threads along the steps of one channel; else threads along channels
  int vector = 1;        // channels kernels: channels a thread
  int lanes = 1;         // rows kernels: threads a group
  int run = 1;           // steps that a thread takes; rows kernels: 16-byte vectors that a group takes
  int64_t runs = 1;      // cover L
  int64_t partials = 1;  // sums of the taps' gradients that one batch item leaves
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Elements before step 0 in the 16-byte vector that holds it, whose slots are counted in processing order.
inline int empty_slots(int64_t address_of_first, int64_t element_size, bool reverse) {
  const int in_vector = static_cast<int>(16 / element_size);
  const int slot = static_cast<int>(address_of_first / element_size % in_vector);
  return reverse ? in_vector - 1 - slot : slot;
}

inline bool is_row(const Stream& s, bool reverse) { return !s || s.time == (reverse ? -1 : 1); }
// kVector adjacent channels of every batch item and step start at a multiple of their size.
inline bool has_vectors(const Stream& s, const ConvParams& p) {
  const bool steps = p.L < 2 || s.time % kVector == 0, items = p.B < 2 || s.batch % kVector == 0;
  const bool start = reinterpret_cast<uintptr_t>(s.data) % (kVector * s.element_size()) == 0;
  return !s || (s.channel == 1 && steps && items && start);
}

inline ConvPlan plan_rows(const ConvParams& p) {
  ConvPlan plan;
  plan.rows = true;
  const int64_t size = p.x.element_size(), in_vector = 16 / size;
  const auto address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(p.x.data));
  const bool alike = p.x.batch % in_vector == 0 && p.x.channel % in_vector == 0;
  const int64_t vectors = ceil_div(p.L + (alike ? empty_slots(address, size, p.reverse) : in_vector - 1), in_vector);
  while (plan.lanes < kMostLanes && plan.lanes < vectors) plan.lanes *= 2;
  const int64_t rounds = ceil_div(vectors, plan.lanes);
  const int64_t wanted = kWanted / std::max<int64_t>(1, p.B * p.D * plan.lanes);
  plan.runs = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, rounds / 4));
  plan.run = static_cast<int>(ceil_div(rounds, plan.runs) * plan.lanes);
  plan.runs = ceil_div(vectors, plan.run);
  plan.partials = plan.runs;
  return plan;
}

// A run is 16 to 128 steps (32 or more backward, which reads the width - 1 steps at both of its ends twice).
inline ConvPlan plan_channels(const ConvParams& p) {
  ConvPlan plan;
  bool vectors = true;
  for (const Stream* s : {&p.x, &p.out, &p.dout, &p.dx}) vectors = vectors && has_vectors(*s, p);
  plan.vector = vectors && p.D % kVector == 0 ? kVector : 1;
  const int64_t threads = p.B * ceil_div(p.D, plan.vector), least = p.dout ? 32 : 16;
  plan.run = static_cast<int>(std::clamp<int64_t>(ceil_div(p.L * threads / kWanted, 8) * 8, least, 128));
  plan.runs = std::max<int64_t>(1, ceil_div(p.L, plan.run));  // one where L = 0: it hands the states on
  plan.partials = ceil_div(plan.runs, kRunsPerBlock);
  return plan;
}

// Every stream of the call is set, p.dout in a backward.
inline ConvPlan plan_of(const ConvParams& p) {
  const bool r = p.reverse;
  const bool rows = is_row(p.x, r) && is_row(p.out, r) && is_row(p.dout, r) && is_row(p.dx, r);
  const bool suits = p.seq_idx == nullptr && p.L >= 2 && p.width >= 2 && p.width <= kRowMaxTaps;
  return rows && suits ? plan_rows(p) : plan_channels(p);
}

// `stream` is a cudaStream_t. States, p.initial, p.dfinal and p.dinitial among them, are float32; p.partial holds [B *
// plan.partials][width + 1][D] floats.
void causal_conv1d_forward_cuda(const ConvParams& p, const ConvPlan& plan, void* stream);
void causal_conv1d_backward_cuda(const ConvParams& p, const ConvPlan& plan, void* stream);

}  // namespace bdam_fast::causal_conv1d
