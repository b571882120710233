// Statistics of a row of logits z with label y: the arithmetic of every GPU kernel.
//
// Everything follows from the label's logit and from what the other classes add up to,
//
//   margin = z_y - logsumexp over c != y, loss = softplus(-margin), hinge = z_y - max over c != y,
//   max_prob and entropy from both parts together,
//
// so one read of the row gives all five, and parts of a row merge. Infinite logits keep their
// meaning: -inf is a class without mass, +inf one that has it all, NaN spoils the row.
#pragma once

#include <cstdint>

#include "common/scalar.h"

namespace fastmem {

// Classes other than the label, or some of them. `weight` is 0 if all are -inf, +inf if one is +inf
// and NaN if one is NaN; `largest` is always finite.
template <typename A>
struct LogitSums {
  A largest;
  A weight;  // sum exp(z - largest)
  A tilt;    // sum exp(z - largest) (z - largest)
};

template <typename A>
FASTMEM_HD LogitSums<A> no_logit_sums() {
  return {kFarBelow<A>, 0, 0};
}

template <typename A>
FASTMEM_HD A within_range(A largest) {
  return -larger(-larger(largest, kFarBelow<A>), kFarBelow<A>);
}

// Some elements of a row in a thread's registers; absent ones, and the label, are -inf.
template <typename A, int Count>
struct RegisterLogits {
  using Scalar = A;
  A values[Count];
  FASTMEM_HD static constexpr int count() { return Count; }
  FASTMEM_HD A operator()(int j) const { return values[j]; }
};

// The sums of the elements that a group of threads holds among them; the same in every thread.
template <typename Group, typename Logits, typename A = typename Logits::Scalar>
FASTMEM_HD LogitSums<A> sum_logits(const Group& group, const Logits& logits) {
  LogitSums<A> sums = no_logit_sums<A>();
  A largest = -kInfinity<A>;
  FASTMEM_UNROLL
  for (int j = 0; j < logits.count(); ++j) largest = larger(largest, logits(j));
  sums.largest = within_range(group.largest(largest));
  FASTMEM_UNROLL
  for (int j = 0; j < logits.count(); ++j) {
    const A below = logits(j) - sums.largest;
    const A e = power_of_two(below * kLog2e<A>);
    sums.weight += e;
    sums.tilt = fused(e, larger(below, kFarBelow<A>), sums.tilt);
  }
  sums.weight = group.sum(sums.weight);
  sums.tilt = group.sum(sums.tilt);
  return sums;
}

template <typename A>
FASTMEM_HD LogitSums<A> merge(const LogitSums<A>& a, const LogitSums<A>& b) {
  LogitSums<A> sums;
  sums.largest = larger(a.largest, b.largest);
  const A below_a = a.largest - sums.largest, below_b = b.largest - sums.largest;
  const A scale_a = power_of_two(below_a * kLog2e<A>), scale_b = power_of_two(below_b * kLog2e<A>);
  sums.weight = scale_a * a.weight + scale_b * b.weight;
  sums.tilt =
      scale_a * fused(below_a, a.weight, a.tilt) + scale_b * fused(below_b, b.weight, b.tilt);
  return sums;
}

// The largest logit of the others: infinite or NaN where it is.
template <typename A>
FASTMEM_HD A rival_of(const LogitSums<A>& others) {
  if (others.weight == 0) return -kInfinity<A>;
  return is_finite(others.weight) ? others.largest : others.weight;
}

// log(1 + exp(x)).
template <typename A>
FASTMEM_HD A softplus(A x) {
  return larger(x, A{0}) + natural_log1p(power_of_two(-magnitude(x) * kLog2e<A>));
}

template <typename A>
FASTMEM_HD A label_margin(A label_logit, const LogitSums<A>& others) {
  const A hinge = label_logit - rival_of(others);
  return is_finite(hinge) ? hinge - natural_log(others.weight) : hinge;
}

template <typename A>
struct Confidence {
  A max_prob;
  A entropy;
};

// Relative to the largest logit of all, so that neither a certain nor an absent label cancels.
template <typename A>
FASTMEM_HD Confidence<A> confidence(A label_logit, const LogitSums<A>& others) {
  const A rival = rival_of(others);
  const A top = larger(label_logit, rival);
  // No softmax: a NaN (which `larger` drops), a +inf, or nothing but -inf.
  if (label_logit != label_logit || rival != rival || !is_finite(top)) {
    return {kNan<A>, kNan<A>};
  }
  const A gap = label_logit - rival;
  const A scale = power_of_two(-magnitude(gap) * kLog2e<A>);  // 0 where one of the two is absent
  const A distance = scale == 0 ? A{0} : magnitude(gap);
  A rest, surprise;  // weight beside the largest, and sum exp(z - top) (top - z)
  if (gap > 0) {
    rest = scale * others.weight;
    surprise = scale * (distance * others.weight - others.tilt);
  } else {
    rest = (others.weight - 1) + scale;
    surprise = scale * distance - others.tilt;
  }
  const A prob = 1 / (1 + rest);
  return {prob, natural_log1p(rest) + surprise * prob};
}

// The incoming gradients of a row.
template <typename A>
struct LogitGrads {
  A margin, loss, hinge, max_prob, entropy;
};

// What the gradient of every element of a row needs: prob (slope x + level) with the softmax `prob`
// over the others and x = z - reference, more at the largest of them, and one value at the label.
template <typename A>
struct LogitGradientRow {
  A reference;
  A per_weight;
  A level;
  A slope;
  A at_label;
  A more_at_rival;
};

// `rival_is_first`: the rival stands before the label, which decides between equals. NaN where the
// margin is not finite: such a row has no gradient.
template <typename A>
FASTMEM_HD LogitGradientRow<A> gradient_row(A label_logit, const LogitSums<A>& others,
                                            bool rival_is_first, const LogitGrads<A>& grads) {
  const A margin = label_margin(label_logit, others);
  const A valid = is_finite(margin) ? A{0} : kNan<A>;
  const Confidence<A> row = confidence(label_logit, others);
  const A loss = softplus(-margin), other_loss = softplus(margin);
  const A label_prob = power_of_two(-loss * kLog2e<A>);
  const A other_prob = power_of_two(-other_loss * kLog2e<A>);
  const A gap = label_logit - others.largest;
  const bool rival_is_top = gap < 0 || (gap == 0 && rival_is_first);

  const A of_margin = grads.margin - grads.loss * other_prob;
  const A of_top = grads.max_prob * row.max_prob;
  LogitGradientRow<A> out;
  out.reference = others.largest;
  out.per_weight = 1 / others.weight;
  // log p_c + entropy = x + this, for every other class.
  const A offset = row.entropy - other_loss - natural_log(others.weight);
  out.slope = -other_prob * grads.entropy;
  out.level = valid - of_margin - other_prob * (of_top + grads.entropy * offset);
  out.at_label = valid + of_margin + grads.hinge + (rival_is_top ? 0 : of_top) -
                 label_prob * (of_top + grads.entropy * (row.entropy - loss));
  out.more_at_rival = (rival_is_top ? of_top : 0) - grads.hinge;
  return out;
}

// The gradient at a class other than the label.
template <typename A>
FASTMEM_HD A gradient_at(A logit, const LogitGradientRow<A>& row) {
  const A below = larger(logit - row.reference, kFarBelow<A>);
  const A prob = power_of_two(below * kLog2e<A>) * row.per_weight;
  return prob * fused(row.slope, below, row.level);
}

}  // namespace fastmem
