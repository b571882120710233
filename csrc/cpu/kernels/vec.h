// Registers of float or double, whatever their width: 64 bytes with AVX-512, 32 with AVX2, 16
// elsewhere.
//
// A Vec has N registers, and every operation is applied to one after the other. With N > 1 the
// chains of dependent operations of several registers stand interleaved in the program, which keeps
// the arithmetic units busy where the processor's own window of reordering is too short.
//
// Each kernel file is compiled once for each instruction set, into the namespace FASTMEM_ISA.
// Nothing here or in the kernels may call an inline function or template of another namespace: the
// linker could keep the copy of the widest set for all.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
// GCC takes the deliberately undefined operands of some AVX-512 intrinsics for a mistake of ours.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#define FASTMEM_INLINE inline __attribute__((always_inline))
// A tile keeps its pointers in registers only if it has a function to itself.
#define FASTMEM_OUT_OF_LINE __attribute__((noinline))

namespace fastmem::cpu::FASTMEM_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
inline constexpr bool kFusedMultiplyAdd = true;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
inline constexpr bool kFusedMultiplyAdd = true;
#else
inline constexpr int kVectorBytes = 16;
inline constexpr bool kFusedMultiplyAdd = false;
#endif

inline constexpr float kInfinity = __builtin_inff();
inline constexpr float kNaN = __builtin_nanf("");

template <class T>
concept Real = __is_same(T, float) || __is_same(T, double);

template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
struct RegisterOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Register = typename RegisterOf<T>::type;

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};
template <class T>
using Integer = typename IntegerOf<T>::type;

template <class To, class From>
FASTMEM_INLINE To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  memcpy(&y, &x, sizeof(y));
  return y;
}

// Sets z.r[i] for every register i, written out: a loop would keep z in memory.
#define FASTMEM_EACH_REGISTER(z, expression)                                   \
  [&]<size_t... i>(std::index_sequence<i...>) __attribute__((always_inline)) { \
    ((z.r[i] = (expression)), ...);                                            \
  }(std::make_index_sequence<N>())

// What a comparison gives: all bits of a lane, or none.
template <class T, int N = 1>
struct Mask {
  Register<Integer<T>> r[N];

  FASTMEM_INLINE bool operator[](int lane) const {
    return r[lane / kLanes<T>][lane % kLanes<T>] != 0;
  }

  friend FASTMEM_INLINE Mask operator&(Mask x, Mask y) {
    Mask z;
    FASTMEM_EACH_REGISTER(z, x.r[i] & y.r[i]);
    return z;
  }
  friend FASTMEM_INLINE Mask operator|(Mask x, Mask y) {
    Mask z;
    FASTMEM_EACH_REGISTER(z, x.r[i] | y.r[i]);
    return z;
  }
  friend FASTMEM_INLINE Mask operator!(Mask x) {
    Mask z;
    FASTMEM_EACH_REGISTER(z, ~x.r[i]);
    return z;
  }
};

template <class T, int N = 1>
struct Vec {
  static constexpr int kSize = N * kLanes<T>;

  Register<T> r[N];

  Vec() = default;
  FASTMEM_INLINE Vec(T x) { FASTMEM_EACH_REGISTER((*this), x - Register<T>{}); }

  FASTMEM_INLINE T operator[](int lane) const { return r[lane / kLanes<T>][lane % kLanes<T>]; }

#define FASTMEM_OPERATOR(Result, symbol)                       \
  friend FASTMEM_INLINE Result operator symbol(Vec x, Vec y) { \
    Result z;                                                  \
    FASTMEM_EACH_REGISTER(z, x.r[i] symbol y.r[i]);            \
    return z;                                                  \
  }
  using M = Mask<T, N>;
  FASTMEM_OPERATOR(Vec, +)
  FASTMEM_OPERATOR(Vec, -)
  FASTMEM_OPERATOR(Vec, *)
  FASTMEM_OPERATOR(Vec, /)
  FASTMEM_OPERATOR(M, <)
  FASTMEM_OPERATOR(M, <=)
  FASTMEM_OPERATOR(M, >)
  FASTMEM_OPERATOR(M, >=)
  FASTMEM_OPERATOR(M, ==)
  FASTMEM_OPERATOR(M, !=)
#undef FASTMEM_OPERATOR

