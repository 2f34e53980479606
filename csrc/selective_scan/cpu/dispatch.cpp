// Runs the selective scan's tasks on PyTorch's own threads. The division into tasks, and the order of every sum, depend
// on shapes only, so that the bits do not depend on the number of threads.
#include "selective_scan/selective_scan.h"

#include <torch/csrc/stable/ops.h>

#define BDAM_ISA_SOURCE "selective_scan/cpu/kernel.inl"
#include "common/foreach_isa.h"

namespace bdam_fast {

namespace {
// Tasks of less than about 10 us (32k state updates) are not worth waking a thread for.
int64_t tasks_per_thread(const ScanParams& p) {
  const int64_t work = std::max<int64_t>(1, p.units_per_task * kScanUnit * p.length * p.states);
  return std::max<int64_t>(1, 32768 / work);
}

template <class F>
void parallel(int64_t tasks, int64_t grain, const F& f) {
  if (tasks <= grain) {  // waking nobody saves 2 us
    for (int64_t i = 0; i < tasks; ++i) f(i);
    return;
  }
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

void reduce_batch(const ScanParams& p, const void* sums, const Stream& dst, int64_t rows) {
  const int64_t work = std::max<int64_t>(1, p.batch * rows * kScanUnit);
  parallel(p.units(), std::max<int64_t>(1, 65536 / work),
           [&](int64_t i) { BDAM_FOR_ISA(p.is_double, scan_reduce_batch, p, sums, dst, rows, i); });
}
void reduce_projection(const ScanParams& p, const void* sums, const Stream& dst, int64_t groups, int64_t group_stride) {
  parallel(p.batch * groups * p.tiles(), 4, [&](int64_t i) {
    BDAM_FOR_ISA(p.is_double, scan_reduce_projection, p, sums, dst, groups, group_stride, i);
  });
}
}  // namespace

void selective_scan_forward_cpu(const ScanParams& p) {
  parallel(p.tasks(), tasks_per_thread(p), [&](int64_t i) { BDAM_FOR_ISA(p.is_double, scan_forward_task, p, i); });
}

void selective_scan_backward_cpu(const ScanParams& p) {
  parallel(p.tasks(), tasks_per_thread(p), [&](int64_t i) { BDAM_FOR_ISA(p.is_double, scan_backward_task, p, i); });
  if (!p.single()) reduce_batch(p, p.sum_A, p.dA, p.states);
  if (p.dskip) reduce_batch(p, p.sum_skip, p.dskip, 1);
  if (p.dbias) reduce_batch(p, p.sum_bias, p.dbias, 1);
  if (p.B_constant)
    reduce_batch(p, p.sum_B, p.dB, p.states);
  else
    reduce_projection(p, p.sum_B, p.dB, p.B_groups, p.dB_group);
  if (p.C_constant)
    reduce_batch(p, p.sum_C, p.dC, p.states);
  else
    reduce_projection(p, p.sum_C, p.dC, p.C_groups, p.dC_group);
}

}  // namespace bdam_fast
