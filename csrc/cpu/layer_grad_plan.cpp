#include "cpu/layer_grad_plan.h"

#include <algorithm>

namespace fastmem::cpu {
namespace {

// Sums of a task, and the panels of its samples at once: in the second and the first level of
// cache.
constexpr int64_t kSumBytes = 256 << 10;
constexpr int64_t kPanelBytes = 24 << 10;
// A panel of several channel blocks, where a single one has too few vectors for a tile.
constexpr int64_t kWidePanelBytes = 256 << 10;
constexpr int64_t kWideVectors = 12;
constexpr int64_t kFlatBytes = 512 << 10;
// Up to here a tile is that of two samples.
constexpr int64_t kPairPositions = 128;
// Enough tasks for many threads, each of them enough work to be worth its start. Partial sums of
// parts of the samples so take 8 MB at most.
constexpr int64_t kTasks = 32;
constexpr int64_t kTaskWork = 1 << 20;
constexpr int64_t kSplitPositions = 512;

int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }
int64_t round_up(int64_t value, int64_t to) { return ceil_div(value, to) * to; }

// The pieces of a patch that are contiguous where pixels lie `channels` apart: a row of taps, or a
// tap where dilation parts them.
struct Runs {
  int64_t per_row, length;
  Runs(const LayerGradSizes& sizes, int64_t channels) {
    const bool joined = sizes.dilation[1] == 1;
    per_row = joined ? 1 : sizes.kernel[1];
    length = joined ? sizes.kernel[1] * channels : channels;
  }
};

class LayoutBuilder {
 public:
  LayoutBuilder(const LayerGradSizes& sizes, GradTile tile, int64_t item_size)
      : sizes_(sizes), tile_(tile), lanes_(tile.lanes), item_size_(item_size) {}

  // Vectors of a patch of fewer channels than lanes: a channel a lane, pixels side by side, or
  // copied out.
  int64_t wide_vectors() const { return sizes_.taps(); }
  int64_t narrow_vectors(int64_t channels) const {
    const Runs runs(sizes_, channels);
    return sizes_.kernel[0] * runs.per_row * ceil_div(runs.length, lanes_);
  }
  int64_t flat_vectors(int64_t channels) const {
    return ceil_div(sizes_.taps() * channels, lanes_);
  }
  bool flattens(int64_t channels) const {
    const int64_t narrow = narrow_vectors(channels), flat = flat_vectors(channels);
    return (narrow - flat) * sizes_.outputs > 4 * narrow &&
           sizes_.positions() * flat * lanes_ * item_size_ <= kFlatBytes;
  }
  // Whether so few channels are better kept from the whole blocks.
  bool narrow_pays(int64_t channels) const {
    if (channels == 0 || channels == lanes_) return false;
    return (flattens(channels) ? flat_vectors(channels) : narrow_vectors(channels)) <
           wide_vectors();
  }

  PlannedLayout wide(int64_t channels) const {
    PlannedLayout planned = panel(channels, ceil_div(channels, lanes_), lanes_);
    for (int64_t block = 0; block < planned.layout.blocks; ++block)
      for (int64_t y = 0; y < sizes_.kernel[0]; ++y)
        for (int64_t x = 0; x < sizes_.kernel[1]; ++x) {
          planned.offsets.push_back(block * planned.layout.plane + pixel(y, x) * lanes_);
          for (int64_t lane = 0; lane < lanes_; ++lane)
            planned.weight.push_back(weight(channels, block * lanes_ + lane, y, x));
        }
    return finished(std::move(planned));
  }

  PlannedLayout narrow(int64_t channels) const {
    PlannedLayout planned = panel(channels, 1, channels);
    const Runs runs(sizes_, channels);
    const int64_t vectors = ceil_div(runs.length, lanes_);
    for (int64_t y = 0; y < sizes_.kernel[0]; ++y)
      for (int64_t run = 0; run < runs.per_row; ++run)
        for (int64_t v = 0; v < vectors; ++v) {
          planned.offsets.push_back(pixel(y, run) * channels + v * lanes_);
          for (int64_t at = v * lanes_; at < (v + 1) * lanes_; ++at) {
            const int64_t x = run + at / channels;
            planned.weight.push_back(at < runs.length ? weight(channels, at % channels, y, x)
                                                      : int64_t{-1});
          }
        }
    return finished(std::move(planned));
  }

