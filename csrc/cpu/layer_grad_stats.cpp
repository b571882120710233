// Sums over the samples of functions of each sample's gradient at a layer's weight: tasks for all
// threads, then the partial sums of each weight in a fixed order.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "cpu/isa.h"
#include "cpu/layer_grad_plan.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace fastmem::cpu {

FASTMEM_DECLARE_FOR_EVERY_ISA(GradTile layer_grad_tile(DType dtype))
// `scratch`: for layout.samples_at_once samples, their panel, flat patches, the deltas of a tile
// and a register.
FASTMEM_DECLARE_FOR_EVERY_ISA(void accumulate_layer_grads(const LayerGradCall& call,
                                                          const GradTask& task, void* scratch))

namespace {

constexpr int64_t kAlignment = 64;

struct AlignedDelete {
  void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{kAlignment}); }
};
using Memory = std::unique_ptr<char, AlignedDelete>;

Memory allocate(int64_t bytes) {
  return Memory(static_cast<char*>(::operator new(static_cast<size_t>(std::max<int64_t>(bytes, 1)),
                                                  std::align_val_t{kAlignment})));
}

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t scratch_bytes(const LayerGradPlan& plan, const LayerGradSizes& sizes, GradTile tile,
                      int64_t item_size) {
  int64_t elements = 0;
  for (const PlannedLayout& planned : plan.layouts) {
    const PatchLayout& layout = planned.layout;
    elements = std::max(elements,
                        layout.samples_at_once * (layout.panel + layout.flat_elements +
                                                  sizes.positions() * tile.outputs + tile.lanes));
  }
  return aligned(elements * item_size);
}

// Calls body(worker, item) for every item in [0, items), each worker with memory of its own.
template <class Body>
void share_out(int64_t workers, int64_t items, Body&& body) {
  struct Context {
    Body& body;
    int64_t items;
    std::atomic<int64_t> next{0};
  } context{body, items};
  run_parts(
      static_cast<int>(workers), workers,
      [](void* opaque, int64_t worker) {
        Context& c = *static_cast<Context*>(opaque);
        for (int64_t i; (i = c.next.fetch_add(1, std::memory_order_relaxed)) < c.items;)
          c.body(worker, i);
      },
      &context);
}

struct Results {
  std::array<void*, kGradSums> sums;
  void* norms;
};

class LayerGradRun {
 public:
  LayerGradRun(const LayerGradSizes& sizes, LayerGradCall call, const Results& results)
      : sizes_(sizes),
        call_(call),
        results_(results),
        item_size_(item_size(call.dtype)),
        tile_(FASTMEM_FOR_CURRENT_ISA(layer_grad_tile)(call.dtype)) {
    for (int kind = 0; kind < kGradSums; ++kind) {
      call_.wanted[kind] = results.sums[kind] != nullptr;
      sums_wanted_ += call_.wanted[kind];
    }
    plan_ = plan_layer_grads(sizes_, tile_, item_size_, sums_wanted_);
    call_.slots = plan_.slots.data();
  }

  void run(int64_t threads) {
    const int64_t tiles = static_cast<int64_t>(plan_.tiles.size());
    norms_.resize(results_.norms ? tiles * sizes_.samples : 0);
    call_.dtype == DType::kFloat64 ? run<double>(threads) : run<float>(threads);
  }

