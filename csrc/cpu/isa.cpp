#include "cpu/isa.h"

#include <pybind11/stl.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <vector>

namespace py = pybind11;

namespace fastmem::cpu {
namespace {

constexpr const char* kNames[] = {"generic", "avx2", "avx512"};

bool runs(Isa isa) {
  if (isa == Isa::kGeneric) return true;
#if defined(FASTMEM_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (isa == Isa::kAvx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512cd");
#else
  return false;
#endif
}

std::vector<std::string> usable() {
  std::vector<std::string> names;
  for (const Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512}) {
    if (runs(isa)) names.emplace_back(kNames[static_cast<int>(isa)]);
  }
  return names;
}

std::atomic<Isa> current{Isa::kGeneric};

void set_isa(const std::string& name) {
  for (const Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512}) {
    if (runs(isa) && name == kNames[static_cast<int>(isa)]) {
      current.store(isa, std::memory_order_relaxed);
      return;
    }
  }
  std::string problem = "instruction set '" + name + "' is not one that this processor runs:";
  for (const std::string& known : usable()) problem += " " + known;
  throw py::value_error(problem);
}

}  // namespace

Isa current_isa() { return current.load(std::memory_order_relaxed); }

void bind_isa(py::module_& module) {
  const char* asked = std::getenv("FASTMEM_ISA");
  try {
    set_isa(asked != nullptr && *asked != '\0' ? asked : usable().back());
  } catch (const py::value_error& error) {
    throw py::import_error(std::string("FASTMEM_ISA: ") + error.what());
  }
  module.def(
      "isa", [] { return kNames[static_cast<int>(current_isa())]; },
      "The instruction set that the kernels use.");
  module.def("isas", &usable,
             "Every instruction set that was built and that this processor runs, widest last.");
  module.def("set_isa", &set_isa, py::arg("name"), "Use another of isas(), in the whole process.");
}

}  // namespace fastmem::cpu
