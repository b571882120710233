// KL of short rows: a row in each lane, its classes from register to register.
#pragma once

#include "cpu/kernels/columns.h"
#include "cpu/kernels/kl_div_sums.h"

namespace fastmem::cpu::FASTMEM_ISA {

inline constexpr int64_t kMaxLaneClasses = 64;

// What depends on p alone.
template <int N>
struct LaneWeights {
  Vec<float, N> p[kMaxLaneClasses], weight[kMaxLaneClasses];
  Vec<float, N> top = -kInfinity, total = 0;
};

template <int N>
FASTMEM_INLINE void weigh(LaneWeights<N>& side, int64_t classes, float scale) {
  const Weights<float, N> weights(side.top, scale);
  side.total = 0;
  for (int64_t c = 0; c < classes; ++c) {
    side.weight[c] = weights(side.p[c]);
    side.total += side.weight[c];
  }
}

template <int N>
FASTMEM_INLINE void load_p(LaneRows<float> rows, int64_t classes, float scale,
                           LaneWeights<N>& side) {
  side.top = -kInfinity;
  for_each_column<N>(rows, classes, [&](int64_t c, Vec<float, N> p) __attribute__((always_inline)) {
    side.p[c] = p;
    side.top = max(side.top, p);
  });
  weigh(side, classes, scale);
}

// The same numbers in every lane, for a p that many rows share.
inline void load_shared_p(const float* p, int64_t classes, float scale, LaneWeights<1>& side) {
  side.top = -kInfinity;
  for (int64_t c = 0; c < classes; ++c) {
    side.p[c] = p[c];
    side.top = max(side.top, side.p[c]);
  }
  weigh(side, classes, scale);
}

template <int N>
FASTMEM_INLINE Vec<float, N> repeat(Vec<float, 1> x) {
  Vec<float, N> y;
  FASTMEM_EACH_REGISTER(y, (static_cast<void>(i), x.r[0]));
  return y;
}

template <int N>
FASTMEM_INLINE Vec<float, N> repeat(Vec<float, N> x) {
  return x;
}

// Rows of q against their p, or against the one p that all of them share. `trusted` tells for which
// rows the sums are good: not for those with special or extreme values.
template <bool kScaled, int N, int kOfP>
FASTMEM_INLINE CentredSums<N> sum_lanes(const LaneWeights<kOfP>& side, LaneRows<float> q,
                                        int64_t classes, float inverse, float scale,
                                        Mask<float, N>& trusted) {
  Vec<float, N> s[kMaxLaneClasses], r[kMaxLaneClasses];
  Vec<float, N> weighted = 0;
  for_each_column<N>(q, classes, [&](int64_t c, Vec<float, N> q) __attribute__((always_inline)) {
    const auto p = repeat<N>(side.p[c]);
    s[c] = p - q;
    r[c] = rounding_of_difference(p, q, s[c]);
    weighted = fma(repeat<N>(side.weight[c]), s[c], weighted);
  });
  CentredSums<N> sums{repeat<N>(side.top), 0, repeat<N>(side.total), 0, 0};
  sums.centre = weighted / sums.weight;
  Vec<float, N> lowest = 0;
  for (int64_t c = 0; c < classes; ++c) {
    auto rough = s[c] - sums.centre, v = rough + r[c];
    if constexpr (kScaled) {
      rough *= inverse;
      v *= inverse;
    }
    const auto weight = repeat<N>(side.weight[c]);
    sums.v = fma(weight, v, sums.v);
    sums.phi = fma(weight, phi(v, rough), sums.phi);
    lowest = lower_if_negative(lowest, v);
  }
  // False for NaN, which every special value has become by now.
  trusted = (lowest > -kLargestRatio) & (sums.phi < kLargestSum) &
            (abs(sums.top * scale) < Weights<float, N>::kLargestScaled);
  return sums;
}

}  // namespace fastmem::cpu::FASTMEM_ISA