 private:
  template <class T>
  void run(int64_t threads) {
    const int64_t tiles = static_cast<int64_t>(plan_.tiles.size()), splits = plan_.splits;
    const int64_t workers =
        std::max<int64_t>(1, std::min({threads, tiles * splits, plan_.useful_threads}));
    const int64_t panel_bytes = scratch_bytes(plan_, sizes_, tile_, item_size_);
    const int64_t worker_bytes = panel_bytes + (splits == 1 ? largest_sums() : 0);
    const Memory scratch = allocate(workers * worker_bytes);
    const auto accumulate = FASTMEM_FOR_CURRENT_ISA(accumulate_layer_grads);
    if (splits == 1) {
      // A thread's sums stay in its cache from tile to tile.
      share_out(workers, tiles, [&](int64_t worker, int64_t t) {
        char* memory = scratch.get() + worker * worker_bytes;
        accumulate(call_, task(t, 0, memory + panel_bytes), memory);
        collect_tile<T>(t, memory + panel_bytes);
      });
    } else {
      std::vector<int64_t> begin(1, 0);
      for (const PlannedTile& tile : plan_.tiles)
        begin.push_back(begin.back() + splits * sum_bytes(tile));
      const Memory sums = allocate(begin.back());
      share_out(workers, tiles * splits, [&](int64_t worker, int64_t i) {
        const int64_t t = i / splits, split = i % splits;
        accumulate(call_, task(t, split, sums.get() + begin[t] + split * sum_bytes(plan_.tiles[t])),
                   scratch.get() + worker * worker_bytes);
      });
      share_out(workers, tiles,
                [&](int64_t, int64_t t) { collect_tile<T>(t, sums.get() + begin[t]); });
    }
    collect_norms<T>();
  }

  int64_t sum_bytes(const PlannedTile& tile) const {
    return aligned(sums_wanted_ * plan_.sum_elements(tile, tile_.lanes) * item_size_);
  }

  int64_t largest_sums() const {
    int64_t bytes = 0;
    for (const PlannedTile& tile : plan_.tiles) bytes = std::max(bytes, sum_bytes(tile));
    return bytes;
  }

  GradTask task(int64_t t, int64_t split, void* sums) {
    const PlannedTile& tile = plan_.tiles[t];
    const int64_t first = plan_.first_sample(sizes_.samples, split);
    return {&tile.planned->layout,
            tile.group * sizes_.channels + tile.first_channel,
            tile.group * sizes_.outputs + tile.first_output,
            tile.outputs,
            first,
            plan_.first_sample(sizes_.samples, split + 1) - first,
            sums,
            results_.norms ? norms_.data() + t * sizes_.samples + first : nullptr};
  }

  template <class T>
  void collect_norms() {
    if (!results_.norms) return;
    for (int64_t sample = 0; sample < sizes_.samples; ++sample) {
      double norm = 0;
      for (size_t t = 0; t < plan_.tiles.size(); ++t) norm += norms_[t * sizes_.samples + sample];
      static_cast<T*>(results_.norms)[sample] = static_cast<T>(norm);
    }
  }

  // Adds up the parts of the samples, and takes each lane to its place in the weight.
  template <class T>
  void collect_tile(int64_t t, void* partial_sums) {
    const PlannedTile& tile = plan_.tiles[t];
    const int64_t elements = plan_.sum_elements(tile, tile_.lanes);
    T* sums = static_cast<T*>(partial_sums);
    const int64_t split_step = sum_bytes(tile) / static_cast<int64_t>(sizeof(T));
    for (int64_t split = 1; split < plan_.splits; ++split)
      for (int64_t i = 0; i < sums_wanted_ * elements; ++i) sums[i] += sums[split * split_step + i];
    const int64_t all_vectors = tile.planned->layout.vectors;
    const int64_t first = (tile.group * sizes_.outputs + tile.first_output) * sizes_.weights() +
                          tile.first_channel * sizes_.taps();
    for (int64_t output = 0, outputs; output < tile.outputs; output += outputs) {
      outputs = tile.planned->layout.tile.next_outputs(tile.outputs - output);
      for (int64_t vector = 0, vectors; vector < all_vectors; vector += vectors) {
        vectors = tile.planned->layout.tile.next_vectors(all_vectors - vector);
        const int64_t* weights = tile.planned->weight.data() + vector * tile_.lanes;
        for (void* result : results_.sums) {
          if (!result) continue;
          T* to = static_cast<T*>(result) + first + output * sizes_.weights();
          for (int64_t o = 0; o < outputs; ++o, to += sizes_.weights())
            for (int64_t lane = 0; lane < vectors * tile_.lanes; ++lane, ++sums)
              if (weights[lane] >= 0) to[weights[lane]] = *sums;
        }
      }
    }
  }

