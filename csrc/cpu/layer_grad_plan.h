// How the work of one layer_grad_stats call is cut into tasks. Sizes alone decide, never the number
// of threads: so do the sums, to the last bit.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "cpu/kernels/layer_grad_stats.h"

namespace fastmem::cpu {

struct LayerGradSizes {
  int64_t samples, groups, channels, outputs;  // channels and outputs of a group
  int64_t height, width, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2], dilation[2];

  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t weights() const { return channels * taps(); }  // of an output
  int64_t positions() const { return out_height * out_width; }
  int64_t panel_height() const {
    return (out_height - 1) * stride[0] + (kernel[0] - 1) * dilation[0] + 1;
  }
  int64_t panel_width() const {
    return (out_width - 1) * stride[1] + (kernel[1] - 1) * dilation[1] + 1;
  }
};

// A PatchLayout together with the arrays that it points to.
struct PlannedLayout {
  PatchLayout layout{};
  std::vector<int64_t> offsets, run_offsets;
  std::vector<int64_t> mask;    // bits of [vectors][lanes] integers of the element's size
  std::vector<int64_t> weight;  // [vectors][lanes]: the lane's place in [channels][kh][kw], or -1
};

// The sums of one tile of the weight: for some channels and some outputs.
struct PlannedTile {
  const PlannedLayout* planned;
  int64_t group, first_channel, first_output, outputs;  // within the group
};

struct LayerGradPlan {
  std::deque<PlannedLayout> layouts;  // tiles point into it
  std::vector<PlannedTile> tiles;
  std::vector<int64_t> slots;  // of every pixel of the input in a panel
  int64_t splits;              // parts of the samples, with partial sums each
  int64_t useful_threads;      // more would cost more to wake than they take over

  int64_t first_sample(int64_t samples, int64_t split) const { return samples * split / splits; }
  int64_t sum_elements(const PlannedTile& tile, int lanes) const {
    return tile.outputs * tile.planned->layout.vectors * lanes;
  }
};

LayerGradPlan plan_layer_grads(const LayerGradSizes& sizes, GradTile tile, int64_t item_size,
                               int64_t sums_wanted);

}  // namespace fastmem::cpu
