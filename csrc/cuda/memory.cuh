// Loads and stores: elements to the type they are computed in, 16 bytes at a time where possible.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "common/dtype.h"

namespace fastmem::cuda {

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Blocks of 128 threads that must fit on a multiprocessor at once. Stated because the compiler
// otherwise aims at more of them and spills registers.
template <typename T>
inline constexpr int kResident = sizeof(T) == 8 ? 2 : 4;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(Half x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ __forceinline__ float widen(BFloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

__device__ __forceinline__ void narrow(float x, float& out) { out = x; }
__device__ __forceinline__ void narrow(double x, double& out) { out = x; }
__device__ __forceinline__ void narrow(float x, Half& out) {
  out.bits = __half_as_ushort(__float2half_rn(x));
}
__device__ __forceinline__ void narrow(float x, BFloat16& out) {
  out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

// The shared memory that a launch asks for.
__device__ __forceinline__ void* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ uint4 shared[];
  return shared;
#else
  return fastmem_emulator::dynamic_shared();
#endif
}

// As many elements as one 16-byte access moves.
template <typename T>
inline constexpr int kPack = 16 / sizeof(T);

template <typename T>
struct alignas(16) Pack {
  T values[kPack<T>];
};

template <typename T>
__device__ __forceinline__ Pack<T> load_pack(const T* from) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  Pack<T> pack;
  __builtin_memcpy(&pack, &raw, sizeof(raw));
  return pack;
}

template <typename T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T>& pack) {
  uint4 raw;
  __builtin_memcpy(&raw, &pack, sizeof(raw));
  *reinterpret_cast<uint4*>(to) = raw;
}

// Elements until the next 16-byte boundary; addresses are multiples of the element's size.
template <typename T>
__device__ __forceinline__ int elements_to_boundary(const T* from) {
  return static_cast<int>((0 - reinterpret_cast<uintptr_t>(from)) % 16 / sizeof(T));
}

}  // namespace fastmem::cuda
