// Logits as they are stored against what is computed with: half precision widens to float on load,
// and rounds to nearest, ties to even, on store.
#pragma once

#include "common/dtype.h"
#include "cpu/kernels/vec.h"

namespace fastmem::cpu::FASTMEM_ISA {

template <class Stored>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class Stored>
using Compute = typename ComputeOf<Stored>::type;

typedef uint16_t Bits16 __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(kVectorBytes)));

// -------------------------------------------------------------------------------- single registers

template <Real T>
FASTMEM_INLINE Register<T> load_register(const T* from) {
  Register<T> x;
  memcpy(&x, from, sizeof(x));
  return x;
}

template <Real T>
FASTMEM_INLINE void store_register(T* to, Register<T> x) {
  memcpy(to, &x, sizeof(x));
}

FASTMEM_INLINE Register<float> load_register(const BFloat16* from) {
  Bits16 bits;
  memcpy(&bits, from, sizeof(bits));
  return bit_cast<Register<float>>(__builtin_convertvector(bits, Bits32) << 16);
}

FASTMEM_INLINE void store_register(BFloat16* to, Register<float> x) {
  const auto bits = bit_cast<Bits32>(x);
  const auto rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const auto quiet_nan = bits | 0x400000;
  const auto narrow = __builtin_convertvector((x == x ? rounded : quiet_nan) >> 16, Bits16);
  memcpy(to, &narrow, sizeof(narrow));
}

#if defined(__AVX512F__)

FASTMEM_INLINE Register<float> load_register(const Half* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

FASTMEM_INLINE void store_register(Half* to, Register<float> x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

#elif defined(__AVX2__)

FASTMEM_INLINE Register<float> load_register(const Half* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

FASTMEM_INLINE void store_register(Half* to, Register<float> x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

#else

// A half's exponent and mantissa in a float's place are 2^-112 of its value, subnormals included.
FASTMEM_INLINE Register<float> load_register(const Half* from) {
  Bits16 bits;
  memcpy(&bits, from, sizeof(bits));
  const auto wide = __builtin_convertvector(bits, Bits32);
  const auto finite = bit_cast<Bits32>(bit_cast<Register<float>>((wide & 0x7fff) << 13) * 0x1p112f);
  const auto magnitude = (wide & 0x7c00) == 0x7c00 ? finite | 0x7f800000 : finite;
  return bit_cast<Register<float>>(magnitude | (wide & 0x8000) << 16);
}

FASTMEM_INLINE void store_register(Half* to, Register<float> x) {
  const auto bits = bit_cast<Bits32>(x);
  const auto magnitude = bits & 0x7fffffff;
  const auto size = bit_cast<Register<float>>(magnitude);
  const auto normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 leaves the multiple of 2^-24 in the lowest bits, rounded by the processor.
  const auto subnormal = bit_cast<Bits32>(size + 0.5f) - 0x3f000000;
  const Bits32 infinite = Bits32{} + 0x7c00, nan = Bits32{} + 0x7e00;
  auto narrow = size < 0x1p-14f ? subnormal : normal;
  narrow = size >= 65520.0f ? infinite : narrow;
  narrow = size == size ? narrow : nan;
  const auto stored = __builtin_convertvector(narrow | ((bits >> 16) & 0x8000), Bits16);
  memcpy(to, &stored, sizeof(stored));
}

#endif

// The first `count` lanes, none to all of them, and zeros; memory beyond them is not touched.
template <class Stored>
FASTMEM_INLINE Register<Compute<Stored>> load_register_first(const Stored* from, int64_t count) {
  Stored lanes[kLanes<Compute<Stored>>];
  memset(lanes, 0, sizeof(lanes));
  memcpy(lanes, from, static_cast<size_t>(count) * sizeof(Stored));
  return load_register(lanes);
}

template <class Stored>
FASTMEM_INLINE void store_register_first(Stored* to, Register<Compute<Stored>> x, int64_t count) {
  Stored lanes[kLanes<Compute<Stored>>];
  store_register(lanes, x);
  memcpy(to, lanes, static_cast<size_t>(count) * sizeof(Stored));
}

#if defined(__AVX512F__)

FASTMEM_INLINE Register<float> load_register_first(const float* from, int64_t count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
}

FASTMEM_INLINE Register<double> load_register_first(const double* from, int64_t count) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from);
}

FASTMEM_INLINE void store_register_first(float* to, Register<float> x, int64_t count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), x);
}

FASTMEM_INLINE void store_register_first(double* to, Register<double> x, int64_t count) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), x);
}

#elif defined(__AVX2__)

FASTMEM_INLINE Register<float> load_register_first(const float* from, int64_t count) {
  return _mm256_maskload_ps(from, bit_cast<__m256i>(first_lanes<float>(count)));
}

FASTMEM_INLINE void store_register_first(float* to, Register<float> x, int64_t count) {
  _mm256_maskstore_ps(to, bit_cast<__m256i>(first_lanes<float>(count)), x);
}

#endif

// ---------------------------------------------------------------------------------------- all of N

template <int N = 1, class Stored>
FASTMEM_INLINE Vec<Compute<Stored>, N> load(const Stored* from) {
  Vec<Compute<Stored>, N> x;
  FASTMEM_EACH_REGISTER(x, load_register(from + i * kLanes<Compute<Stored>>));
  return x;
}

template <class Stored, int N>
FASTMEM_INLINE void store(Stored* to, Vec<Compute<Stored>, N> x) {
  for (int i = 0; i < N; ++i) store_register(to + i * kLanes<Compute<Stored>>, x.r[i]);
}

// How many of `count` elements belong to register i.
template <class T>
FASTMEM_INLINE int64_t share(int64_t count, int64_t i) {
  const int64_t left = count - i * kLanes<T>;
  return left < 0 ? 0 : left < kLanes<T> ? left : kLanes<T>;
}

// The first `count` lanes, and zeros; memory beyond them is not touched.
template <int N = 1, class Stored>
FASTMEM_INLINE Vec<Compute<Stored>, N> load_first(const Stored* from, int64_t count) {
  using T = Compute<Stored>;
  Vec<T, N> x;
  FASTMEM_EACH_REGISTER(x, load_register_first(from + i * kLanes<T>, share<T>(count, i)));
  return x;
}

template <class Stored, int N>
FASTMEM_INLINE void store_first(Stored* to, Vec<Compute<Stored>, N> x, int64_t count) {
  using T = Compute<Stored>;
  for (int i = 0; i < N; ++i) store_register_first(to + i * kLanes<T>, x.r[i], share<T>(count, i));
}

}  // namespace fastmem::cpu::FASTMEM_ISA
