// Which of the compiled instruction sets the kernels use: the widest that the processor has, unless
// told otherwise.
#pragma once

#include <pybind11/pybind11.h>

namespace fastmem::cpu {

enum class Isa { kGeneric, kAvx2, kAvx512 };

Isa current_isa();

// isa() -> str, isas() -> list[str], set_isa(name). The environment variable FASTMEM_ISA sets the
// first choice.
void bind_isa(pybind11::module_& module);

// The object of this name in the namespace of the current instruction set.
#if defined(FASTMEM_X86)
#define FASTMEM_FOR_CURRENT_ISA(object)                           \
  (current_isa() == Isa::kAvx512 ? ::fastmem::cpu::avx512::object \
   : current_isa() == Isa::kAvx2 ? ::fastmem::cpu::avx2::object   \
                                 : ::fastmem::cpu::generic::object)
#define FASTMEM_DECLARE_FOR_EVERY_ISA(declaration) \
  namespace generic {                              \
  declaration;                                     \
  }                                                \
  namespace avx2 {                                 \
  declaration;                                     \
  }                                                \
  namespace avx512 {                               \
  declaration;                                     \
  }
#else
#define FASTMEM_FOR_CURRENT_ISA(object) (::fastmem::cpu::generic::object)
#define FASTMEM_DECLARE_FOR_EVERY_ISA(declaration) \
  namespace generic {                              \
  declaration;                                     \
  }
#endif

}  // namespace fastmem::cpu
