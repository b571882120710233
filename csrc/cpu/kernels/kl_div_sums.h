// From the sums over a row to its KL, centred so that nothing cancels.
//
// With w = (p - q)/T, v = w - c for any c, and E the mean under softmax(p/T):
//   KL = E[v] + log E[exp(-v)] = E[v] + log1p(E[phi(v)] - E[v]),    phi(v) = v + exp(-v) - 1 >= 0.
// c decides about rounding only: the nearer to E[w], the less of E[phi(v)] cancels against
// E[v]^2/2.
#pragma once

#include "cpu/kernels/math.h"
#include "cpu/kl_div.h"

namespace fastmem::cpu::FASTMEM_ISA {

// A row in each lane. top, the largest logit of p, and centre are in units of the logits; the sums
// of v = (p - q - centre)/T and phi(v) are weighted by Weights(top).
template <int N>
struct CentredSums {
  Vec<float, N> top, centre, weight, v, phi;
};

// Where -v goes beyond this, exp(-v) times a weight that has underflowed may have been lost.
inline constexpr float kLargestRatio = 50;

inline constexpr float kLargestSum = 0x1p100;

template <int N>
FASTMEM_INLINE void store_rows(float* to, Vec<float, N> x, int64_t count) {
  count == Vec<float, N>::kSize ? store(to, x) : store_first(to, x, count);
}

// The results of `count` rows from `row` on.
template <int N>
FASTMEM_INLINE void finish_rows(const CentredSums<N>& sums, const KlDivForward& args, int64_t row,
                                int64_t count) {
  const auto share = 1 / sums.weight, mean_v = sums.v * share, mean_phi = sums.phi * share;
  const auto log = log1p_parts(mean_phi - mean_v);
  // Where the logarithm is small, its leading term cancels against the mean and leaves mean_phi.
  const auto kl = select(log.whole == 0, mean_phi, (mean_v + log.whole) + log.f) - log.bend;
  store_rows(static_cast<float*>(args.kl) + row, max(0, kl), count);
  if (args.lse_p == nullptr) return;
  const auto shift =
      log.whole + (log.f - log.bend);  // logsumexp(p/T) - logsumexp(q/T) = centre/T - shift
  const auto log_weight = FASTMEM_ISA::log(sums.weight);

  constexpr int kRows = Vec<float, N>::kSize;
  float top[kRows], centre[kRows], logs[kRows], shifts[kRows], lse_p[kRows], high[kRows],
      low[kRows];
  store(top, sums.top);
  store(centre, sums.centre);
  store(logs, log_weight);
  store(shifts, shift);
  const double inverse = 1 / args.temperature;
  const float scale = static_cast<float>(Constants<double>::kLog2E / args.temperature);
  for (int i = 0; i < kRows; ++i) {
    lse_p[i] = static_cast<float>(log_of_weight_unit(top[i], scale, args.temperature) + logs[i]);
    const double difference = centre[i] * inverse - shifts[i];
    high[i] = static_cast<float>(difference);
    low[i] = static_cast<float>(high[i] - difference);
  }
  store_rows(static_cast<float*>(args.lse_p) + row, load<N>(lse_p), count);
  store_rows(static_cast<float*>(args.centre) + row, load<N>(high), count);
  store_rows(static_cast<float*>(args.shift) + row, load<N>(low), count);
}

}  // namespace fastmem::cpu::FASTMEM_ISA
