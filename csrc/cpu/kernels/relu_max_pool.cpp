// The largest of 2 x 2 pixels, or 0, and which one it was; and the gradient's way back to it.
#include "cpu/kernels/relu_max_pool.h"

#include "cpu/kernels/pooled.h"

namespace fastmem::cpu::FASTMEM_ISA {
namespace {

// Calls body(channel, number of channels) for every register of them, the last perhaps not full.
template <class T, class Body>
FASTMEM_INLINE void for_each_register(int64_t channels, Body&& body) {
  int64_t c = 0;
  for (; c + kLanes<T> <= channels; c += kLanes<T>) body(c, int64_t{kLanes<T>});
  if (c < channels) body(c, channels - c);
}

template <class T>
FASTMEM_INLINE Register<T> load_some(const T* from, int64_t count) {
  return count == kLanes<T> ? load_register(from) : load_register_first(from, count);
}

template <class T>
FASTMEM_INLINE void store_some(T* to, Register<T> x, int64_t count) {
  count == kLanes<T> ? store_register(to, x) : store_register_first(to, x, count);
}

// The upper left pixel of the windows of a row of y.
template <class T>
FASTMEM_INLINE T* first_pixel(const ReluMaxPool& call, int64_t row) {
  const int64_t rows = call.height / 2;
  const int64_t y = row / rows * call.height + row % rows * 2;
  return static_cast<T*>(call.x) + y * call.width * call.channels;
}

template <class T>
void forward(const ReluMaxPool& call, int64_t begin, int64_t end) {
  const int64_t channels = call.channels, down = call.width * channels, width = call.width / 2;
  const int64_t window[] = {0, channels, down, down + channels};
  for (int64_t row = begin; row < end; ++row) {
    const T* x = first_pixel<T>(call, row);
    T* y = static_cast<T*>(call.y) + row * width * channels;
    uint8_t* winners = call.winners + row * width * channels;
    for (int64_t column = 0; column < width;
         ++column, x += 2 * channels, y += channels, winners += channels) {
      for_each_register<T>(channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
        const auto value_of = [&](int place) __attribute__((always_inline)) {
          return load_some(x + window[place] + c, count);
        };
        store_pooled(pool<T>(value_of), count, y + c, winners + c);
      });
    }
  }
}

template <class T>
void backward(const ReluMaxPool& call, int64_t begin, int64_t end) {
  const int64_t channels = call.channels, down = call.width * channels, width = call.width / 2;
  const int64_t window[] = {0, channels, down, down + channels};
  const int64_t rows = call.height / 2;
  for (int64_t row = begin; row < end; ++row) {
    T* first = first_pixel<T>(call, row);
    T* x = first;
    const T* y = static_cast<const T*>(call.y) + row * width * channels;
    const uint8_t* winners = call.winners + row * width * channels;
    for (int64_t column = 0; column < width;
         ++column, x += 2 * channels, y += channels, winners += channels) {
      for_each_register<T>(channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
        Bytes<T> bytes{};
        memcpy(&bytes, winners + c, static_cast<size_t>(count));
        const Code<T> code = __builtin_convertvector(bytes, Code<T>);
        const Register<T> gradient = load_some(y + c, count);
#pragma GCC unroll 4
        for (int place = 0; place < 4; ++place) {
          store_some(x + window[place] + c, code == place ? gradient : Register<T>{}, count);
        }
      });
    }
    // What the windows leave out of odd sizes.
    if (call.width % 2 != 0) {
      for (int64_t c = 0; c < channels; ++c) x[c] = x[down + c] = 0;
    }
    if (call.height % 2 != 0 && row % rows == rows - 1) {
      for (int64_t i = 0; i < down; ++i) first[2 * down + i] = 0;
    }
  }
}

}  // namespace

extern const ReluMaxPoolKernels relu_max_pool;
const ReluMaxPoolKernels relu_max_pool = {
    {{&forward<float>, &backward<float>}, {&forward<double>, &backward<double>}}};

}  // namespace fastmem::cpu::FASTMEM_ISA
