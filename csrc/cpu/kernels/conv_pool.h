// What the kernels of conv_relu_max_pool are handed; see fastmem/ops/conv_relu_max_pool.py for the
// definition.
#pragma once

#include <cstdint>

namespace fastmem::cpu {

// Channels-last arrays without gaps.
struct ConvPool {
  const void* x;       // [images][height][width][channels]
  const void* weight;  // [outputs][kernel_height][kernel_width][channels]
  const void* bias;    // forward only
  void* y;             // [images][pooled_height][pooled_width][outputs]; backward, its gradient
  uint8_t* winners;    // of y's shape; see relu_max_pool.h
  // Backward only; x_gradient is null where it is not wanted.
  void* x_gradient;
  void* weight_gradient;
  void* bias_gradient;

  int64_t images, height, width, channels;
  int64_t outputs, kernel_height, kernel_width, pad_height, pad_width;

  int64_t pooled_height() const { return (height + 2 * pad_height - kernel_height + 1) / 2; }
  int64_t pooled_width() const { return (width + 2 * pad_width - kernel_width + 1) / 2; }

  // A part of the images sums up weight gradients of its own, so how many parts there are, 1 to 32,
  // depends on the images alone.
  int64_t parts() const { return images < 8 ? 1 : images < 256 ? images / 8 : 32; }
};

// One after the other: start, each part (in any order, at the same time if need be), finish. All
// three are handed the same scratch memory.
struct ConvPoolKernel {
  int64_t (*scratch_bytes)(const ConvPool& call);
  void (*start)(const ConvPool& call, void* scratch);
  void (*part)(const ConvPool& call, void* scratch, int64_t part);
  void (*finish)(const ConvPool& call, void* scratch);
};

// 0: float, 1: double.
struct ConvPoolKernels {
  ConvPoolKernel of[2];
};

}  // namespace fastmem::cpu
