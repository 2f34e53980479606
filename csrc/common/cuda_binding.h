// Shared by the bindings of the CUDA kernels (cuda/binding.cpp). They register `STABLE_TORCH_LIBRARY_IMPL(BDAM_OPS,
// BDAM_KEY, m)`: the operators that the CPU's file has defined, or, in the tests' build that runs the kernels on the
// CPU, those of another namespace.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "common/checks.h"

#ifndef BDAM_KEY
#define BDAM_KEY CUDA
#endif

namespace bdam_fast {

#ifdef BDAM_CUDA_HOST
struct CudaScope {
  explicit CudaScope(const Tensor&) {}
  void* stream() const { return nullptr; }
};
#else
// Makes the device of a tensor the current one while it lives; stream() is PyTorch's current stream there, a
// cudaStream_t.
class CudaScope {
 public:
  explicit CudaScope(const Tensor& t) : device_(t.get_device_index()), guard_(device_) {}
  void* stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    return stream;
  }

 private:
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
};
#endif

// The dispatcher takes a call to the CUDA kernel as soon as one tensor lies on a GPU: the others are checked.
inline void check_device(const char* op, const char* name, const Tensor& t, const Tensor& first) {
  const Device a = device_of(t), b = device_of(first);
  STD_TORCH_CHECK(a.type == b.type && a.index == b.index, op, ": ", name,
                  " must be on the device of the first argument");
}
inline void check_device(const char* op, const char* name, const OptionalTensor& t, const Tensor& first) {
  if (t) check_device(op, name, *t, first);
}

// The tensor itself where it has the type already, else a copy. Integers are refused as everywhere else.
inline Tensor converted(const char* op, const char* name, const Tensor& t, ScalarType dtype) {
  if (t.scalar_type() == dtype) return t;
  dtype_of(op, name, t);
  return torch::stable::to(t, dtype);
}
inline OptionalTensor converted(const char* op, const char* name, const OptionalTensor& t, ScalarType dtype) {
  return t ? OptionalTensor(converted(op, name, *t, dtype)) : t;
}

}  // namespace bdam_fast
