// KL of long rows: a single sweep over p and q, centred on a guess from the first few classes.
//
// The guess decides about rounding only. After every block the sums tell whether it was good
// enough; if not, the centre moves to the mean found so far, what has been summed is carried over,
// and the block is swept again.
#pragma once

#include "cpu/kernels/convert.h"
#include "cpu/kernels/kl_div_sums.h"

namespace fastmem::cpu::FASTMEM_ISA {

// Registers that are worked on side by side.
inline constexpr int kUnroll = 2;

inline constexpr int64_t kPilotClasses = 64;
// Bounds how many numbers one lane adds up in float.
inline constexpr int64_t kBlockClasses = 128 * kLanes<float>;

// How many times the rounding error of a KL may exceed that of a row centred on its mean.
inline constexpr double kLargestNoise = 2.5;

struct RowSums {
  float top, centre;
  double weight, v, phi;
};

// log(1 + x) to 0.06, for x above -1.
inline double rough_log1p(double x) {
  const double y = 1 + x;
  const int64_t bits = bit_cast<int64_t>(y);
  const int64_t exponent = (bits >> 52) - 1023;
  const double mantissa = bit_cast<double>((bits & 0xfffffffffffff) | 0x3ff0000000000000);
  return (static_cast<double>(exponent) + (mantissa - 1)) * 0.6931471805599453;
}

// Whether rounding errors of the sums, which are in proportion to them, remain small in the KL that
// they give. False for sums that are not finite.
inline bool well_centred(const RowSums& sums) {
  const double mean_v = sums.v / sums.weight, mean_phi = sums.phi / sums.weight;
  const double x = mean_phi - mean_v;
  const double kl =
      __builtin_fabs(x) < 0.5 ? mean_phi - x * x / (2 + x * (4.0 / 3)) : mean_v + rough_log1p(x);
  return mean_phi + __builtin_fabs(mean_v * x) <= kLargestNoise * kl * (1 + x) &&
         mean_phi < kLargestSum;
}

// Whether p - q, rounded, is as good as exact. Its error is at most 2^-24 times |centre| + |v|, of
// which the second part is in proportion to v. The first costs the KL at most itself times
// sum |p - q|, so by Pinsker's inequality a share of at most 2^-24 |centre| sqrt(2 / KL), with KL
// at least log(1 + mean_phi) around the mean: under this bound, 2e-6.
inline bool differences_are_exact(double centre, double mean_phi) {
  return centre * centre <= 512 * (mean_phi < 0.5 ? mean_phi : 0.5);
}

// The same sums around another centre, `step` further on in units of v.
inline void move_centre(RowSums& sums, float centre, double step) {
  const double exp_minus_v = (sums.phi - sums.v) + sums.weight;
  sums.centre = centre;
  sums.v -= step * sums.weight;
  sums.phi = (sums.v - sums.weight) + __builtin_exp(step) * exp_minus_v;
}

enum class RowOutcome { kSummed, kNeedsRemainders, kNeedsExactForm };

// One row of p and q, or one of q against a p whose weights are known; kRemainders: with what
// rounding takes from p - q.
template <class Stored, bool kScaled, bool kWeighed, bool kRemainders>
class LongRow {
 public:
  LongRow(const Stored* p, const Stored* q, const float* weights, int64_t classes,
          double temperature)
      : p_(p),
        q_(q),
        weights_(weights),
        classes_(classes),
        temperature_(temperature),
        inverse_(static_cast<float>(1 / temperature)),
        scale_(static_cast<float>(Constants<double>::kLog2E / temperature)) {}

  RowOutcome sum(float top, RowSums& total) const {
    total = pilot(top);
    if (!(__builtin_fabsf(total.top) * scale_ < Weights<float, 1>::kLargestScaled))
      return RowOutcome::kNeedsExactForm;
    for (int64_t begin = 0; begin < classes_; begin += kBlockClasses) {
      const int64_t end = begin + kBlockClasses < classes_ ? begin + kBlockClasses : classes_;
      for (int attempt = 0;; ++attempt) {
        RowSums with = total;
        if (!add_block(begin, end, with)) return RowOutcome::kNeedsExactForm;
        if (well_centred(with)) {
          total = with;
          break;
        }
        if (attempt == 3) return RowOutcome::kNeedsExactForm;
        const float centre = static_cast<float>(with.centre + with.v / with.weight * temperature_);
        move_centre(total, centre, (static_cast<double>(centre) - with.centre) / temperature_);
      }
      if (!kRemainders &&
          !differences_are_exact(total.centre / temperature_, total.phi / total.weight))
        return RowOutcome::kNeedsRemainders;
    }
    return RowOutcome::kSummed;
  }

