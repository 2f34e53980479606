// selective_scan_forward and selective_scan_backward: schema, checks, allocation and the CPU kernels' registration.
#include "selective_scan/selective_scan.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/checks.h"
#include "common/runtime.h"
#include "selective_scan/call.h"

namespace bdam_fast {

namespace {
using namespace selective_scan;
CallCounter forward_calls("selective_scan.cpu.forward");
CallCounter backward_calls("selective_scan.cpu.backward");

// Channels go to tasks in units of 16: few enough units for `tasks`, at most 16, at least 2 (one alone costs 13.6 ms in
// place of 9.4: B and C are converted, dB and dC stored, once per task). Wide tasks read whole pieces of a row, where
// each row of two units is a page of its own: 2048 steps of 1536 channels forward in 8.4 ms with 2 units, 6.6 with 12,
// forward and backward in 37 with 2, 30 with 12 and 4 (Intel Xeon, two threads).
int64_t units_per_task(const ScanParams& p, int64_t tasks) {
  return std::max<int64_t>(1, std::min(p.group_units(), std::clamp<int64_t>(p.batch * p.units() / tasks, 2, 16)));
}
// Nothing is summed over channels: the threads may decide.
int64_t forward_tasks() { return 4 * static_cast<int64_t>(torch::stable::get_num_threads()); }
// dB and dC are summed over the channels of a task, then over tasks: the same ones for any number of threads.
constexpr int64_t kBackwardTasks = 24;

ScanParams cpu_parameters(const Arguments& x, bool softplus, bool reverse, int64_t tasks) {
  ScanParams p = parameters(x, softplus, reverse);
  p.units_per_task = units_per_task(p, tasks);
  return p;
}

// seq_idx as kinds of steps in processed order. A padded step (negative) is skipped; a step whose index differs from
// that of the step processed before it starts from a zero state.
std::vector<int8_t> steps_of(const OptionalTensor& seq_idx, const ScanParams& p, bool reverse) {
  if (!seq_idx) return {};
  check_seq_idx(*seq_idx, p);
  const int32_t* data = static_cast<const int32_t*>(seq_idx->data_ptr());
  const int64_t batch_stride = seq_idx->stride(0), time_stride = seq_idx->stride(1);
  std::vector<int8_t> steps(p.batch * p.length);
  for (int64_t b = 0; b < p.batch; ++b) {
    bool started = false;
    int32_t current = 0;
    for (int64_t t = 0; t < p.length; ++t) {
      const int32_t index = data[b * batch_stride + (reverse ? p.length - 1 - t : t) * time_stride];
      int8_t& step = steps[b * p.length + t];
      if (index < 0) {
        step = kPadding;
        continue;
      }
      step = started && index != current ? kReset : kStep;
      started = true;
      current = index;
    }
  }
  return steps;
}

Tensor empty_checkpoint(const ScanParams& p, const Tensor& u, bool save) {
  if (!save) return allocate({0}, accumulate_type(u));
  Tensor checkpoint = allocate({p.batch, p.saved_size()}, accumulate_type(u));
  const int64_t item = p.saved_size() * checkpoint.element_size(), zeros = kScanUnit * checkpoint.element_size();
  char* data = static_cast<char*>(checkpoint.data_ptr());
  for (int64_t b = 1; b <= p.batch; ++b) std::memset(data + b * item - zeros, 0, zeros);
  return checkpoint;
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                           const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                                           const OptionalTensor& delta_bias, const OptionalTensor& initial_state,
                                           const OptionalTensor& seq_idx, bool delta_softplus, bool reverse,
                                           bool return_last_state, int64_t save_states) {
  forward_calls.increment();
  ScanParams p = cpu_parameters({u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx}, delta_softplus, reverse,
                                forward_tasks());
  const std::vector<int8_t> steps = steps_of(seq_idx, p, reverse);
  if (seq_idx) p.steps = steps.data();
  Tensor out = allocate_like(u);
  p.out = sequence("out", out, p, reverse);
  Tensor last = return_last_state ? allocate({p.batch, p.channels, p.states}, accumulate_type(u))
                                  : allocate({0}, accumulate_type(u));
  if (return_last_state) p.last = state("last_state", last, p);
  Tensor checkpoint = empty_checkpoint(p, u, save_states != 0);
  if (save_states) p.checkpoint = checkpoint.data_ptr();
  selective_scan_forward_cpu(p);
  return {out, last, checkpoint};
}

// One allocation for every partial sum; the tensor must outlive the kernel.
Tensor allocate_sums(ScanParams& p, const Arguments& x) {
  const int64_t rows = p.batch * p.units() * kScanUnit, ranges = p.batch * p.groups * p.ranges() * p.length;
  const int64_t sizes[] = {p.single() ? 0 : rows * p.states, x.D ? rows : 0, x.delta_bias ? rows : 0,
                           p.states * (p.B_constant ? rows : ranges), p.states * (p.C_constant ? rows : ranges)};
  void** const fields[] = {&p.sum_A, &p.sum_skip, &p.sum_bias, &p.sum_B, &p.sum_C};
  int64_t total = 0;
  for (int64_t size : sizes) total += (size + kScanUnit - 1) / kScanUnit * kScanUnit;
  Tensor sums = allocate({total}, accumulate_type(x.u));
  char* next = static_cast<char*>(sums.data_ptr());
  for (int i = 0; i < 5; ++i) {
    if (sizes[i] == 0) continue;
    *fields[i] = next;
    next += (sizes[i] + kScanUnit - 1) / kScanUnit * kScanUnit * sums.element_size();
  }
  return sums;
}

NineTensors backward(const Tensor& dout, const OptionalTensor& dlast, const Tensor& u, const Tensor& delta,
                     const Tensor& A, const Tensor& B, const Tensor& C, const OptionalTensor& D,
                     const OptionalTensor& z, const OptionalTensor& delta_bias, const OptionalTensor& initial_state,
                     const OptionalTensor& seq_idx, const Tensor& checkpoint, bool delta_softplus, bool reverse) {
  backward_calls.increment();
  const Arguments x{u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx};
  ScanParams p = cpu_parameters(x, delta_softplus, reverse, kBackwardTasks);
  const std::vector<int8_t> steps = steps_of(seq_idx, p, reverse);
  if (seq_idx) p.steps = steps.data();
  check_shape(kOp, "checkpoint", checkpoint, {p.batch, p.saved_size()});
  STD_TORCH_CHECK(checkpoint.scalar_type() == accumulate_type(u) && checkpoint.is_contiguous(), kOp,
                  ": checkpoint must come from the forward of the same call");
  p.checkpoint = checkpoint.data_ptr();
  p.dout = sequence("dout", dout, p, reverse);
  if (dlast) p.dlast = state("dlast_state", *dlast, p);

  const Gradients grads(x);
  grads.point(p, x, reverse);
  const Tensor sums = allocate_sums(p, x);
  if (p.single())
    std::memset(grads.dA.data_ptr(), 0,
                grads.dA.numel() * grads.dA.element_size());  // no exponential, nothing to add up
  selective_scan_backward_cpu(p);
  return grads.results();
}
}  // namespace

}  // namespace bdam_fast

STABLE_TORCH_LIBRARY_FRAGMENT(BDAM_OPS, m) {
  m.def(
      "selective_scan_forward(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? "
      "delta_bias, "
      "Tensor? initial_state, Tensor? seq_idx, bool delta_softplus, bool reverse, bool return_last_state, int "
      "save_states) "
      "-> (Tensor out, Tensor last_state, Tensor checkpoint)");
  m.def(
      "selective_scan_backward(Tensor dout, Tensor? dlast_state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
      "Tensor? D, Tensor? z, Tensor? delta_bias, Tensor? initial_state, Tensor? seq_idx, Tensor checkpoint, "
      "bool delta_softplus, bool reverse) -> (Tensor du, Tensor ddelta, Tensor dA, Tensor dB, Tensor dC, Tensor dD, "
      "Tensor dz, "
      "Tensor ddelta_bias, Tensor dinitial_state)");
}

STABLE_TORCH_LIBRARY_IMPL(BDAM_OPS, CPU, m) {
  m.impl("selective_scan_forward", TORCH_BOX(&bdam_fast::forward));
  m.impl("selective_scan_backward", TORCH_BOX(&bdam_fast::backward));
}
