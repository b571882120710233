// fastmem._cpu: operators on raw pointers, sizes and strides. It knows nothing of torch; who calls
// it checks arguments and owns memory.
#include <pybind11/pybind11.h>

#include "cpu/isa.h"

PYBIND11_MODULE(_cpu, module) {
  using namespace fastmem::cpu;
  module.doc() = "CPU kernels of fastmem's operators.";
  bind_isa(module);
}
