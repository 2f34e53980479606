// Checks and views of tensors at the boundary to the dispatcher. The public functions check everything with Python's
// own exception types; these checks guard direct calls of the raw operators, whose bad shapes would otherwise be bad
// addresses.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "common/runtime.h"

#ifndef BDAM_OPS
#error "BDAM_OPS must be the namespace of the operators, that of bdam_fast/_namespace.py; setup.py defines it"
#endif

namespace bdam_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class Sizes>
inline std::string shape_text(const Sizes& sizes) {
  std::string text = "(";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + (sizes.size() == 1 ? ",)" : ")");
}

inline void check_shape(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> expected) {
  const auto sizes = t.sizes();
  bool same = sizes.size() == expected.size();
  for (size_t i = 0; same && i < expected.size(); ++i) same = sizes[i] == expected.begin()[i];
  STD_TORCH_CHECK(same, op, ": ", name, " must have shape ", shape_text(std::vector<int64_t>(expected)), ", got ",
                  shape_text(sizes));
}

inline Dtype dtype_of(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Half:
      return Dtype::f16;
    case ScalarType::Double:
      return Dtype::f64;
    default:
      STD_TORCH_CHECK(false, op, ": ", name, " must be float32, bfloat16, float16 or float64");
  }
  return Dtype::f32;
}

// A tensor as (batch, time, channel); a dimension of -1 has stride 0.
inline Stream stream_of(const char* op, const char* name, const Tensor& t, int batch, int time, int channel) {
  Stream s;
  s.dtype = dtype_of(op, name, t);
  s.data = static_cast<char*>(t.data_ptr());
  s.batch = batch < 0 ? 0 : t.stride(batch);
  s.time = time < 0 ? 0 : t.stride(time);
  s.channel = channel < 0 ? 0 : t.stride(channel);
  return s;
}

struct Device {
  int32_t type = aoti_torch_device_type_cpu(), index = 0;
};
inline Device device_of(const Tensor& t) {
  Device d;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &d.type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &d.index));
  return d;
}

// The emulation of CUDA, whose tensors lie on the CPU, takes the way of a GPU's tensors everywhere.
inline bool is_cpu(const Tensor& t) {
#ifdef BDAM_CUDA_HOST
  (void)t;
  return false;
#else
  return t.is_cpu();
#endif
}

// While poison() is on, memory starts as NaN; integers, which have none, as -1.
inline Tensor poisoned(Tensor t) {
  if (!poison() || t.numel() == 0) return t;
  if (is_cpu(t)) {
    std::memset(t.data_ptr(), 0xff, t.numel() * t.element_size());
    return t;
  }
  const ScalarType dtype = t.scalar_type();
  const bool integer = dtype == ScalarType::Char || dtype == ScalarType::Int || dtype == ScalarType::Long;
  torch::stable::fill_(t, integer ? -1.0 : std::numeric_limits<double>::quiet_NaN());
  return t;
}

// Memory for a result or a workspace. The shim's own call: going through the dispatcher by name costs a microsecond
// each.
inline Tensor empty_strided(const int64_t* sizes, const int64_t* strides, size_t dim, ScalarType dtype,
                            const Device& device = {}) {
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes, strides, type, device.type, device.index, &handle));
  return poisoned(Tensor(handle));
}
// On the CPU, or on the device that is given.
inline Tensor allocate(std::initializer_list<int64_t> sizes, ScalarType dtype, const Device& device = {}) {
  int64_t strides[8], step = 1;
  for (size_t i = sizes.size(); i-- > 0; step *= std::max<int64_t>(sizes.begin()[i], 1)) strides[i] = step;
  return empty_strided(sizes.begin(), strides, sizes.size(), dtype, device);
}
// True if the elements fill their memory without gaps or overlaps, in any order of dimensions.
inline bool is_dense(const Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t expected = 1;
  for (size_t placed = 0, i = 0; placed < sizes.size(); ++placed) {
    if (sizes[placed] < 2) continue;  // its stride does not matter
    for (i = 0; i < sizes.size() && (sizes[i] < 2 || strides[i] != expected); ++i) {
    }
    if (i == sizes.size()) return false;
    expected *= sizes[i];
  }
  return true;
}
// Refuses a tensor to be written in which two elements share memory, as PyTorch's in-place functions do.
inline void check_writable(const char* op, const char* name, const Tensor& t) {
  for (int64_t i = 0; i < t.dim(); ++i)
    STD_TORCH_CHECK(t.size(i) < 2 || t.stride(i) != 0, op, ": ", name,
                    " is updated in place and must not be expanded, got strides ", shape_text(t.strides()));
}
// torch.empty_like: the memory order of `t`, whatever it is, on its device.
inline Tensor allocate_like(const Tensor& t) {
  if (t.numel() > 0 && is_dense(t))
    return empty_strided(t.sizes().data(), t.strides().data(), t.dim(), t.scalar_type(), device_of(t));
  return poisoned(torch::stable::empty_like(t));
}

// float32 for everything but float64: the type in which states are kept and sums are formed.
inline ScalarType accumulate_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace bdam_fast
