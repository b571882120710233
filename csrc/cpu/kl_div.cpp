#include "cpu/kl_div.h"

#include <pybind11/pybind11.h>

#include <atomic>

#include "common/dtype.h"
#include "cpu/arguments.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace fastmem::cpu {

FASTMEM_DECLARE_FOR_EVERY_ISA(extern const KlDivForwardKernels kl_div_forward)

namespace {

// Cuts between the threads fall on multiples of this many rows: at least two registers of the
// widest set.
constexpr int64_t kGranule = 32;

int64_t forward_scratch(const KlDivForward& args, DType dtype) {
  const int inner = args.rows.dims - 1;
  const bool shares_p = inner >= 0 && args.rows.strides[0][inner] == 0;
  if (args.p_class_stride == 1 && args.q_class_stride == 1 && !shares_p) return 0;
  return args.classes * (2 * item_size(dtype) + static_cast<int64_t>(sizeof(float)));
}

void forward(uintptr_t p, const py::tuple& p_sizes, const py::tuple& p_strides, uintptr_t q,
             const py::tuple& q_sizes, const py::tuple& q_strides, int dtype, double temperature,
             uintptr_t kl, uintptr_t lse_p, uintptr_t centre, uintptr_t shift, int threads) {
  const size_t leading = p_sizes.size() - 1;
  if (!is_dtype(dtype) || q_sizes.size() != p_sizes.size())
    throw py::value_error("kl_div_forward: arguments");
  const KlDivForward args{
      .p = reinterpret_cast<const void*>(p),
      .q = reinterpret_cast<const void*>(q),
      .rows = row_map<2>(leading, {{{p_sizes, p_strides}, {q_sizes, q_strides}}}),
      .classes = item(p_sizes, leading),
      .p_class_stride = item(p_strides, leading),
      .q_class_stride = item(q_strides, leading),
      .temperature = temperature,
      .kl = reinterpret_cast<void*>(kl),
      .lse_p = reinterpret_cast<void*>(lse_p),
      .centre = reinterpret_cast<void*>(centre),
      .shift = reinterpret_cast<void*>(shift),
  };
  const auto kernel = FASTMEM_FOR_CURRENT_ISA(kl_div_forward).run[dtype];
  const int64_t scratch_bytes = forward_scratch(args, static_cast<DType>(dtype));
  std::atomic<bool> out_of_memory{false};
  {
    const py::gil_scoped_release released;
    parallel_rows(row_count(args.rows), args.classes, kGranule, threads,
                  [&](int64_t begin, int64_t end) {
                    const Scratch scratch(scratch_bytes);
                    if (scratch.failed()) {
                      out_of_memory = true;
                    } else {
                      kernel(args, begin, end, scratch.get());
                    }
                  });
  }
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace

void bind_kl_div(py::module_& module) {
  module.def("kl_div_forward", &forward, py::arg("p"), py::arg("p_sizes"), py::arg("p_strides"),
             py::arg("q"), py::arg("q_sizes"), py::arg("q_strides"), py::arg("dtype"),
             py::arg("temperature"), py::arg("kl"), py::arg("lse_p"), py::arg("centre"),
             py::arg("shift"), py::arg("threads"),
             "KL of every row, and what the backward pass needs of it.");
}

}  // namespace fastmem::cpu
