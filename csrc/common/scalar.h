// Scalar arithmetic that rounds the same way in a kernel and in a host-compiled test of it.
//
// A compiler for GPUs fuses products into additions where it can. Where a rounding error is
// computed on purpose, that would count it twice, so those places say `product` or `fused`.
#pragma once

#include <cmath>
#include <limits>

#if defined(__CUDACC__)
#define FASTMEM_HD __host__ __device__ __forceinline__
#define FASTMEM_UNROLL _Pragma("unroll")
#define FASTMEM_NO_UNROLL _Pragma("unroll 1")
#else
#define FASTMEM_HD inline
#define FASTMEM_UNROLL
#define FASTMEM_NO_UNROLL
#endif

namespace fastmem {

template <typename A>
inline constexpr A kLog2e = static_cast<A>(1.4426950408889634073599);

template <typename A>
inline constexpr A kInfinity = std::numeric_limits<A>::infinity();

template <typename A>
inline constexpr A kNan = std::numeric_limits<A>::quiet_NaN();

// Far below every logit in use, yet finite: what stands where a row has no more elements.
template <typename A>
inline constexpr A kFarBelow = -std::numeric_limits<A>::max() / 2;

// The product, rounded once and never fused into what follows.
template <typename A>
FASTMEM_HD A product(A a, A b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(A) == 4) return __fmul_rn(a, b);
  if constexpr (sizeof(A) == 8) return __dmul_rn(a, b);
#endif
  return a * b;
}

// a b + c with one rounding.
template <typename A>
FASTMEM_HD A fused(A a, A b, A c) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(A) == 4) return __fmaf_rn(a, b, c);
  if constexpr (sizeof(A) == 8) return __fma_rn(a, b, c);
#endif
  return std::fma(a, b, c);
}

// The larger operand; a NaN gives way to the other one, so NaN must be caught elsewhere.
template <typename A>
FASTMEM_HD A larger(A a, A b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(A) == 4) return fmaxf(a, b);
  if constexpr (sizeof(A) == 8) return fmax(a, b);
#endif
  return std::fmax(a, b);
}

// 2^x. On the GPU one instruction in float32 (2 units in the last place; results below the normal
// range become 0).
template <typename A>
FASTMEM_HD A power_of_two(A x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(A) == 4) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  if constexpr (sizeof(A) == 8) return ::exp2(x);
#endif
  return std::exp2(x);
}

// Natural logarithm, accurate; for values of a row, not of an element.
template <typename A>
FASTMEM_HD A natural_log(A x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(A) == 4) return logf(x);
  if constexpr (sizeof(A) == 8) return ::log(x);
#endif
  return std::log(x);
}

template <typename A>
FASTMEM_HD A natural_log1p(A x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(A) == 4) return log1pf(x);
  if constexpr (sizeof(A) == 8) return ::log1p(x);
#endif
  return std::log1p(x);
}

template <typename A>
FASTMEM_HD A magnitude(A x) {
  if constexpr (sizeof(A) == 4) return fabsf(x);
  if constexpr (sizeof(A) == 8) return fabs(x);
}

// Quotient for merging sums, where its last two bits do not matter.
template <typename A>
FASTMEM_HD A quotient(A a, A b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(A) == 4) return __fdividef(a, b);
#endif
  return a / b;
}

// NaN is not finite.
template <typename A>
FASTMEM_HD bool is_finite(A x) {
  return magnitude(x) <= std::numeric_limits<A>::max();
}

// A group of one thread, with the reductions that every group of threads has.
struct Alone {
  template <typename A>
  FASTMEM_HD A sum(A value) const {
    return value;
  }
  template <typename A>
  FASTMEM_HD A largest(A value) const {
    return value;
  }
};

}  // namespace fastmem
