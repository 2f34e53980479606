// Sums of the backward's partial results.
#pragma once
#include "selective_scan/cuda/device.cuh"

namespace bdam_fast::device {

// One sum: to[outer][row][column] = sum over `middle` of from[outer][middle][row][pitch], in the order of the index.
struct SumJob {
  const float* from;
  char* to;
  int64_t outer, middle, rows, columns, pitch;
  int64_t groups;                                                 // outer = batch item and group
  int64_t batch_stride, group_stride, row_stride, column_stride;  // of `to`, in elements
  Dtype dtype;
};
constexpr int kMostSums = 5;
struct SumJobs {
  SumJob job[kMostSums];
};

static __global__ void sum_partials(SumJobs jobs) {
  const SumJob& j = jobs.job[blockIdx.y];
  const int64_t count = j.outer * j.rows * j.columns;
  for (int64_t e = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; e < count;
       e += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t column = e % j.columns, row = e / j.columns % j.rows, outer = e / j.columns / j.rows;
    const float* from = j.from + (outer * j.middle * j.rows + row) * j.pitch + column;
    float sum = 0.f;
    for (int64_t m = 0; m < j.middle; ++m) sum += from[m * j.rows * j.pitch];
    const int64_t place = outer / j.groups * j.batch_stride + outer % j.groups * j.group_stride + row * j.row_stride +
                          column * j.column_stride;
    switch (j.dtype) {
      case Dtype::f32:
        reinterpret_cast<float*>(j.to)[place] = sum;
        break;
      case Dtype::bf16:
        reinterpret_cast<__nv_bfloat16*>(j.to)[place] = from_f<__nv_bfloat16>(sum);
        break;
      case Dtype::f16:
        reinterpret_cast<__half*>(j.to)[place] = from_f<__half>(sum);
        break;
      case Dtype::f64:
        reinterpret_cast<double*>(j.to)[place] = sum;
        break;
    }
  }
}

}  // namespace bdam_fast::device
