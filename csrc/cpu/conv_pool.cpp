#include "cpu/kernels/conv_pool.h"

#include <pybind11/pybind11.h>

#include "common/dtype.h"
#include "cpu/arguments.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace fastmem::cpu {

FASTMEM_DECLARE_FOR_EVERY_ISA(extern const ConvPoolKernels conv_pool_forward)
FASTMEM_DECLARE_FOR_EVERY_ISA(extern const ConvPoolKernels conv_pool_backward)

namespace {

void run(const ConvPool& call, const ConvPoolKernel& kernel, int threads) {
  const py::gil_scoped_release released;
  const Scratch scratch(kernel.scratch_bytes(call));
  if (scratch.failed()) throw std::bad_alloc();
  struct Context {
    const ConvPool& call;
    const ConvPoolKernel& kernel;
    void* scratch;
  } context{call, kernel, scratch.get()};
  kernel.start(call, scratch.get());
  run_parts(
      threads, call.parts(),
      [](void* opaque, int64_t part) {
        const Context& c = *static_cast<Context*>(opaque);
        c.kernel.part(c.call, c.scratch, part);
      },
      &context);
  kernel.finish(call, scratch.get());
}

int type_index(int dtype) {
  const bool is_double = static_cast<DType>(dtype) == DType::kFloat64;
  if (dtype != static_cast<int>(DType::kFloat32) && !is_double)
    throw py::value_error("conv_relu_max_pool: element type");
  return is_double;
}

ConvPool call_of(uintptr_t x, uintptr_t weight, uintptr_t y, uintptr_t winners,
                 const py::tuple& image, const py::tuple& kernel, const py::tuple& padding) {
  if (image.size() != 4 || kernel.size() != 3 || padding.size() != 2)
    throw py::value_error("conv_relu_max_pool: sizes");
  ConvPool call{};
  call.x = reinterpret_cast<const void*>(x);
  call.weight = reinterpret_cast<const void*>(weight);
  call.y = reinterpret_cast<void*>(y);
  call.winners = reinterpret_cast<uint8_t*>(winners);
  call.images = item(image, 0);
  call.height = item(image, 1);
  call.width = item(image, 2);
  call.channels = item(image, 3);
  call.outputs = item(kernel, 0);
  call.kernel_height = item(kernel, 1);
  call.kernel_width = item(kernel, 2);
  call.pad_height = item(padding, 0);
  call.pad_width = item(padding, 1);
  return call;
}

void forward(uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t y, uintptr_t winners,
             const py::tuple& image, const py::tuple& kernel, const py::tuple& padding, int dtype,
             int threads) {
  ConvPool call = call_of(x, weight, y, winners, image, kernel, padding);
  call.bias = reinterpret_cast<const void*>(bias);
  run(call, FASTMEM_FOR_CURRENT_ISA(conv_pool_forward).of[type_index(dtype)], threads);
}

void backward(uintptr_t x, uintptr_t weight, uintptr_t gradient, uintptr_t winners,
              uintptr_t x_gradient, uintptr_t weight_gradient, uintptr_t bias_gradient,
              const py::tuple& image, const py::tuple& kernel, const py::tuple& padding, int dtype,
              int threads) {
  ConvPool call = call_of(x, weight, gradient, winners, image, kernel, padding);
  call.x_gradient = reinterpret_cast<void*>(x_gradient);
  call.weight_gradient = reinterpret_cast<void*>(weight_gradient);
  call.bias_gradient = reinterpret_cast<void*>(bias_gradient);
  run(call, FASTMEM_FOR_CURRENT_ISA(conv_pool_backward).of[type_index(dtype)], threads);
}

}  // namespace

void bind_conv_pool(py::module_& module) {
  module.def(
      "conv_relu_max_pool", &forward, py::arg("x"), py::arg("weight"), py::arg("bias"),
      py::arg("y"), py::arg("winners"), py::arg("image"), py::arg("kernel"), py::arg("padding"),
      py::arg("dtype"), py::arg("threads"),
      "Convolution, ReLU and 2 x 2 max pooling, channels last. image: images, height, width, "
      "channels; kernel: outputs, height, width.");
  module.def("conv_relu_max_pool_backward", &backward, py::arg("x"), py::arg("weight"),
             py::arg("gradient"), py::arg("winners"), py::arg("x_gradient"),
             py::arg("weight_gradient"), py::arg("bias_gradient"), py::arg("image"),
             py::arg("kernel"), py::arg("padding"), py::arg("dtype"), py::arg("threads"),
             "Its gradients; none by the images where x_gradient is 0.");
}

}  // namespace fastmem::cpu
