// Per-sample gradients of a weight, a tile of registers at a time: a tile is formed over all
// positions of a sample, added to the sums as f(tile), and forgotten.
#include "cpu/kernels/layer_grad_stats.h"

#include <cstddef>

#include "cpu/kernels/layer_grad_panel.h"
#include "cpu/kernels/layer_grad_vec.h"

namespace fastmem::cpu::FASTMEM_ISA {
namespace {

using namespace grad;

template <class T>
constexpr GradTile kTile{kLanes<T>, 1, kTileOutputs, kTileVectors};

// One tile of one sample or two: their operands, and where f(tile) goes.
template <class T>
struct TileWork {
  const T* patches;
  int64_t patches_step;  // from a sample to the next
  const int64_t* offsets;
  int64_t rows, columns, row_step, column_step;
  const T* delta;
  int64_t delta_step, output_step, position_step;
  T* sums;  // of the tile, behind each other those that are wanted
  const bool* wanted;
  T* norms;  // a register of partial sums for every sample; null where not wanted
  const Word<T>* mask;
};

// A sum takes a load and a store for every register of the tile: where there are few positions to
// earn them, the tile is rather that of two samples at once for half the outputs.
template <class T, int kSamples, int kOutputs, int kVectors>
__attribute__((noinline)) void accumulate_tile(const TileWork<T>& work) {
  Vec<T> tile[kSamples][kOutputs][kVectors] = {};
  const int64_t output_step = work.output_step, position_step = work.position_step;
  const int64_t column_step = work.column_step, columns = work.columns;
  const int64_t row_gap = work.row_step - columns * column_step;
  const T *pixel[kSamples], *delta[kSamples], *upper[kSamples];
#pragma GCC unroll 2
  for (int s = 0; s < kSamples; ++s) {
    pixel[s] = work.patches + s * work.patches_step;
    delta[s] = work.delta + s * work.delta_step;
    // Two pointers reach eight outputs by the address modes of the processor, one does not.
    upper[s] = delta[s] + 4 * output_step;
  }
  int64_t left_in_row = columns;
  for (int64_t left = work.rows * columns; left > 0; --left) {
#pragma GCC unroll 2
    for (int s = 0; s < kSamples; ++s) {
      Vec<T> patch[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        patch[v] = load(pixel[s] + work.offsets[v]);
        keep(patch[v]);
      }
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o) {
        const Vec<T> factor =
            broadcast(o < 4 ? delta[s][o * output_step] : upper[s][(o - 4) * output_step]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          tile[s][o][v] = multiply_add<T>(patch[v], factor, tile[s][o][v]);
      }
      pixel[s] += column_step;
      delta[s] += position_step;
      upper[s] += position_step;
    }
    if (--left_in_row == 0) {
      left_in_row = columns;
#pragma GCC unroll 2
      for (int s = 0; s < kSamples; ++s) pixel[s] += row_gap;
    }
  }
  // One run of memory, so that the addresses cost nothing.
  T* sums = work.sums;
  const auto add = [&](auto&& value) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        T* at = sums + (o * kVectors + v) * kLanes<T>;
        Vec<T> sum = value(tile[0][o][v]);
#pragma GCC unroll 2
        for (int s = 1; s < kSamples; ++s) sum += value(tile[s][o][v]);
        store(at, load(at) + sum);
      }
    }
    sums += kOutputs * kVectors * kLanes<T>;
  };
  if (work.wanted[kGradSum]) add([](Vec<T> g) { return g; });
  if (work.wanted[kGradSumSq]) add([](Vec<T> g) { return g * g; });
  if (work.wanted[kGradSumAbs]) add([](Vec<T> g) { return absolute<T>(g); });
  if (!work.norms) return;
#pragma GCC unroll 2
  for (int s = 0; s < kSamples; ++s) {
    Vec<T> norm = load(work.norms + s * kLanes<T>);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Vec<T> squares{};
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o)
        squares = multiply_add<T>(tile[s][o][v], tile[s][o][v], squares);
      norm += masked<T>(squares, load(work.mask + v * kLanes<T>));
    }
    store(work.norms + s * kLanes<T>, norm);
  }
}

template <class T, int kSamples, int kOutputs>
void accumulate_tile(const TileWork<T>& work, int outputs, int vectors) {
  if constexpr (kOutputs > 1) {
    if (outputs < kOutputs)
      return accumulate_tile<T, kSamples, kOutputs / 2>(work, outputs, vectors);
  }
  if constexpr (kTileVectors == 3) {
    if (vectors == 3) return accumulate_tile<T, kSamples, kOutputs, 3>(work);
  }
  if (vectors == 2) return accumulate_tile<T, kSamples, kOutputs, 2>(work);
  accumulate_tile<T, kSamples, kOutputs, 1>(work);
}

template <class T>
void accumulate_tile(const TileWork<T>& work, int samples, int outputs, int vectors) {
  if (samples == 2) return accumulate_tile<T, 2, kTileOutputs / 2>(work, outputs, vectors);
  accumulate_tile<T, 1, kTileOutputs>(work, outputs, vectors);
}

