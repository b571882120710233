#include "cpu/kernels/relu_max_pool.h"

#include <pybind11/pybind11.h>

#include "common/dtype.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace fastmem::cpu {

FASTMEM_DECLARE_FOR_EVERY_ISA(extern const ReluMaxPoolKernels relu_max_pool)

namespace {

void run(uintptr_t x, uintptr_t y, uintptr_t winners, int64_t images, int64_t height, int64_t width,
         int64_t channels, int dtype, bool backward, int threads) {
  const bool is_double = static_cast<DType>(dtype) == DType::kFloat64;
  if (dtype != static_cast<int>(DType::kFloat32) && !is_double)
    throw py::value_error("relu_max_pool: arguments");
  const ReluMaxPool call{reinterpret_cast<void*>(x),
                         reinterpret_cast<void*>(y),
                         reinterpret_cast<uint8_t*>(winners),
                         height,
                         width,
                         channels};
  const ReluMaxPoolKernel kernels = FASTMEM_FOR_CURRENT_ISA(relu_max_pool).of[is_double];
  const auto kernel = backward ? kernels.backward : kernels.forward;
  const py::gil_scoped_release released;
  parallel_rows(images * (height / 2), 2 * width * channels, 1, threads,
                [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
}

}  // namespace

void bind_relu_max_pool(py::module_& module) {
  module.def("relu_max_pool", &run, py::arg("x"), py::arg("y"), py::arg("winners"),
             py::arg("images"), py::arg("height"), py::arg("width"), py::arg("channels"),
             py::arg("dtype"), py::arg("backward"), py::arg("threads"),
             "2 x 2 max pooling and ReLU of channels-last images, or the gradient's way back.");
}

}  // namespace fastmem::cpu
