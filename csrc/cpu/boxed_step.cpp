#include "cpu/kernels/boxed_step.h"

#include <pybind11/pybind11.h>

#include <algorithm>

#include "common/dtype.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace fastmem::cpu {

FASTMEM_DECLARE_FOR_EVERY_ISA(extern const BoxedStepKernels boxed_step)

namespace {

// Elements that one turn of a thread takes.
constexpr int64_t kPiece = 1 << 13;

void run(uintptr_t x, uintptr_t gradient, uintptr_t moment, uintptr_t square, uintptr_t rate,
         uintptr_t keep, uintptr_t low, uintptr_t high, uintptr_t spread, int64_t problems,
         int64_t elements, double weight, double momentum, double decay, double decay_sq,
         double least, int dtype, int threads) {
  const bool is_double = static_cast<DType>(dtype) == DType::kFloat64;
  if (!is_double && static_cast<DType>(dtype) != DType::kFloat32)
    throw py::value_error("boxed_step: float32 or float64");
  const BoxedStep call{reinterpret_cast<void*>(x),
                       reinterpret_cast<const void*>(gradient),
                       reinterpret_cast<void*>(moment),
                       reinterpret_cast<void*>(square),
                       reinterpret_cast<const void*>(rate),
                       reinterpret_cast<const void*>(keep),
                       reinterpret_cast<const void*>(low),
                       reinterpret_cast<const void*>(high),
                       reinterpret_cast<const void*>(spread),
                       elements,
                       weight,
                       momentum,
                       decay,
                       decay_sq,
                       least};
  const auto kernel = FASTMEM_FOR_CURRENT_ISA(boxed_step).of[is_double];
  const int64_t pieces = (elements + kPiece - 1) / kPiece;
  const py::gil_scoped_release released;
  parallel_rows(problems * pieces, std::min(elements, kPiece), 1, threads,
                [&](int64_t first, int64_t last) {
                  for (int64_t at = first; at < last; ++at) {
                    const int64_t begin = at % pieces * kPiece;
                    kernel(call, at / pieces, begin, std::min(begin + kPiece, elements));
                  }
                });
}

}  // namespace

void bind_boxed_step(py::module_& module) {
  module.def("boxed_step", &run,
             "A step by momentum or Adam with a penalty outside a box, for contiguous problems.");
}

}  // namespace fastmem::cpu
