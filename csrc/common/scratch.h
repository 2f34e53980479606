// Working memory of one task: growing 64-byte aligned buffers, two for each thread, handed out front to back.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "common/runtime.h"

namespace bdam_fast {

namespace detail {
struct ThreadBuffer {
  char* data = nullptr;
  size_t size = 0;
  ~ThreadBuffer() { std::free(data); }
};
inline thread_local ThreadBuffer thread_buffers[2];
}  // namespace detail

// One live Scratch per thread and buffer: a second one would hand out the same memory.
class Scratch {
 public:
  // `bytes` bounds the sum of all pieces, `pieces` the number of calls of take() (each is rounded up to a cache
  // line). `outer`: for a task that runs tasks with a Scratch of their own.
  explicit Scratch(size_t bytes, size_t pieces = 64, bool outer = false) {
    bytes += 64 * pieces;
    auto& buffer = detail::thread_buffers[outer];
    if (buffer.size < bytes) {
      std::free(buffer.data);
      buffer.size = (bytes + 63) / 64 * 64;
      buffer.data = static_cast<char*>(std::aligned_alloc(64, buffer.size));
      if (buffer.data == nullptr) {
        buffer.size = 0;
        throw std::bad_alloc();
      }
    }
    next_ = buffer.data;
    if (poison()) std::memset(buffer.data, 0xff, buffer.size);
  }
  template <class T>
  T* take(size_t count) {
    T* p = reinterpret_cast<T*>(next_);
    next_ += (count * sizeof(T) + 63) / 64 * 64;
    return p;
  }

 private:
  char* next_;
};

}  // namespace bdam_fast