  friend FASTMEM_INLINE Vec operator-(Vec x) {
    Vec z;
    FASTMEM_EACH_REGISTER(z, -x.r[i]);
    return z;
  }
  FASTMEM_INLINE Vec& operator+=(Vec y) { return *this = *this + y; }
  FASTMEM_INLINE Vec& operator-=(Vec y) { return *this = *this - y; }
  FASTMEM_INLINE Vec& operator*=(Vec y) { return *this = *this * y; }
};

// -------------------------------------------------------------------------------- single registers

// x * y + z; rounded once where kFusedMultiplyAdd.
FASTMEM_INLINE Register<float> fma(Register<float> x, Register<float> y, Register<float> z) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(x, y, z);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(x, y, z);
#else
  return x * y + z;
#endif
}

FASTMEM_INLINE Register<double> fma(Register<double> x, Register<double> y, Register<double> z) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(x, y, z);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(x, y, z);
#else
  return x * y + z;
#endif
}

// min and max give y where either is NaN.
FASTMEM_INLINE Register<float> min(Register<float> x, Register<float> y) {
#if defined(__AVX512F__)
  return _mm512_min_ps(x, y);
#elif defined(__AVX2__)
  return _mm256_min_ps(x, y);
#else
  return x < y ? x : y;
#endif
}

FASTMEM_INLINE Register<double> min(Register<double> x, Register<double> y) {
#if defined(__AVX512F__)
  return _mm512_min_pd(x, y);
#elif defined(__AVX2__)
  return _mm256_min_pd(x, y);
#else
  return x < y ? x : y;
#endif
}

FASTMEM_INLINE Register<float> max(Register<float> x, Register<float> y) {
#if defined(__AVX512F__)
  return _mm512_max_ps(x, y);
#elif defined(__AVX2__)
  return _mm256_max_ps(x, y);
#else
  return x > y ? x : y;
#endif
}

FASTMEM_INLINE Register<double> max(Register<double> x, Register<double> y) {
#if defined(__AVX512F__)
  return _mm512_max_pd(x, y);
#elif defined(__AVX2__)
  return _mm256_max_pd(x, y);
#else
  return x > y ? x : y;
#endif
}

// The maximum of two positive numbers, by an integer unit where there is one.
FASTMEM_INLINE Register<float> max_of_positive(Register<float> x, Register<float> y) {
#if defined(__AVX512F__)
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(x), _mm512_castps_si512(y)));
#elif defined(__AVX2__)
  return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(x), _mm256_castps_si256(y)));
#else
  return max(x, y);
#endif
}

FASTMEM_INLINE Register<double> max_of_positive(Register<double> x, Register<double> y) {
#if defined(__AVX512F__)
  return _mm512_castsi512_pd(_mm512_max_epi64(_mm512_castpd_si512(x), _mm512_castpd_si512(y)));
#else
  return max(x, y);
#endif
}

// The lower one where either is negative (as unsigned bits it is the larger), else any. Once NaN, a
// running result stays so, or, where infinities have made that NaN, is below every bound.
FASTMEM_INLINE Register<float> lower_if_negative(Register<float> x, Register<float> y) {
#if defined(__AVX512F__)
  return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(x), _mm512_castps_si512(y)));
#elif defined(__AVX2__)
  return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(x), _mm256_castps_si256(y)));
#else
  return (x < y) | (x != x) ? x : y;
#endif
}

// The first `count` lanes.
template <class T>
FASTMEM_INLINE Register<Integer<T>> first_lanes(int64_t count) {
  return [&]<size_t... i>(std::index_sequence<i...>) __attribute__((always_inline)) {
    constexpr Register<Integer<T>> lanes = {static_cast<Integer<T>>(i)...};
    return lanes < static_cast<Integer<T>>(count) - Register<Integer<T>>{};
  }(std::make_index_sequence<kLanes<T>>());
}

