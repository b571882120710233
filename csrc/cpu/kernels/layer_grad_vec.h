// Vectors of one register for the kernel of layer_grad_stats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(FASTMEM_ISA_avx512) || defined(FASTMEM_ISA_avx2)
#include <immintrin.h>
#endif

#define FASTMEM_GRAD_INLINE __attribute__((always_inline)) inline

namespace fastmem::cpu::FASTMEM_ISA::grad {

#if defined(FASTMEM_ISA_avx512)
inline constexpr int kRegisterBytes = 64, kTileOutputs = 8, kTileVectors = 3;
#elif defined(FASTMEM_ISA_avx2)
inline constexpr int kRegisterBytes = 32, kTileOutputs = 4, kTileVectors = 3;
#else
inline constexpr int kRegisterBytes = 16, kTileOutputs = 4, kTileVectors = 2;
#endif

template <class T>
using Vec __attribute__((vector_size(kRegisterBytes))) = T;
template <class T>
using Word = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
template <class T>
using Bits = Vec<Word<T>>;
template <class T>
inline constexpr int kLanes = kRegisterBytes / static_cast<int>(sizeof(T));

template <class T>
FASTMEM_GRAD_INLINE Vec<T> load(const T* from) {
  Vec<T> value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

template <class T, class V>
FASTMEM_GRAD_INLINE void store(T* to, V value) {
  static_assert(sizeof(V) == kRegisterBytes);
  __builtin_memcpy(to, &value, sizeof(value));
}

template <class T>
FASTMEM_GRAD_INLINE Vec<T> broadcast(T value) {
  return [&]<int... kLane>(std::integer_sequence<int, kLane...>)
             __attribute__((always_inline)) -> Vec<T> {
               return Vec<T>{((void)kLane, value)...};
             }(std::make_integer_sequence<int, kLanes<T>>{});
}

// Keeps a value in its register: compilers else read it from memory again wherever it is an
// operand, and loads, not arithmetic, are then what a tile waits for.
template <class V>
FASTMEM_GRAD_INLINE void keep(V& value) {
#if defined(FASTMEM_ISA_avx512)
  asm("" : "+v"(value));
#elif defined(FASTMEM_ISA_avx2)
  asm("" : "+x"(value));
#endif
}

// x * y + z, in one rounding where the instruction set has it.
template <class T>
FASTMEM_GRAD_INLINE Vec<T> multiply_add(Vec<T> x, Vec<T> y, Vec<T> z) {
#if defined(FASTMEM_ISA_avx512)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_fmadd_pd((__m512d)x, (__m512d)y, (__m512d)z);
#elif defined(FASTMEM_ISA_avx2)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm256_fmadd_pd((__m256d)x, (__m256d)y, (__m256d)z);
#else
  return x * y + z;
#endif
}

template <class T>
FASTMEM_GRAD_INLINE Vec<T> masked(Vec<T> value, Bits<T> mask) {
  return (Vec<T>)((Bits<T>)value & mask);
}

template <class T>
FASTMEM_GRAD_INLINE Vec<T> absolute(Vec<T> value) {
  constexpr Word<T> kAllButSign = static_cast<Word<T>>(~0ull >> (65 - 8 * sizeof(T)));
  return (Vec<T>)((Bits<T>)value & (Bits<T>{} + kAllButSign));
}

// One stage of a transposition: exchanges, between row i and row i + kDistance, the blocks of
// kDistance lanes off the diagonal.
template <class T, int kDistance>
FASTMEM_GRAD_INLINE void exchange(Vec<T>& low, Vec<T>& high) {
  [&]<int... kLane>(std::integer_sequence<int, kLane...>) __attribute__((always_inline)) {
    const Vec<T> x = low, y = high;
    low = __builtin_shufflevector(x, y,
                                  ((kLane & kDistance) ? kLanes<T> + kLane - kDistance : kLane)...);
    high = __builtin_shufflevector(
        x, y, ((kLane & kDistance) ? kLanes<T> + kLane : kLane + kDistance)...);
  }(std::make_integer_sequence<int, kLanes<T>>{});
}

template <class T, int kDistance = kLanes<T> / 2>
FASTMEM_GRAD_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  if constexpr (kDistance > 0) {
#pragma GCC unroll 16
    for (int row = 0; row < kLanes<T>; ++row)
      if (!(row & kDistance)) exchange<T, kDistance>(rows[row], rows[row + kDistance]);
    transpose<T, kDistance / 2>(rows);
  }
}

}  // namespace fastmem::cpu::FASTMEM_ISA::grad
