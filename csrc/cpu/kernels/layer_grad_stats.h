// What the kernel of layer_grad_stats is handed; see fastmem/ops/layer_grad_stats.py for the
// definitions.
//
// A task owns some rows k of the weight (channels of the input times taps of the kernel) for some
// output channels and some samples. It copies its channels of a sample, with their border of zeros,
// into a panel in which the rows k are lanes of vectors; a patch of the input is then a few vectors
// at fixed offsets from its first pixel.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fastmem::cpu {

// The largest tile of gradients that stays in registers: of `samples` (1 or 2), for `outputs` (a
// power of two), `vectors` of `lanes` rows k each.
struct GradTile {
  int lanes, samples, outputs, vectors;

  // The sides of the next tile where so much is left: of outputs a power of two, and of vectors
  // rather 2 + 2 than 3 + 1.
  __attribute__((always_inline)) int next_samples(int64_t left) const {
    return left < samples ? 1 : samples;
  }
  __attribute__((always_inline)) int next_outputs(int64_t left) const {
    int next = outputs;
    while (next > left) next /= 2;
    return next;
  }
  __attribute__((always_inline)) int next_vectors(int64_t left) const {
    if (left >= vectors && left != vectors + 1) return vectors;
    return left >= 2 ? 2 : 1;
  }
};

// Which sums are kept, in this order in memory; norms are kept apart.
enum GradSum : int { kGradSum = 0, kGradSumSq = 1, kGradSumAbs = 2, kGradSums = 3 };

// How the panel of a task looks. Two forms: whole blocks of `lanes` channels, a plane of pixels for
// each; or fewer channels side by side, so that neighbouring pixels share a vector (pitch < lanes).
// Of the latter the patches may be copied out one by one (`flat`), where that saves vectors.
struct PatchLayout {
  int64_t channels, blocks, pitch;
  int64_t plane, panel;    // elements of a block and of all of them
  int64_t vectors;         // of a patch
  const int64_t* offsets;  // of those vectors from a patch's first pixel, in elements
  const void* mask;        // [vectors][lanes], all ones where a lane is a row of the weight
  int64_t rows, columns, row_step, column_step;  // positions of the output, and their first pixels

  bool flat;
  int64_t runs, run_length;    // contiguous pieces of a patch in the panel
  const int64_t* run_offsets;  // in the panel, in elements
  int64_t flat_elements;
  int64_t panel_rows, panel_columns, panel_row_step, panel_column_step;

  int64_t samples_at_once;
  GradTile tile;
};

// One call, the same for all tasks. Strides in elements: sample, channel, row, column.
struct LayerGradCall {
  DType dtype;  // float32 or float64
  const void *a, *delta;
  const void* a_end;  // behind the last element that may be read
  int64_t height, width;
  int64_t a_strides[4], delta_strides[4];
  int64_t out_height, out_width;
  bool delta_direct;       // the positions of an output channel are contiguous
  const int64_t* slots;    // [height * width]: where a pixel lies in a panel, in pixels
  bool wanted[kGradSums];  // sums
};

struct GradTask {
  const PatchLayout* layout;
  int64_t first_channel, first_output, outputs, first_sample, samples;
  void* sums;     // set by the task: tile after tile, those of the same outputs behind each other,
                  // and for each the sums wanted, [outputs][vectors][lanes] of the tile
  double* norms;  // [samples], set by the task; null where not wanted
};

}  // namespace fastmem::cpu