  PlannedLayout flat(int64_t channels) const {
    PlannedLayout planned = panel(channels, 1, channels);
    PatchLayout& layout = planned.layout;
    const Runs runs(sizes_, channels);
    layout.flat = true;
    layout.runs = sizes_.kernel[0] * runs.per_row;
    layout.run_length = runs.length;
    for (int64_t y = 0; y < sizes_.kernel[0]; ++y)
      for (int64_t run = 0; run < runs.per_row; ++run)
        planned.run_offsets.push_back(pixel(y, run) * channels);
    const int64_t size = flat_vectors(channels) * lanes_;
    layout.flat_elements = round_up(sizes_.positions() * size + lanes_, lanes_);
    layout.rows = 1;
    layout.columns = sizes_.positions();
    layout.row_step = 0;
    layout.column_step = size;
    for (int64_t at = 0; at < size; ++at) {
      if (at % lanes_ == 0) planned.offsets.push_back(at);
      const int64_t tap = at / channels;
      planned.weight.push_back(
          tap < sizes_.taps()
              ? weight(channels, at % channels, tap / sizes_.kernel[1], tap % sizes_.kernel[1])
              : -1);
    }
    return finished(std::move(planned));
  }

 private:
  // Of the panel's pixels, the first of tap (y, x) of the first patch.
  int64_t pixel(int64_t y, int64_t x) const {
    return y * sizes_.dilation[0] * sizes_.panel_width() + x * sizes_.dilation[1];
  }

  int64_t weight(int64_t channels, int64_t channel, int64_t y, int64_t x) const {
    return channel < channels ? (channel * sizes_.kernel[0] + y) * sizes_.kernel[1] + x : -1;
  }

  PlannedLayout panel(int64_t channels, int64_t blocks, int64_t pitch) const {
    PlannedLayout planned;
    PatchLayout& layout = planned.layout;
    layout.channels = channels;
    layout.blocks = blocks;
    layout.pitch = pitch;
    // One pixel more takes what no patch sees; a register may reach behind it.
    const int64_t pixels = sizes_.panel_height() * sizes_.panel_width() + 1;
    layout.plane = round_up(pixels * pitch + lanes_, lanes_);
    layout.panel = blocks * layout.plane;
    layout.rows = layout.panel_rows = sizes_.out_height;
    layout.columns = layout.panel_columns = sizes_.out_width;
    layout.row_step = layout.panel_row_step = sizes_.stride[0] * sizes_.panel_width() * pitch;
    layout.column_step = layout.panel_column_step = sizes_.stride[1] * pitch;
    if (layout.row_step == layout.columns * layout.column_step) {
      layout.columns *= layout.rows;
      layout.rows = 1;
    }
    return planned;
  }

  PlannedLayout finished(PlannedLayout planned) const {
    PatchLayout& layout = planned.layout;
    layout.vectors = static_cast<int64_t>(planned.offsets.size());
    planned.mask.resize(layout.vectors * lanes_);
    for (size_t lane = 0; lane < planned.weight.size(); ++lane) {
      const int64_t bits = planned.weight[lane] < 0 ? 0 : -1;
      if (item_size_ == 8) {
        planned.mask[lane] = bits;
      } else {
        reinterpret_cast<int32_t*>(planned.mask.data())[lane] = static_cast<int32_t>(bits);
      }
    }
    const int64_t bytes = (layout.panel + layout.flat_elements) * item_size_;
    layout.tile = tile_;
    layout.samples_at_once = std::clamp<int64_t>(kPanelBytes / bytes, 1, 16);
    if (sizes_.positions() <= kPairPositions && sizes_.samples > 1) {
      layout.tile.samples = 2;
      layout.tile.outputs /= 2;
      layout.samples_at_once += layout.samples_at_once % 2;
    }
    return planned;
  }

