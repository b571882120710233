// KL(softmax(p/T) || softmax(q/T)) of a row of logits: the arithmetic of every GPU kernel.
//
// With weights e = exp((p - max p)/T), w = (p - q)/T and v = w - c about any centre c,
//
//   first = sum e v / sum e,  second = sum e phi(v) / sum e,  phi(v) = v + exp(-v) - 1 >= 0,
//   KL = first + log1p(second - first).
//
// This holds for every c; rounding is least where c is the mean of w under softmax(p/T). Sums of
// two parts of a row, each about its own mean, merge into sums about their common mean by adding
// terms of one sign only, so a row may be cut among threads and blocks in any way and is read once.
//
// A row whose sums are not finite (an infinite logit, KL above 80) is computed again term by term.
#pragma once

#include "common/scalar.h"

namespace fastmem {

// 1/T, and T in two parts so that a centre can be carried over to unscaled logits exactly.
template <typename A>
struct Temperature {
  A inverse;
  A inverse_log2e;
  A high;
  A low;
};

template <typename A>
Temperature<A> make_temperature(double temperature) {
  const A inverse = static_cast<A>(1 / temperature);
  const A high = 1 / inverse;
  return {inverse, inverse * kLog2e<A>, high, -std::fma(high, inverse, A{-1}) * high};
}

// A centre of w, and the same on the scale of p - q as high + low.
template <typename A>
struct Centre {
  A scaled;
  A high;
  A low;
};

template <typename A>
FASTMEM_HD Centre<A> make_centre(A scaled, const Temperature<A>& t) {
  const A high = product(scaled, t.high);
  return {scaled, high, fused(scaled, t.high, -high) + scaled * t.low};
}

// a - b as the rounded difference and what rounding took from it (Knuth).
template <typename A>
struct Difference {
  A high;
  A low;
};

template <typename A>
FASTMEM_HD Difference<A> difference_of(A a, A b) {
  const A high = a - b;
  const A seen = a - high;
  return {high, (a - (high + seen)) + (seen - b)};
}

// (p - q)/T - centre, accurate also where the centre takes the leading digits away.
template <typename A>
FASTMEM_HD A centred_difference(A p, A q, const Centre<A>& centre, const Temperature<A>& t) {
  const Difference<A> w = difference_of(p, q);
  return ((w.high - centre.high) + (w.low - centre.low)) * t.inverse;
}

// The logit at which the mass of q, exp((q - largest)/T + c), is 1 on the scale of the weights.
template <typename A>
FASTMEM_HD Difference<A> unit_of_q(A largest, const Centre<A>& centre) {
  const Difference<A> unit = difference_of(largest, centre.high);
  return {unit.high, unit.low - centre.low};
}

template <typename A>
FASTMEM_HD A mass_of_q(A q, const Difference<A>& unit, const Temperature<A>& t) {
  return power_of_two(((q - unit.high) - unit.low) * t.inverse_log2e);
}

template <typename A, int K>
inline constexpr A kInverseFactorial = kInverseFactorial<A, K - 1> / K;
template <typename A>
inline constexpr A kInverseFactorial<A, 0> = 1;

// Up to this |v| the series is used; it ends where its remainder is below the rounding of A.
template <typename A>
inline constexpr A kSeriesRange = static_cast<A>(0.5);
template <typename A>
inline constexpr int kSeriesOrder = sizeof(A) == 4 ? 8 : 16;

// sum over k >= K of (-v)^(k - K) / k!
template <int K, typename A>
FASTMEM_HD A exponential_series(A v) {
  if constexpr (K == kSeriesOrder<A>) {
    return kInverseFactorial<A, K>;
  } else {
    return fused(-v, exponential_series<K + 1>(v), kInverseFactorial<A, K>);
  }
}

// phi(v) for |v| <= kSeriesRange.
template <typename A>
FASTMEM_HD A phi_series(A v) {
  return v * v * exponential_series<2>(v);
}

// What a part of a row adds up to: weights relative to its largest p, moments about its centre.
template <typename A>
struct KlSums {
  A largest;  // what weights are relative to: the largest p, not divided by T
  A weight;   // sum e
  A centre;   // c
  A first;    // sum e v
  A second;   // sum e phi(v)
};

template <typename A>
FASTMEM_HD KlSums<A> no_kl_sums() {
  return {-kInfinity<A>, 0, 0, 0, 0};
}

template <typename A>
FASTMEM_HD bool is_empty(const KlSums<A>& sums) {
  return sums.weight == 0 && sums.second == 0;
}

// Whether there is any element with a p above -inf.
template <typename A>
FASTMEM_HD bool has_weight(const KlSums<A>& sums) {
  return sums.largest > kFarBelow<A> / 2;
}

// False where only the computation term by term gives the row's value.
template <typename A>
FASTMEM_HD bool is_regular(const KlSums<A>& sums) {
  return has_weight(sums) && sums.weight > 0 && is_finite(sums.second);
}

template <typename A>
struct Moments {
  A first;
  A second;
};

// Elements of two rows at the same classes. A kernel's registers or its shared memory take this
// form, and so does a plain array in a test.
template <typename A, int Count>
struct RegisterPairs {
  using Scalar = A;
  A p_values[Count];
  A q_values[Count];
  FASTMEM_HD static constexpr int count() { return Count; }
  FASTMEM_HD A p(int j) const { return p_values[j]; }
  FASTMEM_HD A q(int j) const { return q_values[j]; }
  FASTMEM_HD void set(int j, A p, A q) {
    p_values[j] = p;
    q_values[j] = q;
  }
  // No element: its weight vanishes beside that of any other.
  FASTMEM_HD void clear(int j) { p_values[j] = q_values[j] = kFarBelow<A>; }
};

template <typename Pairs, typename A = typename Pairs::Scalar>
FASTMEM_HD A largest_p(const Pairs& pairs) {
  A largest = -kInfinity<A>;
  FASTMEM_UNROLL
  for (int j = 0; j < pairs.count(); ++j) largest = larger(largest, pairs.p(j));
  return largest;
}

// sum e, and sum e (p - q).
template <typename Pairs, typename A = typename Pairs::Scalar>
FASTMEM_HD Moments<A> weigh(const Pairs& pairs, A largest, const Temperature<A>& t) {
  A weight = 0, total = 0;
  FASTMEM_UNROLL
  for (int j = 0; j < pairs.count(); ++j) {
    const A e = power_of_two((pairs.p(j) - largest) * t.inverse_log2e);
    weight += e;
    total = fused(e, pairs.p(j) - pairs.q(j), total);
  }
  return {weight, total};
}

// sum e v and sum e phi(v).
template <typename Pairs, typename A = typename Pairs::Scalar>
FASTMEM_HD Moments<A> moments(const Pairs& pairs, A largest, const Centre<A>& centre,
                              const Temperature<A>& t) {
  const Difference<A> unit = unit_of_q(largest, centre);
  A first = 0, second = 0;
  FASTMEM_UNROLL
  for (int j = 0; j < pairs.count(); ++j) {
    const A e = power_of_two((pairs.p(j) - largest) * t.inverse_log2e);
    const A v = centred_difference(pairs.p(j), pairs.q(j), centre, t);
    first = fused(e, v, first);
    // e exp(-v) as the mass of q: it may be there where e itself is 0.
    second += magnitude(v) <= kSeriesRange<A> ? e * phi_series(v)
                                              : e * (v - 1) + mass_of_q(pairs.q(j), unit, t);
  }
  return {first, second};
}

// The sums of elements that a group of threads holds among them, every thread some of them; the
// result is the same in every thread. A group has `sum` and `largest` over its threads.
template <typename Group, typename Pairs, typename A = typename Pairs::Scalar>
FASTMEM_HD KlSums<A> sum_pairs(const Group& group, const Pairs& pairs, const Temperature<A>& t) {
  KlSums<A> sums;
  sums.largest = group.largest(largest_p(pairs));
  const Moments<A> weighed = weigh(pairs, sums.largest, t);
  sums.weight = group.sum(weighed.first);
  const A mean = quotient(group.sum(weighed.second), sums.weight);
  const Centre<A> centre = make_centre(mean * t.inverse, t);
  sums.centre = centre.scaled;
  const Moments<A> about = moments(pairs, sums.largest, centre, t);
  sums.first = group.sum(about.first);
  sums.second = group.sum(about.second);
  return sums;
}

// How far below the largest p an element has no weight left, in units of T.
template <typename A>
inline constexpr A kVanishing = sizeof(A) == 4 ? 110 : 750;

// Gives elements with p = -inf (masked classes) finite values that mean the same: none at all where
// q is -inf too, and elsewhere a weight that rounds to 0, so that only the mass of q remains.
template <typename A, int Count>
FASTMEM_HD void unmask(RegisterPairs<A, Count>& pairs, A largest, const Temperature<A>& t) {
  FASTMEM_UNROLL
  for (int j = 0; j < Count; ++j) {
    if (pairs.p_values[j] != -kInfinity<A>) continue;
    if (pairs.q_values[j] == -kInfinity<A>) {
      pairs.clear(j);
    } else {
      pairs.p_values[j] = largest - kVanishing<A> * t.high;
    }
  }
}

// sum_pairs, and once more without masked classes if there were any.
template <typename Group, typename A, int Count>
FASTMEM_HD KlSums<A> sum_unmasked(const Group& group, RegisterPairs<A, Count>& pairs,
                                  const Temperature<A>& t) {
  KlSums<A> sums;
  FASTMEM_NO_UNROLL
  for (bool again = false;; again = true) {
    sums = sum_pairs(group, pairs, t);
    if (again || is_finite(sums.second) || !has_weight(sums)) return sums;
    unmask(pairs, sums.largest, t);
  }
}

// The sums of elements of which none has a finite p: what q puts there, on a scale of its own. (A p
// that is NaN makes the weight NaN; -inf adds nothing to it.)
template <typename A, int Count>
FASTMEM_HD KlSums<A> sum_masked(const RegisterPairs<A, Count>& pairs, const Temperature<A>& t) {
  KlSums<A> sums = no_kl_sums<A>();
  FASTMEM_UNROLL
  for (int j = 0; j < Count; ++j) sums.largest = larger(sums.largest, pairs.q(j));
  if (!has_weight(sums)) sums.largest = 0;
  FASTMEM_UNROLL
  for (int j = 0; j < Count; ++j) {
    sums.weight += power_of_two(pairs.p(j));
    sums.second += power_of_two((pairs.q(j) - sums.largest) * t.inverse_log2e);
  }
  return sums;
}

// The moments of a part about another centre, relative to another largest p.
template <typename A>
FASTMEM_HD KlSums<A> moved(const KlSums<A>& part, A largest, A centre, const Temperature<A>& t) {
  const Difference<A> below = difference_of(part.largest, largest);
  const Difference<A> delta = difference_of(centre, part.centre);
  const A scale = power_of_two(below.high * t.inverse_log2e);
  // scale exp(delta); where both are large their sum may still be small.
  const A grown = power_of_two(
      (fused(below.high, t.inverse, delta.high) + fused(below.low, t.inverse, delta.low)) *
      kLog2e<A>);
  const A weight = scale * part.weight;
  // sum e phi(v - delta) = exp(delta) sum e phi(v) - expm1(delta) sum e v + phi(-delta) sum e
  const A centres = magnitude(delta.high) <= kSeriesRange<A>
                        ? weight * phi_series(-delta.high)
                        : part.weight * grown - weight * (delta.high + 1);
  return {largest, weight, centre, scale * part.first - delta.high * weight,
          (grown * part.second - (grown - scale) * part.first) + centres};
}

template <typename A>
FASTMEM_HD KlSums<A> merge(const KlSums<A>& a, const KlSums<A>& b, const Temperature<A>& t) {
  if (is_empty(a)) return b;
  if (is_empty(b)) return a;
  const A largest = larger(a.largest, b.largest);
  const A weight_a = a.weight * power_of_two((a.largest - largest) * t.inverse_log2e);
  const A weight_b = b.weight * power_of_two((b.largest - largest) * t.inverse_log2e);
  const A weight = weight_a + weight_b;
  const A share_b = weight > 0 ? quotient(weight_b, weight) : 0;
  const A centre = a.centre + share_b * (b.centre - a.centre);
  KlSums<A> sums = moved(a, largest, centre, t);
  const KlSums<A> from_b = moved(b, largest, centre, t);
  sums.weight += from_b.weight;
  sums.first += from_b.first;
  sums.second += from_b.second;
  return sums;
}

// What forward returns for a row; the last three are what backward rebuilds u = log p - log q from,
// as ((p - q)/T - centre) + shift.
template <typename A>
struct KlRow {
  A kl;
  A lse_p;
  A centre;
  A shift;
};

// x - log1p(x) for |x| <= 1/4.
template <typename A>
FASTMEM_HD A log1p_remainder(A x) {
  constexpr int order = sizeof(A) == 4 ? 11 : 25;
  A series = 0;
  FASTMEM_UNROLL
  for (int k = order; k >= 2; --k) series = fused(-x, series, A{1} / k);
  return x * x * series;
}

template <typename A>
FASTMEM_HD KlRow<A> finish(const KlSums<A>& sums, const Temperature<A>& t) {
  const A first = sums.first / sums.weight, second = sums.second / sums.weight;
  const A x = second - first;
  // first + log1p(x) would cancel where KL is far below first.
  const A kl = magnitude(x) <= A{0.25} ? second - log1p_remainder(x) : first + natural_log1p(x);
  KlRow<A> row;
  row.kl = kl < 0 ? A{0} : kl;
  row.lse_p = fused(sums.largest, t.inverse, natural_log(sums.weight));
  row.centre = sums.centre;
  row.shift = row.kl - first;
  return row;
}

// The row term by term, sum p phi(u) with u from both normalisers: right for every special value.
template <typename Group, typename Pairs, typename A = typename Pairs::Scalar>
FASTMEM_HD KlRow<A> kl_by_terms(const Group& group, const Pairs& pairs, const Temperature<A>& t) {
  A largest = -kInfinity<A>, largest_q = -kInfinity<A>;
  FASTMEM_NO_UNROLL
  for (int j = 0; j < pairs.count(); ++j) {
    largest = larger(largest, pairs.p(j));
    largest_q = larger(largest_q, pairs.q(j));
  }
  largest = group.largest(largest);
  largest_q = group.largest(largest_q);
  A weight_p = 0, weight_q = 0;
  FASTMEM_NO_UNROLL
  for (int j = 0; j < pairs.count(); ++j) {
    weight_p += power_of_two((pairs.p(j) - largest) * t.inverse_log2e);
    weight_q += power_of_two((pairs.q(j) - largest_q) * t.inverse_log2e);
  }
  weight_p = group.sum(weight_p);
  weight_q = group.sum(weight_q);

  KlRow<A> row;
  const A log_weight = natural_log(weight_p);
  row.lse_p = is_finite(largest) ? fused(largest, t.inverse, log_weight) : largest + log_weight;
  // u is about the difference of the two largest logits; the shift is what the normalisers add.
  const Centre<A> centre = make_centre((largest - largest_q) * t.inverse, t);
  row.centre = centre.scaled;
  row.shift =
      natural_log(weight_q) - log_weight - centred_difference(largest, largest_q, centre, t);

  A kl = 0, mean = 0;
  FASTMEM_NO_UNROLL
  for (int j = 0; j < pairs.count(); ++j) {
    const A p = pairs.p(j), q = pairs.q(j);
    const A mass_p = power_of_two((p - largest) * t.inverse_log2e) / weight_p;
    const A mass_q = power_of_two((q - largest_q) * t.inverse_log2e) / weight_q;
    if (p == -kInfinity<A>) {
      kl += mass_q;
    } else if (q == -kInfinity<A>) {
      kl += kInfinity<A>;
    } else {
      const A u = centred_difference(p, q, centre, t) + row.shift;
      mean = fused(mass_p, u, mean);
      kl += magnitude(u) <= kSeriesRange<A> ? mass_p * phi_series(u) : mass_p * (u - 1) + mass_q;
    }
  }
  kl = group.sum(kl);
  // The mean of u is the KL, which depends on the normalisers' rounding to second order only.
  row.shift += kl - group.sum(mean);
  // A NaN, a +inf, or nothing but -inf: no softmax exists.
  const bool defined = is_finite(row.lse_p) && is_finite(largest_q) && weight_q == weight_q;
  row.kl = defined ? kl : kNan<A>;
  return row;
}

template <typename A>
struct KlGradient {
  A p;
  A q;
};

// dKL/dp = P (u - KL)/T and dKL/dq = (Q - P)/T of one element of a row with finite KL.
template <typename A>
FASTMEM_HD KlGradient<A> kl_gradient(A p, A q, const KlRow<A>& row, const Centre<A>& centre,
                                     const Temperature<A>& t) {
  if (p == -kInfinity<A>) {  // P is 0, and Q = exp(q/T - lse_q)
    const A log_q = (fused(q, t.inverse, -row.lse_p) + row.centre) - row.shift;
    return {A{0}, power_of_two(log_q * kLog2e<A>) * t.inverse};
  }
  const A u = centred_difference(p, q, centre, t) + row.shift;
  const A exponent = fused(p, t.inverse, -row.lse_p) * kLog2e<A>;
  const A mass = power_of_two(exponent);
  const A less = magnitude(u) <= kSeriesRange<A>
                     ? -mass * (u * exponential_series<1>(u))  // P expm1(-u)
                     : power_of_two(fused(-u, kLog2e<A>, exponent)) - mass;
  return {mass * (u - row.kl) * t.inverse, less * t.inverse};
}

}  // namespace fastmem
