// Many perceptrons at once: one model a thread.
#include "cpu/kernels/mlp_sgd.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "common/dtype.h"
#include "cpu/arguments.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace fastmem::cpu {

FASTMEM_DECLARE_FOR_EVERY_ISA(extern const MlpKernels mlp_sgd)

namespace {

using Integers = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

// A row of `layers` is an MlpLayer; a row of `visits` is (number of layers, x, x_stride, y, rows,
// bounds, rates, losses, steps).
constexpr py::ssize_t kLayerFields = 6, kVisitFields = 9;

template <class T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(address);
}

void run(const Integers& layer_rows, const Integers& visit_rows, int dtype, double momentum,
         double weight_decay, double label_smoothing, bool nesterov, int threads) {
  const bool is_double = static_cast<DType>(dtype) == DType::kFloat64;
  if ((dtype != static_cast<int>(DType::kFloat32) && !is_double) || layer_rows.ndim() != 2 ||
      layer_rows.shape(1) != kLayerFields || visit_rows.ndim() != 2 ||
      visit_rows.shape(1) != kVisitFields)
    throw py::value_error("mlp_sgd: arguments");
  std::vector<MlpLayer> layers;
  for (py::ssize_t l = 0; l < layer_rows.shape(0); ++l) {
    const int64_t* row = layer_rows.data(l, 0);
    layers.push_back({pointer<void>(row[0]), pointer<void>(row[1]), pointer<void>(row[2]),
                      pointer<void>(row[3]), row[4], row[5]});
  }
  std::vector<MlpVisit> visits;
  const MlpLayer* next = layers.data();
  for (py::ssize_t v = 0; v < visit_rows.shape(0); ++v) {
    const int64_t* row = visit_rows.data(v, 0);
    visits.push_back({.layers = next,
                      .depth = row[0],
                      .x = pointer<const void>(row[1]),
                      .x_stride = row[2],
                      .y = pointer<const int64_t>(row[3]),
                      .rows = pointer<const int64_t>(row[4]),
                      .bounds = pointer<const int64_t>(row[5]),
                      .rates = pointer<const double>(row[6]),
                      .losses = pointer<double>(row[7]),
                      .steps = row[8]});
    next += row[0];
  }
  if (next != layers.data() + layers.size()) throw py::value_error("mlp_sgd: layers");
  const MlpRule rule{momentum, weight_decay, label_smoothing, nesterov};
  const MlpKernel kernel = FASTMEM_FOR_CURRENT_ISA(mlp_sgd).of[is_double];

  struct Context {
    const std::vector<MlpVisit>& visits;
    const MlpRule& rule;
    const MlpKernel& kernel;
    std::atomic<bool> out_of_memory{false};
  } context{visits, rule, kernel};
  {
    const py::gil_scoped_release released;
    run_parts(
        threads, static_cast<int64_t>(visits.size()),
        [](void* opaque, int64_t part) {
          Context& c = *static_cast<Context*>(opaque);
          const Scratch scratch(c.kernel.scratch_bytes(c.visits[part]));
          if (scratch.failed()) {
            c.out_of_memory = true;
          } else {
            c.kernel.run(c.visits[part], c.rule, scratch.get());
          }
        },
        &context);
  }
  if (context.out_of_memory) throw std::bad_alloc();
}

}  // namespace

void bind_mlp_sgd(py::module_& module) {
  module.def(
      "mlp_sgd", &run, py::arg("layers"), py::arg("visits"), py::arg("dtype"), py::arg("momentum"),
      py::arg("weight_decay"), py::arg("label_smoothing"), py::arg("nesterov"), py::arg("threads"),
      "Steps of gradient descent on perceptrons, each on one thread. Rows of layers: weight, "
      "bias, their momenta, inputs, outputs; of visits: number of layers, x, its row stride, "
      "y, rows, bounds, rates, losses, steps.");
}

}  // namespace fastmem::cpu