 private:
  static constexpr int kStep = kLanes<float>;
  // What is fetched ahead, in the next row too: the processor itself stops at every page.
  static constexpr int64_t kAhead = 2048 / sizeof(Stored);

  template <int N>
  struct Registers {
    Vec<float, N> weight = 0, v = 0, phi = 0, lowest = 0;
  };

  RowSums pilot(float top) const {
    const int64_t end = classes_ < kPilotClasses ? classes_ : kPilotClasses;
    if constexpr (!kWeighed) {
      auto largest = load(p_);
      for (int64_t i = kStep; i + kStep <= end; i += kStep) largest = max(largest, load(p_ + i));
      top = maximum(largest);
    }
    const Weights<float, 1> weights(top, scale_);
    Vec<float> weight = 0, difference = 0;
    for (int64_t i = 0; i + kStep <= end; i += kStep) {
      const auto p = load(p_ + i), e = weigh(i, p, weights);
      weight += e;
      difference = fma(e, p - load(q_ + i), difference);
    }
    return {top, FASTMEM_ISA::sum(difference) / FASTMEM_ISA::sum(weight), 0, 0, 0};
  }

  template <int N>
  FASTMEM_INLINE Vec<float, N> weigh(int64_t i, Vec<float, N> p,
                                     const Weights<float, N>& weights) const {
    if constexpr (kWeighed) {
      return load<N>(weights_ + i);
    } else {
      return weights(p);
    }
  }

  template <int N>
  FASTMEM_INLINE Vec<float, N> centred(Vec<float, N> p, Vec<float, N> q, float centre,
                                       Vec<float, N>& rough) const {
    const auto s = p - q;
    rough = s - centre;
    auto v = rough;
    if constexpr (kRemainders) v += rounding_of_difference(p, q, s);
    if constexpr (kScaled) {
      rough *= inverse_;
      v *= inverse_;
    }
    return v;
  }

  template <int N>
  FASTMEM_INLINE void add(Vec<float, N> e, Vec<float, N> v, Vec<float, N> rough,
                          Registers<N>& sums) const {
    sums.weight += e;
    sums.v = fma(e, v, sums.v);
    sums.phi = fma(e, phi(v, rough), sums.phi);
    sums.lowest = lower_if_negative(sums.lowest, v);
  }

  // False if there are special or extreme values in the block.
  bool add_block(int64_t begin, int64_t end, RowSums& total) const {
    Registers<kUnroll> sums;
    const Weights<float, kUnroll> weights(total.top, scale_);
    int64_t i = begin;
    for (; i + kUnroll * kStep <= end; i += kUnroll * kStep) {
      __builtin_prefetch(p_ + i + kAhead);
      __builtin_prefetch(q_ + i + kAhead);
      const auto p = load<kUnroll>(p_ + i), q = load<kUnroll>(q_ + i);
      Vec<float, kUnroll> rough;
      const auto v = centred(p, q, total.centre, rough);
      add(weigh(i, p, weights), v, rough, sums);
    }
    if (i < end) {
      const auto valid = lanes_below<float, kUnroll>(end - i);
      const auto p = load_first<kUnroll>(p_ + i, end - i), q = load_first<kUnroll>(q_ + i, end - i);
      Vec<float, kUnroll> rough;
      const auto v = centred(p, q, total.centre, rough);
      const auto e = kWeighed ? load_first<kUnroll>(weights_ + i, end - i) : weights(p);
      add(select(valid, e, 0), select(valid, v, 0), select(valid, rough, 0), sums);
    }
    total.weight += FASTMEM_ISA::sum(sums.weight);
    total.v += FASTMEM_ISA::sum(sums.v);
    total.phi += FASTMEM_ISA::sum(sums.phi);
    return minimum(sums.lowest) > -kLargestRatio && total.phi < kLargestSum &&
           total.weight < kLargestSum;
  }

  const Stored *p_, *q_;
  const float* weights_;
  int64_t classes_;
  double temperature_;
  float inverse_, scale_;
};

}  // namespace fastmem::cpu::FASTMEM_ISA
