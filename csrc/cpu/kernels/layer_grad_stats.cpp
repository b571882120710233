// Per-sample gradients of a weight, a tile of registers at a time: a tile is formed over all
// positions of a sample, added to the sums as f(tile), and forgotten.
#include "cpu/kernels/layer_grad_stats.h"

#include <cstddef>

#include "cpu/kernels/layer_grad_panel.h"
#include "cpu/kernels/layer_grad_vec.h"

namespace fastmem::cpu::FASTMEM_ISA {
namespace {

using namespace grad;

// One tile of one sample: its operands, and where f(tile) goes.
template <class T>
struct TileWork {
  const T* patches;
  const int64_t* offsets;
  int64_t rows, columns, row_step, column_step;
  const T* delta;
  int64_t output_step, position_step;  // of delta
  T* sums[kGradSums];                  // null where not wanted
  int64_t sums_step;                   // from an output to the next
  T* norm;                             // a register of partial sums; null where not wanted
  const Word<T>* mask;
};

template <class T, int kVectors, int kOutputs>
void accumulate_tile(const TileWork<T>& work) {
  Vec<T> tile[kOutputs][kVectors] = {};
  const T* delta = work.delta;
  const T* row = work.patches;
  for (int64_t y = 0; y < work.rows; ++y, row += work.row_step) {
    const T* pixel = row;
    for (int64_t x = 0; x < work.columns; ++x) {
      Vec<T> patch[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) patch[v] = load(pixel + work.offsets[v]);
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o) {
        const Vec<T> factor = broadcast(delta[o * work.output_step]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          tile[o][v] = multiply_add<T>(patch[v], factor, tile[o][v]);
      }
      pixel += work.column_step;
      delta += work.position_step;
    }
  }
  const auto add_to = [&](T* sums, auto&& value) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        T* at = sums + o * work.sums_step + v * kLanes<T>;
        store(at, load(at) + value(tile[o][v]));
      }
    }
  };
  if (work.sums[kGradSum]) add_to(work.sums[kGradSum], [](Vec<T> g) { return g; });
  if (work.sums[kGradSumSq]) add_to(work.sums[kGradSumSq], [](Vec<T> g) { return g * g; });
  if (work.sums[kGradSumAbs])
    add_to(work.sums[kGradSumAbs], [](Vec<T> g) { return absolute<T>(g); });
  if (work.norm) {
    Vec<T> norm = load(work.norm);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o) {
        const Vec<T> g = masked<T>(tile[o][v], load(work.mask + v * kLanes<T>));
        norm = multiply_add<T>(g, g, norm);
      }
    }
    store(work.norm, norm);
  }
}

template <class T, int kVectors>
void accumulate_tile(const TileWork<T>& work, int outputs) {
  if constexpr (kTileOutputs == 8) {
    if (outputs == 8) return accumulate_tile<T, kVectors, 8>(work);
  }
  if (outputs == 4) return accumulate_tile<T, kVectors, 4>(work);
  if (outputs == 2) return accumulate_tile<T, kVectors, 2>(work);
  accumulate_tile<T, kVectors, 1>(work);
}

template <class T>
void accumulate_tile(const TileWork<T>& work, int vectors, int outputs) {
  if constexpr (kTileVectors == 3) {
    if (vectors == 3) return accumulate_tile<T, 3>(work, outputs);
  }
  if (vectors == 2) return accumulate_tile<T, 2>(work, outputs);
  accumulate_tile<T, 1>(work, outputs);
}

// The size of the next tile along one side: as large as can be, but rather 2 + 2 than 3 + 1.
int next_outputs(int64_t left) {
  int outputs = kTileOutputs;
  while (outputs > left) outputs /= 2;
  return outputs;
}

int next_vectors(int64_t left) {
  if (left >= kTileVectors && left != kTileVectors + 1) return kTileVectors;
  return left >= 2 ? 2 : 1;
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
      const int outputs = next_outputs(task_.outputs - output);
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
    work.rows = layout_.rows;
    work.columns = layout_.columns;
    work.row_step = layout_.row_step;
    work.column_step = layout_.column_step;
    work.output_step = call_.delta_direct ? call_.delta_strides[1] : 1;
    work.position_step = call_.delta_direct ? 1 : outputs;
    work.sums_step = layout_.vectors * kLanes<T>;
    if (!call_.delta_direct) {
      for (int64_t s = 0; s < count; ++s)
        pack_delta(call_, delta(begin + s, output), outputs, deltas_ + s * positions_ * outputs);
    }
    for (int64_t vector = 0; vector < layout_.vectors;) {
      const int vectors = next_vectors(layout_.vectors - vector);
      work.offsets = layout_.offsets + vector;
      work.mask = static_cast<const Word<T>*>(layout_.mask) + vector * kLanes<T>;
      T* sums = static_cast<T*>(task_.sums) + output * work.sums_step + vector * kLanes<T>;
      for (int kind = 0; kind < kGradSums; ++kind) {
        work.sums[kind] = call_.wanted[kind] ? sums : nullptr;
        if (call_.wanted[kind]) sums += sum_elements();
      }
      for (int64_t s = 0; s < count; ++s) {
        work.patches = patches(s);
        work.delta =
            call_.delta_direct ? delta(begin + s, output) : deltas_ + s * positions_ * outputs;
        work.norm = task_.norms ? norms_ + s * kLanes<T> : nullptr;
        accumulate_tile(work, vectors, outputs);
      }
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
  return {dtype == DType::kFloat64 ? kLanes<double> : kLanes<float>, kTileOutputs};
}

void accumulate_layer_grads(const LayerGradCall& call, const GradTask& task, void* scratch) {
  if (call.dtype == DType::kFloat64) return TaskRun<double>(call, task, scratch).run();
  TaskRun<float>(call, task, scratch).run();
}

}  // namespace fastmem::cpu::FASTMEM_ISA