// Halves a register until one lane is left: an order that is always the same.
template <class R, class Combine>
FASTMEM_INLINE auto reduce(R x, Combine combine) {
  using Lane = decltype(x[0] + x[0]);
  if constexpr (sizeof(R) == 2 * sizeof(Lane)) {
    return combine(x[0], x[1]);
  } else {
    typedef Lane HalfRegister __attribute__((vector_size(sizeof(R) / 2)));
    HalfRegister halves[2];
    memcpy(halves, &x, sizeof(x));
    return reduce(combine(halves[0], halves[1]), combine);
  }
}

// table[indices], lane by lane.
FASTMEM_INLINE Register<float> look_up(Register<float> table, Register<int32_t> indices) {
#if defined(__AVX512F__)
  return _mm512_permutexvar_ps(bit_cast<__m512i>(indices), table);
#elif defined(__AVX2__)
  return _mm256_permutevar8x32_ps(table, bit_cast<__m256i>(indices));
#else
  return __builtin_shuffle(table, indices);
#endif
}

// ---------------------------------------------------------------------------------------- all of N

// A parameter of this type takes no part in deduction, so that a number may stand for a Vec.
template <class V>
using Same = std::type_identity_t<V>;

#define FASTMEM_OF_THREE(name)                                                       \
  template <class T, int N>                                                          \
  FASTMEM_INLINE Vec<T, N> name(Vec<T, N> x, Same<Vec<T, N>> y, Same<Vec<T, N>> z) { \
    Vec<T, N> w;                                                                     \
    FASTMEM_EACH_REGISTER(w, FASTMEM_ISA::name(x.r[i], y.r[i], z.r[i]));             \
    return w;                                                                        \
  }
#define FASTMEM_OF_TWO(name)                                      \
  template <class T, int N>                                       \
  FASTMEM_INLINE Vec<T, N> name(Same<Vec<T, N>> x, Vec<T, N> y) { \
    Vec<T, N> z;                                                  \
    FASTMEM_EACH_REGISTER(z, FASTMEM_ISA::name(x.r[i], y.r[i]));  \
    return z;                                                     \
  }
FASTMEM_OF_THREE(fma)
FASTMEM_OF_TWO(min)
FASTMEM_OF_TWO(max)
FASTMEM_OF_TWO(max_of_positive)
FASTMEM_OF_TWO(lower_if_negative)
#undef FASTMEM_OF_THREE
#undef FASTMEM_OF_TWO

template <class T, int N>
FASTMEM_INLINE Vec<T, N> select(Mask<T, N> mask, Same<Vec<T, N>> x, Same<Vec<T, N>> y) {
  Vec<T, N> z;
  FASTMEM_EACH_REGISTER(z, mask.r[i] ? x.r[i] : y.r[i]);
  return z;
}

template <class T, int N>
FASTMEM_INLINE Vec<T, N> abs(Vec<T, N> x) {
  return select(x < 0, -x, x);
}

// The lanes below `count`.
template <class T, int N>
FASTMEM_INLINE Mask<T, N> lanes_below(int64_t count) {
  Mask<T, N> mask;
  FASTMEM_EACH_REGISTER(mask, first_lanes<T>(count - static_cast<int64_t>(i) * kLanes<T>));
  return mask;
}

template <class V, class Combine>
FASTMEM_INLINE auto reduce_all(V x, Combine combine) {
  auto all = x.r[0];
  for (const auto& r : x.r) {
    if (&r != x.r) all = combine(all, r);
  }
  return reduce(all, combine);
}

template <class T, int N>
FASTMEM_INLINE T sum(Vec<T, N> x) {
  return reduce_all(x, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}

template <class T, int N>
FASTMEM_INLINE T maximum(Vec<T, N> x) {
  return reduce_all(x, [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
}

template <class T, int N>
FASTMEM_INLINE T minimum(Vec<T, N> x) {
  return reduce_all(x, [](auto a, auto b) __attribute__((always_inline)) { return a < b ? a : b; });
}

template <class T, int N>
FASTMEM_INLINE bool any(Mask<T, N> mask) {
  return reduce_all(mask, [](auto a, auto b) __attribute__((always_inline)) { return a | b; }) != 0;
}

}  // namespace fastmem::cpu::FASTMEM_ISA
