#include "cpu/logit_stats.h"

#include <pybind11/pybind11.h>

#include <atomic>

#include "common/dtype.h"
#include "cpu/arguments.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace fastmem::cpu {

FASTMEM_DECLARE_FOR_EVERY_ISA(extern const LogitStatsKernels logit_stats)

namespace {

// Cuts between the threads fall on multiples of this many rows: a register of the widest set.
constexpr int64_t kGranule = 16;

template <class Args, class Kernel>
void run(const Args& args, Kernel kernel, int threads) {
  std::atomic<bool> out_of_memory{false};
  {
    const py::gil_scoped_release released;
    parallel_rows(row_count(args.rows), args.classes, kGranule, threads,
                  [&](int64_t begin, int64_t end) {
                    const Scratch scratch(args.classes * static_cast<int64_t>(sizeof(double)));
                    if (scratch.failed()) {
                      out_of_memory = true;
                    } else {
                      kernel(args, begin, end, scratch.get());
                    }
                  });
  }
  if (out_of_memory) throw std::bad_alloc();
}

template <class Args>
Args arguments(uintptr_t logits, const py::tuple& sizes, const py::tuple& strides, uintptr_t labels,
               const py::tuple& label_sizes, const py::tuple& label_strides, int dtype) {
  if (!is_dtype(dtype) || sizes.size() != label_sizes.size() + 1)
    throw py::value_error("logit_stats: arguments");
  const size_t leading = label_sizes.size();
  Args args{};
  args.logits = reinterpret_cast<const void*>(logits);
  args.labels = reinterpret_cast<const int64_t*>(labels);
  args.rows = row_map(leading, {sizes, strides}, {label_sizes, label_strides});
  args.classes = item(sizes, leading);
  args.class_stride = item(strides, leading);
  return args;
}

void forward(uintptr_t logits, const py::tuple& sizes, const py::tuple& strides, uintptr_t labels,
             const py::tuple& label_sizes, const py::tuple& label_strides, int dtype,
             const py::tuple& stats, int threads) {
  auto args = arguments<LogitStatsForward>(logits, sizes, strides, labels, label_sizes,
                                           label_strides, dtype);
  for (size_t i = 0; i < stats.size(); ++i) args.stats[i] = reinterpret_cast<void*>(item(stats, i));
  run(args, FASTMEM_FOR_CURRENT_ISA(logit_stats).forward[dtype], threads);
}

void backward(uintptr_t logits, const py::tuple& sizes, const py::tuple& strides, uintptr_t labels,
              const py::tuple& label_sizes, const py::tuple& label_strides, int dtype,
              const py::tuple& grads, uintptr_t gradient, int threads) {
  auto args = arguments<LogitStatsBackward>(logits, sizes, strides, labels, label_sizes,
                                            label_strides, dtype);
  for (size_t i = 0; i < grads.size(); ++i)
    args.grads[i] = reinterpret_cast<const void*>(item(grads, i));
  args.gradient = reinterpret_cast<void*>(gradient);
  run(args, FASTMEM_FOR_CURRENT_ISA(logit_stats).backward[dtype], threads);
}

}  // namespace

void bind_logit_stats(py::module_& module) {
  module.def("logit_stats_forward", &forward, py::arg("logits"), py::arg("sizes"),
             py::arg("strides"), py::arg("labels"), py::arg("label_sizes"),
             py::arg("label_strides"), py::arg("dtype"), py::arg("stats"), py::arg("threads"),
             "Margin, loss, hinge, max_prob and entropy of every row, or the margin alone.");
  module.def("logit_stats_backward", &backward, py::arg("logits"), py::arg("sizes"),
             py::arg("strides"), py::arg("labels"), py::arg("label_sizes"),
             py::arg("label_strides"), py::arg("dtype"), py::arg("grads"), py::arg("gradient"),
             py::arg("threads"),
             "Gradient of the logits from those of the statistics (address 0: not used).");
}

}  // namespace fastmem::cpu
