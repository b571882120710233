// Images as the kernels of conv_relu_max_pool read them: with their border of zeros, channels in
// blocks, so that a row of a patch is contiguous and a block stays in the innermost cache.
#pragma once

#include "cpu/kernels/conv_pool.h"
#include "cpu/kernels/convert.h"
#include "cpu/kernels/pieces.h"

namespace fastmem::cpu::FASTMEM_ISA {

// Of a row of a patch, a tile holds as many registers as leave room for a factor and an address.
inline constexpr int kRunTile = 10;

// Calls body.template operator()<n>() with the constant n = `count`, from 1 to kLast.
template <int kLast, class Body>
FASTMEM_INLINE void with_count(int64_t count, Body&& body) {
  if constexpr (kLast > 1) {
    if (count < kLast) return with_count<kLast - 1>(count, body);
  }
  body.template operator()<kLast>();
}

template <class T>
void copy(T* to, const T* from, int64_t count) {
  memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
}

template <class T>
void clear(T* values, int64_t count) {
  memset(values, 0, static_cast<size_t>(count) * sizeof(T));
}

template <class T>
struct Panel {
  explicit Panel(const ConvPool& call)
      : call(call),
        width(call.width + 2 * call.pad_width),
        windows(call.pooled_height() * call.pooled_width()) {
    // Few channels lie side by side as they are; of many, a block fills so many registers that a
    // row of a patch is a tile.
    const bool few = call.channels < kLanes<T>;
    const int64_t room = call.kernel_width < kRunTile ? kRunTile / call.kernel_width : 1;
    pitch = few ? call.channels : least(divide_up(call.channels, kLanes<T>), room) * kLanes<T>;
    blocks = divide_up(call.channels, pitch);
    run = call.kernel_width * pitch;
    row_step = width * pitch;
    // Registers that a row of a patch does not fill go on behind it, at the end of the panel too.
    elements = (call.height + 2 * call.pad_height) * row_step + kLanes<T>;
  }

  int64_t channels(int64_t block) const { return least(pitch, call.channels - block * pitch); }

  // Where the upper left patch of a window begins.
  int64_t corner(int64_t window) const {
    const int64_t columns = call.pooled_width();
    return window / columns * 2 * row_step + window % columns * 2 * pitch;
  }

  // Where the patches of a window lie beside its first.
  FASTMEM_INLINE int64_t place(int winner) const {
    return (winner & 1) * pitch + (winner >> 1) * row_step;
  }

  // A block of an image's channels into the panel, whose border is zero.
  void fill(int64_t image, int64_t block, T* panel) const {
    const int64_t count = channels(block);
    const T* from = static_cast<const T*>(call.x) + at(image, block);
    each_pixel([&](int64_t pixel, int64_t slot) __attribute__((always_inline)) {
      copy(panel + slot, from + pixel * call.channels, count);
      if (count < pitch) clear(panel + slot + count, pitch - count);
    });
  }

  // And out of one.
  void empty(int64_t image, int64_t block, const T* panel) const {
    const int64_t count = channels(block);
    T* to = static_cast<T*>(call.x_gradient) + at(image, block);
    each_pixel([&](int64_t pixel, int64_t slot) __attribute__((always_inline)) {
      copy(to + pixel * call.channels, panel + slot, count);
    });
  }

  const ConvPool& call;
  int64_t width, windows;
  int64_t pitch;  // channels of a block
  int64_t blocks;
  int64_t run;  // elements of a row of a patch
  int64_t row_step, elements;

 private:
  int64_t at(int64_t image, int64_t block) const {
    return image * call.height * call.width * call.channels + block * pitch;
  }

  template <class Body>
  FASTMEM_INLINE void each_pixel(Body&& body) const {
    for (int64_t y = 0; y < call.height; ++y) {
      const int64_t slot = (y + call.pad_height) * row_step + call.pad_width * pitch;
      for (int64_t x = 0; x < call.width; ++x) body(y * call.width + x, slot + x * pitch);
    }
  }
};

}  // namespace fastmem::cpu::FASTMEM_ISA
