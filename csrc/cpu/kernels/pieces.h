// Scratch memory of a kernel, handed out piece by piece.
#pragma once

#include <cstdint>

#include "cpu/kernels/vec.h"

namespace fastmem::cpu::FASTMEM_ISA {

FASTMEM_INLINE int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }
FASTMEM_INLINE int64_t divide_up(int64_t x, int64_t y) { return (x + y - 1) / y; }

// Each piece starts a cache line of its own. Without memory it counts what the pieces would take.
class Pieces {
 public:
  explicit Pieces(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    const int64_t at = bytes_;
    bytes_ += divide_up(count * static_cast<int64_t>(sizeof(T)), kLine) * kLine;
    return memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + at);
  }

  template <class T>
  void take(T*& piece, int64_t count) {
    piece = take<T>(count);
  }

  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kLine = 64;

  char* memory_;
  int64_t bytes_ = 0;
};

}  // namespace fastmem::cpu::FASTMEM_ISA
