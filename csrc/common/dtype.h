// Element types of the tensors that the kernels read and write. Arithmetic is in float, or in double when the
// activations are double; 16-bit types exist in memory only.
#pragma once
#include <cstdint>

namespace bdam_fast {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
enum class Dtype : int { f32, bf16, f16, f64 };

// Runs the statement with S bound to the element type. A macro and no lambda: a lambda inside a template would not
// inherit the instruction set of the region that it stands in.
#define BDAM_SWITCH_DTYPE(dtype, S, ...) \
  switch (dtype) {                       \
    case ::bdam_fast::Dtype::f32: {      \
      using S = float;                   \
      __VA_ARGS__;                       \
      break;                             \
    }                                    \
    case ::bdam_fast::Dtype::bf16: {     \
      using S = ::bdam_fast::BFloat16;   \
      __VA_ARGS__;                       \
      break;                             \
    }                                    \
    case ::bdam_fast::Dtype::f16: {      \
      using S = ::bdam_fast::Float16;    \
      __VA_ARGS__;                       \
      break;                             \
    }                                    \
    case ::bdam_fast::Dtype::f64: {      \
      using S = double;                  \
      __VA_ARGS__;                       \
      break;                             \
    }                                    \
  }

// A tensor seen as (batch, time, channel): a base pointer and strides in elements. A negative time stride walks
// backwards, so that a reversed scan is an ordinary one for everything behind this view.
struct Stream {
  char* data = nullptr;
  int64_t batch = 0, time = 0, channel = 0;
  Dtype dtype = Dtype::f32;

  explicit operator bool() const { return data != nullptr; }
  int64_t element_size() const { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }
  // The same view with time running from the last of `length` steps to the first.
  Stream reversed(int64_t length) const {
    Stream s = *this;
    s.data += (length - 1) * time * element_size();
    s.time = -time;
    return s;
  }
  // The same view starting at one batch item, step and channel.
  Stream at(int64_t b, int64_t t, int64_t d) const {
    Stream s = *this;
    s.data += (b * batch + t * time + d * channel) * element_size();
    return s;
  }
};

}  // namespace bdam_fast
