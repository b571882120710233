// What lira_moments is asked, and the arithmetic of sums that values are taken off.
#pragma once

#include <cmath>
#include <cstdint>

namespace fastmem::cpu::lira {

enum Rule : int64_t { kCutNothing = 0, kCutOne = 1, kCutToSmaller = 2 };
inline constexpr int32_t kSeveral = -1;
// Values read at once, and at least one cache line of each model's row: rows lie far apart, so a
// longer stretch of each keeps the prefetcher busy, while all of them stay in the first cache.
inline constexpr int64_t kTileValues = 4096, kLine = 8;
// A whole table goes by vectors: so many places of it cost what one alone does.
inline constexpr int64_t kFew = 4;

struct Call {
  const void* phi;
  bool is_double;
  int64_t phi_model, phi_sample, phi_query;  // strides in elements
  const bool* keep;
  int64_t keep_model, keep_sample;
  int64_t num_models, num_samples, num_queries, num_targets;
  const int64_t *targets, *partners, *rules;
  int64_t first_sample;
  // IN, then OUT. Counts are [N, T], moments [N, A, T]; the medians may be null.
  int32_t* counts[2] = {};
  double *mean[2] = {}, *var[2] = {}, *median[2] = {};

  // What all models said about some records, as double [records, A, M].
  template <class T>
  void read(int64_t begin, int64_t end, double* to) const {
    for (int64_t model = 0; model < num_models; ++model) {
      const T* row = static_cast<const T*>(phi) + model * phi_model + begin * phi_sample;
      double* place = to + model;
      for (int64_t sample = begin; sample < end; ++sample, row += phi_sample) {
        for (int64_t query = 0; query < num_queries; ++query, place += num_models)
          *place = row[query * phi_query];
      }
    }
  }
};

// A sum carried in twice the precision of a double. Rounded, it does not depend on the order of
// additions but for accidents of probability 2^-30, so the mean of a set of values is the same
// however the set came about.
struct Sum {
  double high = 0, low = 0;

  void add(double x) {
    const double sum = high + x, part = sum - high;
    low += (high - (sum - part)) + (x - part);
    high = sum;
  }

  Sum minus(double x) const {
    const double sum = high - x, part = sum - high;
    return {sum, low + ((high - (sum - part)) - (x + part))};
  }

  double value() const { return high + low; }
};

// What a group of values comes to.
struct Sums {
  Sum sum;
  double magnitude;        // sum of absolute values
  double centre, squares;  // sum of squares about the centre, which is the mean up to rounding

  // The error term of an infinite sum is NaN.
  double mean(double count) const {
    return (std::isfinite(sum.high) ? sum.value() : sum.high) / count;
  }

  // Mean and variance without one of the values, n being left, as differences from the sums of all.
  struct Rest {
    double mean, var;
  };
  Rest without(double x, double n, double per_n) const {
    const double away = x - centre, left = sum.minus(x).value() / n, shift = left - centre;
    return {left, (squares - away * away) * per_n - shift * shift};
  }

  // These keep their digits unless they are small beside the sums.
  class Least {
   public:
    Least(const Sums& sums, double n, double per_n) : mean_(sums.magnitude * 0x1p-20 * per_n) {
      const double rounding = sums.centre * 0x1p-46;
      var_ = sums.squares > n * rounding * rounding ? sums.squares * 0x1p-10 * per_n : -1;
    }
    bool lost(double mean, double var) const { return std::fabs(mean) < mean_ || var < var_; }

   private:
    double mean_, var_;
  };
};

// 31 well-mixed bits of target and record; the same as _hash in leave_one_out.py.
inline int64_t hash(int64_t target, int64_t sample) {
  uint64_t x =
      static_cast<uint64_t>(sample) + static_cast<uint64_t>(target + 1) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return static_cast<int64_t>((x ^ (x >> 31)) >> 33);
}

// Where, of `size` models, those begin that a target does without.
inline int64_t start_of(const Call& call, int64_t target, int64_t sample, int64_t size) {
  return (hash(target, call.first_sample + sample) * size) >> 31;
}

}  // namespace fastmem::cpu::lira