  const LayerGradSizes sizes_;
  LayerGradCall call_;
  const Results results_;
  const int64_t item_size_;
  const GradTile tile_;
  int64_t sums_wanted_ = 0;
  LayerGradPlan plan_;
  std::vector<double> norms_;  // [tiles][samples]
};

using Four = std::array<int64_t, 4>;
using Two = std::array<int64_t, 2>;

const void* end_of(uintptr_t start, const Four& shape, const Four& strides, int64_t item_size) {
  int64_t last = 0;
  for (int dim = 0; dim < 4; ++dim) last += (shape[dim] - 1) * strides[dim];
  return reinterpret_cast<const char*>(start) + (last + 1) * item_size;
}

void layer_grad_stats(uintptr_t a, const Four& a_shape, const Four& a_strides, uintptr_t delta,
                      const Four& delta_shape, const Four& delta_strides, int dtype_code,
                      const Two& kernel, const Two& stride, const Two& padding, const Two& dilation,
                      int64_t groups, uintptr_t sum, uintptr_t sum_sq, uintptr_t sum_abs,
                      uintptr_t norm_sq, int threads) {
  const DType dtype = static_cast<DType>(dtype_code);
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64)
    throw py::value_error("operands are float32 or float64");
  const LayerGradSizes sizes{a_shape[0],
                             groups,
                             a_shape[1] / groups,
                             delta_shape[1] / groups,
                             a_shape[2],
                             a_shape[3],
                             delta_shape[2],
                             delta_shape[3],
                             {kernel[0], kernel[1]},
                             {stride[0], stride[1]},
                             {padding[0], padding[1]},
                             {dilation[0], dilation[1]}};
  LayerGradCall call{};
  call.dtype = dtype;
  call.a = reinterpret_cast<const void*>(a);
  call.delta = reinterpret_cast<const void*>(delta);
  call.a_end = end_of(a, a_shape, a_strides, item_size(dtype));
  call.height = sizes.height;
  call.width = sizes.width;
  std::copy(a_strides.begin(), a_strides.end(), call.a_strides);
  std::copy(delta_strides.begin(), delta_strides.end(), call.delta_strides);
  call.out_height = sizes.out_height;
  call.out_width = sizes.out_width;
  call.delta_direct = (sizes.out_width == 1 || delta_strides[3] == 1) &&
                      (sizes.out_height == 1 || delta_strides[2] == sizes.out_width);
  const Results results{{reinterpret_cast<void*>(sum), reinterpret_cast<void*>(sum_sq),
                         reinterpret_cast<void*>(sum_abs)},
                        reinterpret_cast<void*>(norm_sq)};
  py::gil_scoped_release release;
  LayerGradRun(sizes, call, results).run(threads);
}

}  // namespace

void bind_layer_grad_stats(py::module_& module) {
  module.def("layer_grad_stats", &layer_grad_stats, py::arg("a"), py::arg("a_shape"),
             py::arg("a_strides"), py::arg("delta"), py::arg("delta_shape"),
             py::arg("delta_strides"), py::arg("dtype"), py::arg("kernel"), py::arg("stride"),
             py::arg("padding"), py::arg("dilation"), py::arg("groups"), py::arg("sum"),
             py::arg("sum_sq"), py::arg("sum_abs"), py::arg("norm_sq"), py::arg("threads"),
             "Sums over the samples of functions of each one's weight gradient, for [B, C, H, W] "
             "operands that are not empty. Results are contiguous; address 0 where not wanted.");
}

}  // namespace fastmem::cpu
