// Exponentials and logarithms of whole registers, with bounded error and without branches.
//
// The polynomials are minimax fits of the functions below on the intervals that their reductions
// leave, of relative error at most 1.3e-7 in float and 3.3e-18 in double.
#pragma once

#include <type_traits>

#include "cpu/kernels/vec.h"

namespace fastmem::cpu::FASTMEM_ISA {

template <class T>
struct Constants;

template <>
struct Constants<float> {
  static constexpr float kLog2E = 0x1.715476p+0f;
  static constexpr float kLn2 = 0x1.62e430p-1f;
  // ln 2 in two parts, of which the first has so few bits that a multiple of it is exact.
  static constexpr float kLn2High = 0x1.62e000p-1f, kLn2Low = 0x1.0bfbe8p-15f;
  static constexpr float kIntegers = 0x1.8p23f;
  static constexpr int kMantissaBits = 23, kBias = 127;
  // 2^x on [-1/2, 1/2], with 2^0 = 1.
  static constexpr float kExp2[] = {1.0f,         0.69314706f,  0.24022235f,
                                    0.055506784f, 0.009671965f, 0.001327463f};
  // (exp(-x) - 1 + x) / x^2 on [-ln2/2, ln2/2].
  static constexpr float kExpRest[] = {0.5f, -0.16666578f, 0.041666854f, -0.0083631705f,
                                       0.00139013f};
  // (2 atanh(s) - 2 s) / s^3 in terms of s^2, up to s = (sqrt(2) - 1)/(sqrt(2) + 1).
  static constexpr float kLogRest[] = {0.6666667f, 0.40000126f, 0.28550375f, 0.23342478f};
};

template <>
struct Constants<double> {
  static constexpr double kLog2E = 0x1.71547652b82fep+0;
  static constexpr double kLn2 = 0x1.62e42fefa39efp-1;
  static constexpr double kLn2High = 0x1.62e42fefa0000p-1, kLn2Low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double kIntegers = 0x1.8p52;
  static constexpr int kMantissaBits = 52, kBias = 1023;
  static constexpr double kExp2[] = {1.0,
                                     0.6931471805599453,
                                     0.24022650695910155,
                                     0.055504108664819925,
                                     0.009618129107588339,
                                     0.0013333558146788862,
                                     0.0001540353046251141,
                                     1.5252733491038734e-05,
                                     1.3215433090781289e-06,
                                     1.0178197572498416e-07,
                                     7.074105509334013e-09,
                                     4.435351723366445e-10};
  static constexpr double kExpRest[] = {0.5,
                                        -0.1666666666666667,
                                        0.041666666666666616,
                                        -0.00833333333332614,
                                        0.0013888888888918109,
                                        -0.0001984126987481927,
                                        2.48015872454733e-05,
                                        -2.755725538895556e-06,
                                        2.755734979499605e-07,
                                        -2.5105225899257804e-08,
                                        2.0889343509858387e-09};
  static constexpr double kLogRest[] = {
      0.6666666666666666,  0.40000000000000946, 0.28571428570762636, 0.22222222400914057,
      0.18181794665687998, 0.1538629227146728,  0.1326737611556409,  0.13101129610162393};
};

template <class T, int N, int kTerms>
FASTMEM_INLINE Vec<T, N> polynomial(Vec<T, N> x, const T (&coefficients)[kTerms]) {
  Vec<T, N> y = coefficients[kTerms - 1];
#pragma GCC unroll 16
  for (int i = kTerms - 2; i >= 0; --i) y = fma(y, x, coefficients[i]);
  return y;
}

// What rounding took from difference = x - y: x - y = difference + this, exactly.
template <class V>
FASTMEM_INLINE V rounding_of_difference(V x, V y, V difference) {
  const V minus_y = difference - x;
  return (x - (difference - minus_y)) - (y + minus_y);
}

// The nearest integer, ties to even, for |x| below 2^22 (float) or 2^51 (double).
template <class T, int N>
FASTMEM_INLINE Vec<T, N> round(Vec<T, N> x) {
  return (x + Constants<T>::kIntegers) - Constants<T>::kIntegers;
}

// Exponents. Adding kIntegers to a number rounds it to an integer, as above, which then stands in
// the lowest bits; shifted left by kMantissaBits they act as an exponent. Adders, multipliers and
// integer units are all busy in these kernels, and this way takes the least of each.

// Bits whose sums wrap: lanes without a number of their own overflow, and are left unused.
template <class T>
using Bits = Register<std::make_unsigned_t<Integer<T>>>;

// 2^n where `biased` is kIntegers + kBias + n; 0 for n = -kBias.
template <class T, int N>
FASTMEM_INLINE Vec<T, N> power_of_two(Vec<T, N> biased) {
  Vec<T, N> x;
  FASTMEM_EACH_REGISTER(x, bit_cast<Register<T>>(bit_cast<Register<Integer<T>>>(biased.r[i])
                                                 << Constants<T>::kMantissaBits));
  return x;
}

// x * 2^n for x near 1 and a normal result, where `integers` is kIntegers + n.
template <class T, int N>
FASTMEM_INLINE Vec<T, N> times_power_of_two(Vec<T, N> x, Vec<T, N> integers) {
  using I = Bits<T>;
  FASTMEM_EACH_REGISTER(
      x, bit_cast<Register<T>>(bit_cast<I>(x.r[i]) +
                               (bit_cast<I>(integers.r[i]) << Constants<T>::kMantissaBits)));
  return x;
}

// 2^x for |x| up to kBias - 2; beyond that as at the end of this range.
template <class T, int N>
FASTMEM_INLINE Vec<T, N> exp2(Vec<T, N> x) {
  using C = Constants<T>;
  x = max(T(2 - C::kBias), min(T(C::kBias - 2), x));
  const auto integers = x + C::kIntegers;
  return times_power_of_two(polynomial(x - (integers - C::kIntegers), C::kExp2), integers);
}

// Weights exp((x - top)/T) of logits x that belong to rows of largest logit `top`, up to a factor
// near 1 for each row. `scale` is log2(e)/T; |top * scale| must stay below kLargestScaled.
template <class T, int N>
class Weights {
 public:
  static constexpr T kLargestScaled = 0x1p20;