  const LayerGradSizes& sizes_;
  const GradTile tile_;
  const int64_t lanes_, item_size_;
};

// Some channels of every group, in one layout.
struct Chunk {
  const PlannedLayout* planned;
  int64_t first_channel;
};

std::vector<Chunk> plan_channels(const LayerGradSizes& sizes, const LayoutBuilder& builder,
                                 int64_t lanes, int64_t item_size,
                                 std::deque<PlannedLayout>& layouts) {
  std::vector<Chunk> chunks;
  const int64_t rest = sizes.channels % lanes;
  const int64_t narrow = builder.narrow_pays(rest) ? rest : 0;
  const int64_t wide = sizes.channels - narrow;
  const int64_t plane =
      std::max<int64_t>(sizes.panel_height() * sizes.panel_width() * lanes * item_size, 1);
  const int64_t most_blocks =
      std::max<int64_t>(1, std::min(kWideVectors / sizes.taps(), kWidePanelBytes / plane));
  const int64_t blocks = ceil_div(wide, lanes);
  const int64_t step = blocks > 0 ? ceil_div(blocks, ceil_div(blocks, most_blocks)) * lanes : lanes;
  for (int64_t first = 0; first < wide; first += step) {
    const int64_t channels = std::min(step, wide - first);
    if (layouts.empty() || layouts.back().layout.channels != channels)
      layouts.push_back(builder.wide(channels));
    chunks.push_back({&layouts.back(), first});
  }
  if (narrow > 0) {
    layouts.push_back(builder.flattens(narrow) ? builder.flat(narrow) : builder.narrow(narrow));
    chunks.push_back({&layouts.back(), wide});
  }
  return chunks;
}

}  // namespace

LayerGradPlan plan_layer_grads(const LayerGradSizes& sizes, GradTile tile, int64_t item_size,
                               int64_t sums_wanted) {
  LayerGradPlan plan;
  const LayoutBuilder builder(sizes, tile, item_size);
  const auto chunks = plan_channels(sizes, builder, tile.lanes, item_size, plan.layouts);
  for (int64_t group = 0; group < sizes.groups; ++group)
    for (const Chunk& chunk : chunks) {
      const int64_t bytes_per_output = std::max<int64_t>(sums_wanted, 1) *
                                       chunk.planned->layout.vectors * tile.lanes * item_size;
      const int64_t most =
          std::max<int64_t>(kSumBytes / bytes_per_output / tile.outputs, 1) * tile.outputs;
      const int64_t parts = ceil_div(sizes.outputs, most);
      const int64_t step = round_up(ceil_div(sizes.outputs, parts), tile.outputs);
      for (int64_t output = 0; output < sizes.outputs; output += step)
        plan.tiles.push_back({chunk.planned, group, chunk.first_channel, output,
                              std::min(step, sizes.outputs - output)});
    }
  for (PlannedLayout& planned : plan.layouts) {
    planned.layout.offsets = planned.offsets.data();
    planned.layout.run_offsets = planned.run_offsets.data();
    planned.layout.mask = planned.mask.data();
  }
  const int64_t nowhere = sizes.panel_height() * sizes.panel_width();
  plan.slots.reserve(sizes.height * sizes.width);
  for (int64_t y = sizes.padding[0]; y < sizes.height + sizes.padding[0]; ++y)
    for (int64_t x = sizes.padding[1]; x < sizes.width + sizes.padding[1]; ++x) {
      const bool seen = y < sizes.panel_height() && x < sizes.panel_width();
      plan.slots.push_back(seen ? y * sizes.panel_width() + x : nowhere);
    }
  const int64_t work =
      2 * sizes.samples * sizes.positions() * sizes.groups * sizes.outputs * sizes.weights();
  const int64_t tiles = std::max<int64_t>(static_cast<int64_t>(plan.tiles.size()), 1);
  plan.splits =
      std::max<int64_t>(1, std::min({kTasks / tiles, sizes.samples, work / tiles / kTaskWork,
                                     sizes.samples * sizes.positions() / kSplitPositions}));
  plan.useful_threads = std::max<int64_t>(1, work / kTaskWork);
  return plan;
}

}  // namespace fastmem::cpu
