// Copies one sample's operands into the order in which the tiles read them.
#pragma once

#include <cstdint>

#include "cpu/kernels/layer_grad_stats.h"
#include "cpu/kernels/layer_grad_vec.h"

namespace fastmem::cpu::FASTMEM_ISA::grad {

// The elements at `from` on, of which `count` matter: what lies behind them is read where memory
// goes on, and left out at its end.
template <class T>
FASTMEM_GRAD_INLINE Vec<T> load_first(const T* from, int64_t count, const T* end) {
  if (end - from >= kLanes<T>) return load(from);
  Vec<T> value{};
  for (int64_t lane = 0; lane < count; ++lane) value[lane] = from[lane];
  return value;
}

// Whole registers are written: into the slots of the next channels or pixels too, which get theirs
// later, or into the border, which therefore has to get zeros.
template <class T>
void fill_from_planes(const LayerGradCall& call, const T* pixels, int64_t channels, int64_t pitch,
                      T* panel) {
  const int64_t* strides = call.a_strides;
  const T* end = static_cast<const T*>(call.a_end);
  const bool joined = strides[2] == call.width;
  const int64_t rows = joined ? 1 : call.height;
  const int64_t length = joined ? call.height * call.width : call.width;
  const int64_t* slots = call.slots;
  for (int64_t row = 0; row < rows; ++row, slots += length) {
    for (int64_t at = 0; at < length; at += kLanes<T>) {
      const int64_t count = length - at < kLanes<T> ? length - at : kLanes<T>;
      Vec<T> block[kLanes<T>];
#pragma GCC unroll 16
      for (int channel = 0; channel < kLanes<T>; ++channel) {
        block[channel] =
            channel < channels
                ? load_first(pixels + row * strides[2] + at + channel * strides[1], count, end)
                : Vec<T>{};
      }
      transpose<T>(block);
      if (count == kLanes<T>) {
#pragma GCC unroll 16
        for (int pixel = 0; pixel < kLanes<T>; ++pixel)
          store(panel + slots[at + pixel] * pitch, block[pixel]);
      } else {
        for (int pixel = 0; pixel < count; ++pixel)
          store(panel + slots[at + pixel] * pitch, block[pixel]);
      }
    }
  }
}

template <class T>
void fill_from_pixels(const LayerGradCall& call, const T* pixels, int64_t channels, int64_t pitch,
                      T* panel) {
  const T* end = static_cast<const T*>(call.a_end);
  Bits<T> valid{};
  for (int64_t lane = 0; lane < channels; ++lane) valid[lane] = -1;
  const int64_t* slot = call.slots;
  for (int64_t y = 0; y < call.height; ++y) {
    const T* from = pixels + y * call.a_strides[2];
    for (int64_t x = 0; x < call.width; ++x, from += call.a_strides[3])
      store(panel + *slot++ * pitch, masked<T>(load_first(from, channels, end), valid));
  }
}

template <class T>
void fill_from_anywhere(const LayerGradCall& call, const T* pixels, int64_t channels, int64_t pitch,
                        T* panel) {
  const int64_t* slot = call.slots;
  for (int64_t y = 0; y < call.height; ++y) {
    for (int64_t x = 0; x < call.width; ++x, ++slot) {
      const T* from = pixels + y * call.a_strides[2] + x * call.a_strides[3];
      for (int64_t channel = 0; channel < channels; ++channel)
        panel[*slot * pitch + channel] = from[channel * call.a_strides[1]];
    }
  }
}

template <class T>
void fill_panel(const LayerGradCall& call, const PatchLayout& layout, const T* pixels, T* panel) {
  for (int64_t block = 0; block < layout.blocks; ++block) {
    const int64_t first = block * kLanes<T>, left = layout.channels - first;
    const int64_t channels = left < kLanes<T> ? left : kLanes<T>;
    const T* from = pixels + first * call.a_strides[1];
    T* to = panel + block * layout.plane;
    if (call.a_strides[3] == 1 && call.width > 1) {
      fill_from_planes(call, from, channels, layout.pitch, to);
    } else if (call.a_strides[1] == 1) {
      fill_from_pixels(call, from, channels, layout.pitch, to);
    } else {
      fill_from_anywhere(call, from, channels, layout.pitch, to);
    }
  }
}

// Lays the patches out one behind the other. A piece is copied in whole registers; what they write
// too much the next piece overwrites.
template <class T>
void flatten_patches(const PatchLayout& layout, const T* panel, T* flat) {
  const int64_t size = layout.vectors * kLanes<T>;
  for (int64_t y = 0; y < layout.panel_rows; ++y) {
    const T* from = panel + y * layout.panel_row_step;
    for (int64_t x = 0; x < layout.panel_columns; ++x) {
      for (int64_t run = 0; run < layout.runs; ++run) {
        for (int64_t i = 0; i < layout.run_length; i += kLanes<T>)
          store(flat + run * layout.run_length + i, load(from + layout.run_offsets[run] + i));
      }
      from += layout.panel_column_step;
      flat += size;
    }
  }
}

// [positions][outputs] of a few outputs.
template <class T>
void pack_delta(const LayerGradCall& call, const T* delta, int64_t outputs, T* packed) {
  const int64_t output_stride = call.delta_strides[1];
  for (int64_t y = 0; y < call.out_height; ++y) {
    const T* from = delta + y * call.delta_strides[2];
    for (int64_t x = 0; x < call.out_width; ++x) {
      if (outputs == kTileOutputs && output_stride == 1) {
        __builtin_memcpy(packed, from, kTileOutputs * sizeof(T));
      } else {
        for (int64_t o = 0; o < outputs; ++o) packed[o] = from[o * output_stride];
      }
      packed += outputs;
      from += call.delta_strides[3];
    }
  }
}

}  // namespace fastmem::cpu::FASTMEM_ISA::grad
