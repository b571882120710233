// KL of one row in double precision, for any values: float64 logits, and the rows that the fast
// forms give up.
//
// Sum of p phi(u) with u = log p - log q and phi(u) = u + exp(-u) - 1 >= 0: it adds sum q - sum p =
// 0 to sum p u, so nothing cancels, and it depends on the two logsumexps only to second order.
// Three passes over the row.
#pragma once

#include "cpu/kernels/math.h"
#include "cpu/kernels/wide.h"

namespace fastmem::cpu::FASTMEM_ISA {

struct ExactRow {
  double kl, lse_p, lse_difference;
};

// The largest element and, in `sum`, that of exp((x - largest)/T). NaN in `largest` if the softmax
// does not exist.
struct Softmax {
  double largest, sum;
};

template <class Stored>
Softmax softmax_sum(const Stored* x, int64_t classes, double inverse_temperature) {
  Vec<double> largest = -kInfinity;
  Mask<double> nan = largest != largest;
  for_each_wide(x, classes, [&](Vec<double> values, Mask<double> valid) {
    nan = nan | (values != values);
    largest = max(largest, select(valid, values, largest));
  });
  const double top = any(nan) ? kNaN : maximum(largest);
  if (!(__builtin_fabs(top) < double(kInfinity))) return {kNaN, kNaN};

  Vec<double> total = 0;
  const double scale = inverse_temperature * Constants<double>::kLog2E;
  for_each_wide(x, classes, [&](Vec<double> values, Mask<double> valid) {
    total += select(valid & (values > -kInfinity), exp2((values - top) * scale), 0);
  });
  return {top, sum(total)};
}

template <class Stored>
ExactRow exact_row(const Stored* p, const Stored* q, int64_t classes, double temperature) {
  const double inverse = 1 / temperature, scale = inverse * Constants<double>::kLog2E;
  const Softmax of_p = softmax_sum(p, classes, inverse), of_q = softmax_sum(q, classes, inverse);
  const double lse_p = of_p.largest * inverse + __builtin_log(of_p.sum);
  const double difference =
      (of_p.largest - of_q.largest) * inverse + __builtin_log(of_p.sum / of_q.sum);
  if (!(difference == difference)) return {kNaN, kNaN, kNaN};

  const double centre = difference * temperature, per_p = 1 / of_p.sum, per_q = 1 / of_q.sum;
  Vec<double> total = 0;
  for_each_wide(p, q, classes, [&](Vec<double> p, Vec<double> q, Mask<double> valid) {
    const auto p_absent = p == -kInfinity, q_absent = q == -kInfinity;
    const auto probability_p = exp2((p - of_p.largest) * scale) * per_p;
    const auto probability_q = select(q_absent, 0, exp2((q - of_q.largest) * scale) * per_q);
    const auto s = p - q;
    const auto u = ((s - centre) + rounding_of_difference(p, q, s)) * inverse;
    // Far out p phi(u) could be 0 times infinity; there the three parts do not cancel.
    auto term = select(abs(u) < 30, probability_p * phi(u, u),
                       (probability_p * u - probability_p) + probability_q);
    term = select(q_absent, kInfinity, term);
    term = select(p_absent, probability_q, term);
    total += select(valid, term, 0);
  });
  return {sum(total), lse_p, difference};
}

}  // namespace fastmem::cpu::FASTMEM_ISA
