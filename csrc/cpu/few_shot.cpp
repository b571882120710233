// Few-shot episodes: shares of the nearest known records, and label propagation among those asked
// about.
#include "cpu/kernels/few_shot.h"

#include <pybind11/pybind11.h>

#include <atomic>
#include <cstdint>
#include <new>

#include "cpu/arguments.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace fastmem::cpu {

FASTMEM_DECLARE_FOR_EVERY_ISA(extern const FewShotKernels few_shot)

namespace {

template <class Call>
void run(const Call& call, int64_t episodes, int64_t work, int threads, int64_t bytes,
         void (*kernel)(const Call&, int64_t, int64_t, void*)) {
  std::atomic<bool> failed{false};
  {
    const py::gil_scoped_release released;
    parallel_rows(episodes, work, 1, threads, [&](int64_t begin, int64_t end) {
      const Scratch memory(bytes);
      if (memory.failed()) {
        failed = true;
        return;
      }
      kernel(call, begin, end, memory.get());
    });
  }
  if (failed) throw std::bad_alloc();
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void nearest_shares(uintptr_t records, uintptr_t support, uintptr_t members, uintptr_t asked,
                    uintptr_t centre, uintptr_t shares, int64_t episodes, int64_t known,
                    int64_t count, int64_t width, int64_t sizes, bool on_support, bool normalise,
                    int threads) {
  if (sizes < 1 || 2 * sizes - 1 > known + 2) throw py::value_error("nearest_shares: sizes");
  const NearestShares call{pointer<const double>(records),
                           pointer<const int64_t>(support),
                           pointer<const bool>(members),
                           pointer<const int64_t>(asked),
                           pointer<const double>(centre),
                           pointer<double>(shares),
                           known,
                           count,
                           width,
                           sizes,
                           on_support,
                           normalise};
  const FewShotKernels kernels = FASTMEM_FOR_CURRENT_ISA(few_shot);
  run(call, episodes, count * (known + 2) * width, threads, kernels.nearest_bytes(call),
      kernels.nearest);
}

void label_propagation(uintptr_t distances, uintptr_t apart, uintptr_t members, uintptr_t lam,
                       uintptr_t k, uintptr_t log_odds, int64_t episodes, int64_t count,
                       int64_t prototypes, int64_t grid, int threads) {
  const LabelPropagation call{pointer<const double>(distances),
                              pointer<const double>(apart),
                              pointer<const bool>(members),
                              pointer<const double>(lam),
                              pointer<const int64_t>(k),
                              pointer<double>(log_odds),
                              count,
                              prototypes,
                              grid};
  const FewShotKernels kernels = FASTMEM_FOR_CURRENT_ISA(few_shot);
  run(call, episodes, grid * count * prototypes * 64, threads, kernels.propagation_bytes(call),
      kernels.propagation);
}

}  // namespace

void bind_few_shot(py::module_& module) {
  module.def("nearest_shares", &nearest_shares, py::arg("records"), py::arg("support"),
             py::arg("members"), py::arg("asked"), py::arg("centre"), py::arg("shares"),
             py::arg("episodes"), py::arg("known"), py::arg("count"), py::arg("width"),
             py::arg("sizes"), py::arg("on_support"), py::arg("normalise"), py::arg("threads"),
             "What members hold of 1/d among the 1, 3, 5, ... nearest known records.");
  module.def("label_propagation", &label_propagation, py::arg("distances"), py::arg("apart"),
             py::arg("members"), py::arg("lam"), py::arg("k"), py::arg("log_odds"),
             py::arg("episodes"), py::arg("count"), py::arg("prototypes"), py::arg("grid"),
             py::arg("threads"), "Label propagation to convergence, for every parameter.");
}

}  // namespace fastmem::cpu
