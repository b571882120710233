// What the kernels of boxed_step are handed; see fastmem/ops/boxed_step.py for the definition.
#pragma once

#include <cstdint>

namespace fastmem::cpu {

// Problems of `elements` each, one after the other.
struct BoxedStep {
  void* x;
  const void* gradient;
  void* moment;
  void* square;      // Adam's, or null
  const void* rate;  // [problems], as the next ones
  const void* keep;
  const void* low;
  const void* high;
  const void* spread;  // beside square
  int64_t elements;
  double weight, momentum, decay, decay_sq, least;
};

struct BoxedStepKernels {
  // Elements [begin, end) of a problem; 0: float, 1: double.
  void (*of[2])(const BoxedStep& call, int64_t problem, int64_t begin, int64_t end);
};

}  // namespace fastmem::cpu
