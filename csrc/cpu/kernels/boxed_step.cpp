// The loops are plain ones: the compiler makes registers of them.
#include "cpu/kernels/boxed_step.h"

#include <cmath>

namespace fastmem::cpu::FASTMEM_ISA {
namespace {

template <class T>
T gradient_of(T x, T gradient, T low, T high, T twice_weight) {
  const T below = x < low ? low : x;  // (NaN is on neither side)
  return gradient + twice_weight * (x - (below > high ? high : below));
}

template <class T>
void step(const BoxedStep& call, int64_t problem, int64_t begin, int64_t end) {
  const auto of_problem = [problem](const void* values) {
    return static_cast<const T*>(values)[problem];
  };
  const int64_t start = problem * call.elements;
  T* __restrict x = static_cast<T*>(call.x) + start;
  T* __restrict moment = static_cast<T*>(call.moment) + start;
  T* __restrict square = call.square == nullptr ? nullptr : static_cast<T*>(call.square) + start;
  const T* __restrict gradient = static_cast<const T*>(call.gradient) + start;
  const T rate = of_problem(call.rate), keep = of_problem(call.keep), low = of_problem(call.low),
          high = of_problem(call.high), twice_weight = static_cast<T>(2 * call.weight);
  if (rate == 0) {
    for (int64_t i = begin; i < end; ++i) moment[i] = 0;
    for (int64_t i = begin; square != nullptr && i < end; ++i) square[i] = 0;
  } else if (square == nullptr) {
    const T momentum = static_cast<T>(call.momentum);
    for (int64_t i = begin; i < end; ++i) {
      const T g = gradient_of(x[i], gradient[i], low, high, twice_weight);
      moment[i] = momentum * (keep * moment[i]) + g;
      x[i] -= moment[i] * rate;
    }
  } else {
    const T spread = of_problem(call.spread), least = static_cast<T>(call.least),
            share = static_cast<T>(1 - call.decay), share_sq = static_cast<T>(1 - call.decay_sq);
    for (int64_t i = begin; i < end; ++i) {
      const T g = gradient_of(x[i], gradient[i], low, high, twice_weight);
      const T mean = keep * moment[i], mean_sq = keep * square[i];
      moment[i] = mean + (g - mean) * share;
      square[i] = mean_sq + (g * g - mean_sq) * share_sq;
      x[i] -= rate * moment[i] / (spread * std::sqrt(square[i]) + least);
    }
  }
}

}  // namespace

extern const BoxedStepKernels boxed_step;
const BoxedStepKernels boxed_step = {{&step<float>, &step<double>}};

}  // namespace fastmem::cpu::FASTMEM_ISA
