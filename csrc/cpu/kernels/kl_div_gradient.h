// The gradients of kl_div, element by element.
//
//   dKL/dp = P (u - KL) / T,    dKL/dq = (Q - P) / T = P (exp(-u) - 1) / T,    u = log P - log Q,
//
// where the second form of dKL/dq has no cancellation.
#pragma once

#include "cpu/kernels/kl_div_exact.h"
#include "cpu/kernels/math.h"

namespace fastmem::cpu::FASTMEM_ISA {

// What a row's gradients take from its saved results, in units of the logits.
template <int N>
struct GradientRows {
  Vec<float, N> reference;      // of Weights
  Vec<float, N> centre, shift;  // u = (p - q - centre)/T + shift
  Vec<float, N> factor;         // P times the gradient of KL over T = factor times weight
  Vec<float, N> kl;
};

template <int N>
struct Gradients {
  Vec<float, N> dp, dq;
};

// As Weights, for logits that cannot be above the reference by much.
template <int N>
FASTMEM_INLINE Vec<float, N> weigh_below(Vec<float, N> x, Vec<float, N> reference, float scale) {
  using C = Constants<float>;
  constexpr float kLowest = C::kIntegers - (C::kBias - 2);
  if constexpr (kFusedMultiplyAdd) {
    const auto integers = max_of_positive(kLowest, fma(x, scale, reference));
    const auto fraction = max(-1, fma(x, scale, reference - integers));
    return times_power_of_two(polynomial(fraction, C::kExp2), integers);
  } else {
    return exp2((x - reference) * scale);
  }
}

// `lowest` becomes too low, or NaN, where these formulas do not hold.
template <bool kScaled, int N>
FASTMEM_INLINE Gradients<N> gradients(Vec<float, N> p, Vec<float, N> q, const GradientRows<N>& rows,
                                      float scale, float inverse, Vec<float, N>& lowest) {
  const auto s = p - q;
  auto rough = s - rows.centre;
  auto u = rough + rounding_of_difference(p, q, s);
  if constexpr (kScaled) {
    rough *= inverse;
    u *= inverse;
  }
  u += rows.shift;
  lowest = lower_if_negative(lowest, u);
  const auto probability = weigh_below(p, rows.reference, scale) * rows.factor;
  const auto e = exp_of_minus(u, rough);
  const auto exp_minus_u_less_1 = fma(e.t * e.w, fma(e.w, e.rest, -1), e.t - 1);
  return {probability * (u - rows.kl), probability * exp_minus_u_less_1};
}

// In double and for any values. `factor` is the gradient of KL over T; dp and dq may be null.
template <class Stored>
void exact_gradient(const Stored* p, const Stored* q, int64_t classes, double temperature,
                    double factor, double* dp, double* dq) {
  const ExactRow row = exact_row(p, q, classes, temperature);
  if (!(__builtin_fabs(row.kl) < double(kInfinity))) factor = kNaN;
  const double inverse = 1 / temperature, scale = inverse * Constants<double>::kLog2E;
  const double lse_q = row.lse_p - row.lse_difference;
  const double centre = row.lse_difference * temperature;
  const double top_p = row.lse_p * temperature, top_q = lse_q * temperature;
  int64_t done = 0;
  for_each_wide(p, q, classes, [&](Vec<double> p, Vec<double> q, Mask<double>) {
    const int64_t count = share<double>(classes - done, 0);
    const auto p_absent = p == -kInfinity, q_absent = q == -kInfinity;
    const auto of_p = select(p_absent, 0, exp2((p - top_p) * scale));
    const auto of_q = select(q_absent, 0, exp2((q - top_q) * scale));
    const auto s = p - q;
    const auto u = ((s - centre) + rounding_of_difference(p, q, s)) * inverse;
    if (dp != nullptr) {
      store_first(dp + done, select(p_absent, 0, of_p * (u - row.kl)) * factor, count);
    }
    if (dq != nullptr) {
      const auto e = exp_of_minus(u, u);
      const auto ratio_less_1 = fma(e.t * e.w, fma(e.w, e.rest, -1), e.t - 1);
      store_first(dq + done, select(abs(u) < 1, of_p * ratio_less_1, of_q - of_p) * factor, count);
    }
    done += count;
  });
}

}  // namespace fastmem::cpu::FASTMEM_ISA