template <class T>
class TaskRun {
 public:
  TaskRun(const LayerGradCall& call, const GradTask& task, void* scratch)
      : call_(call),
        task_(task),
        layout_(*task.layout),
        positions_(call.out_height * call.out_width),
        panels_(static_cast<T*>(scratch)),
        flats_(panels_ + layout_.samples_at_once * layout_.panel),
        deltas_(flats_ + layout_.samples_at_once * layout_.flat_elements),
        norms_(deltas_ + layout_.samples_at_once * positions_ * kTileOutputs) {}

  void run() {
    clear(panels_, layout_.samples_at_once * layout_.panel);  // the border stays zero from now on
    clear(static_cast<T*>(task_.sums), sums_wanted() * sum_elements());
    for (int64_t begin = 0; begin < task_.samples; begin += layout_.samples_at_once) {
      const int64_t left = task_.samples - begin;
      accumulate_samples(begin, left < layout_.samples_at_once ? left : layout_.samples_at_once);
    }
  }

 private:
  static void clear(T* values, int64_t count) {
    if (count > 0) __builtin_memset(values, 0, static_cast<size_t>(count) * sizeof(T));
  }

  int64_t sum_elements() const { return task_.outputs * layout_.vectors * kLanes<T>; }
  int64_t sums_wanted() const {
    return call_.wanted[kGradSum] + call_.wanted[kGradSumSq] + call_.wanted[kGradSumAbs];
  }
  const T* patches(int64_t s) const {
    return layout_.flat ? flats_ + s * layout_.flat_elements : panels_ + s * layout_.panel;
  }
  const T* delta(int64_t sample, int64_t output) const {
    return static_cast<const T*>(call_.delta) +
           (task_.first_sample + sample) * call_.delta_strides[0] +
           (task_.first_output + output) * call_.delta_strides[1];
  }

  void accumulate_samples(int64_t begin, int64_t count) {
    for (int64_t s = 0; s < count; ++s) {
      const T* pixels = static_cast<const T*>(call_.a) +
                        (task_.first_sample + begin + s) * call_.a_strides[0] +
                        task_.first_channel * call_.a_strides[1];
      fill_panel(call_, layout_, pixels, panels_ + s * layout_.panel);
      if (layout_.flat)
        flatten_patches(layout_, panels_ + s * layout_.panel, flats_ + s * layout_.flat_elements);
    }
    if (task_.norms) clear(norms_, count * kLanes<T>);
    for (int64_t output = 0; output < task_.outputs;) {
      const int outputs = layout_.tile.next_outputs(task_.outputs - output);
      accumulate_outputs(begin, count, output, outputs);
      output += outputs;
    }
    if (!task_.norms) return;
    for (int64_t s = 0; s < count; ++s) {
      double norm = 0;
      for (int lane = 0; lane < kLanes<T>; ++lane) norm += norms_[s * kLanes<T> + lane];
      task_.norms[begin + s] = norm;
    }
  }

  void accumulate_outputs(int64_t begin, int64_t count, int64_t output, int outputs) {
    TileWork<T> work;
    work.patches_step = layout_.flat ? layout_.flat_elements : layout_.panel;
    work.delta_step = call_.delta_direct ? call_.delta_strides[0] : positions_ * outputs;
    work.rows = layout_.rows;
    work.columns = layout_.columns;
    work.row_step = layout_.row_step;
    work.column_step = layout_.column_step;
    work.output_step = call_.delta_direct ? call_.delta_strides[1] : 1;
    work.position_step = call_.delta_direct ? 1 : outputs;
    work.wanted = call_.wanted;
    work.sums = static_cast<T*>(task_.sums) + output * layout_.vectors * kLanes<T> * sums_wanted();
    if (!call_.delta_direct) {
      for (int64_t s = 0; s < count; ++s)
        pack_delta(call_, delta(begin + s, output), outputs, deltas_ + s * positions_ * outputs);
    }
    for (int64_t vector = 0; vector < layout_.vectors;) {
      const int vectors = layout_.tile.next_vectors(layout_.vectors - vector);
      work.offsets = layout_.offsets + vector;
      work.mask = static_cast<const Word<T>*>(layout_.mask) + vector * kLanes<T>;
      for (int64_t s = 0; s < count;) {
        const int samples = layout_.tile.next_samples(count - s);
        work.patches = patches(s);
        work.delta =
            call_.delta_direct ? delta(begin + s, output) : deltas_ + s * positions_ * outputs;
        work.norms = task_.norms ? norms_ + s * kLanes<T> : nullptr;
        accumulate_tile(work, samples, outputs, vectors);
        s += samples;
      }
      work.sums += sums_wanted() * outputs * vectors * kLanes<T>;
      vector += vectors;
    }
  }

  const LayerGradCall& call_;
  const GradTask& task_;
  const PatchLayout& layout_;
  const int64_t positions_;
  T *panels_, *flats_, *deltas_, *norms_;
};

}  // namespace

GradTile layer_grad_tile(DType dtype) {
  return dtype == DType::kFloat64 ? kTile<double> : kTile<float>;
}

void accumulate_layer_grads(const LayerGradCall& call, const GradTask& task, void* scratch) {
  if (call.dtype == DType::kFloat64) return TaskRun<double>(call, task, scratch).run();
  TaskRun<float>(call, task, scratch).run();
}

}  // namespace fastmem::cpu::FASTMEM_ISA