  FASTMEM_INLINE Weights(Vec<T, N> top, T scale)
      : scale_(scale),
        lowest_(top - (Constants<T>::kBias - 2) / scale),
        highest_(top + (Constants<T>::kBias - 2) / scale),
        reference_(reference(top, scale)) {}

  static FASTMEM_INLINE Vec<T, N> reference(Vec<T, N> top, T scale) {
    return kFusedMultiplyAdd ? Constants<T>::kIntegers - round(top * scale) : top;
  }

  FASTMEM_INLINE Vec<T, N> operator()(Vec<T, N> x) const {
    x = max(lowest_, min(highest_, x));
    if constexpr (kFusedMultiplyAdd) {
      // x * scale is exact until something is added to it, so that what all x have in common does
      // no harm.
      const auto integers = fma(x, scale_, reference_);
      return times_power_of_two(
          polynomial(fma(x, scale_, reference_ - integers), Constants<T>::kExp2), integers);
    } else {
      return exp2((x - reference_) * scale_);
    }
  }

 private:
  Vec<T, N> scale_, lowest_, highest_, reference_;
};

// log of the sum of exp(x/T) less that of the sum of the weights.
template <class T>
FASTMEM_INLINE double log_of_weight_unit(T top, T scale, double temperature) {
  if constexpr (!kFusedMultiplyAdd) return top / temperature;
  const double integer = (top * scale + Constants<T>::kIntegers) - Constants<T>::kIntegers;
  const double ln2 = Constants<double>::kLn2;
  return integer * ln2 + top * (1 / temperature - scale * ln2);
}

// exp(-u) = t (1 - w + w^2 rest) with t a power of two and |w| hardly above ln2/2; u = w exactly
// where t = 1.
template <class T, int N>
struct ExpOfMinus {
  Vec<T, N> t, w, rest;
};

// t is 0 where u is large. `rough` is u or near it, but known earlier; above -ln2 (kBias - 1).
template <class T, int N>
FASTMEM_INLINE ExpOfMinus<T, N> exp_of_minus(Vec<T, N> u, Vec<T, N> rough) {
  using C = Constants<T>;
  constexpr T kBiased = C::kIntegers + C::kBias;
  const auto integers = max_of_positive(C::kIntegers, fma(rough, -C::kLog2E, kBiased));
  const auto n = integers - kBiased;
  Vec<T, N> w;
  if constexpr (kFusedMultiplyAdd) {
    w = fma(n, C::kLn2, u);
  } else {
    w = (u + n * C::kLn2High) + n * C::kLn2Low;
  }
  return {power_of_two(integers), w, polynomial(w, C::kExpRest)};
}

// phi(u) = u + exp(-u) - 1, at least 0 and without cancellation near 0.
template <class T, int N>
FASTMEM_INLINE Vec<T, N> phi(Vec<T, N> u, Vec<T, N> rough) {
  const auto e = exp_of_minus(u, rough);
  const auto tw = e.t * e.w;
  // For t = 1 the bracket is exactly 0 and w^2 rest remains.
  return fma(tw * e.w, e.rest, ((e.t - 1) - tw) + u);
}

// log y = whole + f - bend with whole = k ln 2; where k = 0, f is y - 1 itself and bend = f -
// log1p(f) has no cancellation.
template <class T, int N>
struct LogParts {
  Vec<T, N> whole, f, bend;
};

// For positive normal y.
template <class T, int N>
FASTMEM_INLINE LogParts<T, N> log_parts(Vec<T, N> y, Vec<T, N> y_minus_1) {
  using C = Constants<T>;
  using I = Bits<T>;
  LogParts<T, N> log;
  const auto sqrt_half = bit_cast<I>(Register<T>{} + T(0.70710678118654752));
  for (int i = 0; i < N; ++i) {
    const I shifted = bit_cast<I>(y.r[i]) - sqrt_half;
    const auto k = bit_cast<Register<Integer<T>>>(shifted) >> C::kMantissaBits;
    const auto mantissa =
        bit_cast<Register<T>>(shifted - (bit_cast<I>(k) << C::kMantissaBits) + sqrt_half);
    log.f.r[i] = k == 0 ? y_minus_1.r[i] : mantissa - 1;
    log.whole.r[i] = __builtin_convertvector(k, Register<T>) * C::kLn2;
  }
  const auto s = log.f / (log.f + 2);
  const auto z = s * s;
  log.bend = s * (log.f - z * polynomial(z, C::kLogRest));
  return log;
}

template <class T, int N>
FASTMEM_INLINE LogParts<T, N> log1p_parts(Vec<T, N> x) {
  return log_parts(x + 1, x);
}

template <class T, int N>
FASTMEM_INLINE Vec<T, N> log(Vec<T, N> y) {
  const auto parts = log_parts(y, y - 1);
  return parts.whole + (parts.f - parts.bend);
}

template <class T, int N>
FASTMEM_INLINE Vec<T, N> log1p(Vec<T, N> x) {
  const auto parts = log1p_parts(x);
  return parts.whole + (parts.f - parts.bend);
}

}  // namespace fastmem::cpu::FASTMEM_ISA
