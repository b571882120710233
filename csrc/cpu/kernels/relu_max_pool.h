// What the kernels of relu_max_pool are handed; see fastmem/ops/relu_max_pool.py for the
// definition.
#pragma once

#include <cstdint>

namespace fastmem::cpu {

// Channels-last images without gaps: x [images][height][width][channels]; y and winners
// [images][height / 2][width / 2][channels]. Backward, x and y are the gradients.
struct ReluMaxPool {
  void* x;
  void* y;
  uint8_t* winners;  // 0 to 3: where in its window the value is from; 4: the ReLU is 0
  int64_t height;
  int64_t width;
  int64_t channels;
};

// Both work on rows [begin, end) of y, of all images one after the other.
struct ReluMaxPoolKernel {
  void (*forward)(const ReluMaxPool& call, int64_t begin, int64_t end);
  void (*backward)(const ReluMaxPool& call, int64_t begin, int64_t end);
};

// 0: float, 1: double.
struct ReluMaxPoolKernels {
  ReluMaxPoolKernel of[2];
};

}  // namespace fastmem::cpu
