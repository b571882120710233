// Groups of threads that share a row, with the reductions that the row arithmetic asks for. Every
// thread of a group gets the same result, bit for bit.
#pragma once

#include <cuda_runtime.h>

#include "common/scalar.h"

namespace fastmem::cuda {

inline constexpr unsigned kWholeWarp = 0xffffffffu;

// `Lanes` neighbouring lanes of a warp; other lanes may be elsewhere.
template <int Lanes>
struct Lanewise {
  static constexpr int kThreads = Lanes;
  template <typename A>
  __device__ __forceinline__ A sum(A value) const {
#pragma unroll
    for (int step = Lanes / 2; step > 0; step /= 2) {
      value += __shfl_xor_sync(mask(), value, step);
    }
    return value;
  }
  template <typename A>
  __device__ __forceinline__ A largest(A value) const {
#pragma unroll
    for (int step = Lanes / 2; step > 0; step /= 2) {
      value = fastmem::larger(value, __shfl_xor_sync(mask(), value, step));
    }
    return value;
  }
  __device__ __forceinline__ int smallest(int value) const {
#pragma unroll
    for (int step = Lanes / 2; step > 0; step /= 2) {
      value = min(value, __shfl_xor_sync(mask(), value, step));
    }
    return value;
  }

 private:
  __device__ __forceinline__ static unsigned mask() {
    if constexpr (Lanes == 32) return kWholeWarp;
    return ((1u << Lanes % 32) - 1) << threadIdx.x % 32 / Lanes * Lanes;
  }
};

// A whole block, whose shared memory holds one value of each warp.
template <int Threads>
struct Blockwise {
  static constexpr int kThreads = Threads;
  template <typename A>
  __device__ __forceinline__ A sum(A value) const {
    return across_warps(Lanewise<32>{}.sum(value), [](A a, A b) { return a + b; });
  }
  template <typename A>
  __device__ __forceinline__ A largest(A value) const {
    return across_warps(Lanewise<32>{}.largest(value), [](A a, A b) { return larger(a, b); });
  }
  __device__ __forceinline__ int smallest(int value) const {
    return across_warps(Lanewise<32>{}.smallest(value), [](int a, int b) { return min(a, b); });
  }

 private:
  template <typename A, typename Combine>
  __device__ __forceinline__ A across_warps(A value, Combine combine) const {
    __shared__ A of_warp[Threads / 32];
    __syncthreads();  // the values of the reduction before have been read
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    A result = of_warp[0];
#pragma unroll
    for (int w = 1; w < Threads / 32; ++w) result = combine(result, of_warp[w]);
    return result;
  }
};

}  // namespace fastmem::cuda
