// The arithmetic of the GPU kernels (csrc/common) as a library for tests, compiled for the CPU.
#include <cstdint>

#include "common/kl_math.h"
#include "common/logit_math.h"

namespace {

using namespace fastmem;

template <typename A>
struct ArrayPairs {
  using Scalar = A;
  const A *p_values, *q_values;
  int number;
  int count() const { return number; }
  A p(int j) const { return p_values[j]; }
  A q(int j) const { return q_values[j]; }
};

template <typename A>
struct ArrayLogits {
  using Scalar = A;
  const A* values;
  int number;
  int count() const { return number; }
  A operator()(int j) const { return values[j]; }
};

template <typename A>
void put(const KlRow<A>& row, A* out) {
  out[0] = row.kl;
  out[1] = row.lse_p;
  out[2] = row.centre;
  out[3] = row.shift;
}

// A row cut at ascending `ends`, its parts merged one after another.
template <typename A>
int kl_of_parts(const A* p, const A* q, const int64_t* ends, int64_t parts, double temperature,
                A* out) {
  const Temperature<A> t = make_temperature<A>(temperature);
  KlSums<A> sums = no_kl_sums<A>();
  int64_t begin = 0;
  for (int64_t part = 0; part < parts; ++part) {
    const int count = static_cast<int>(ends[part] - begin);
    if (count > 0) {
      const ArrayPairs<A> pairs{p + begin, q + begin, count};
      sums = merge(sums, sum_pairs(Alone{}, pairs, t), t);
    }
    begin = ends[part];
  }
  put(finish(sums, t), out);
  return is_regular(sums);
}

template <typename A>
void kl_of_terms(const A* p, const A* q, int64_t count, double temperature, A* out) {
  const Temperature<A> t = make_temperature<A>(temperature);
  put(kl_by_terms(Alone{}, ArrayPairs<A>{p, q, static_cast<int>(count)}, t), out);
}

template <typename A>
void kl_gradients(const A* p, const A* q, int64_t count, double temperature, const A* row, A* dp,
                  A* dq) {
  const Temperature<A> t = make_temperature<A>(temperature);
  const KlRow<A> values{row[0], row[1], row[2], row[3]};
  const Centre<A> centre = make_centre(values.centre, t);
  for (int64_t i = 0; i < count; ++i) {
    const KlGradient<A> gradient = kl_gradient(p[i], q[i], values, centre, t);
    dp[i] = gradient.p;
    dq[i] = gradient.q;
  }
}

template <typename A>
void logit_statistics(const A* others, const int64_t* ends, int64_t parts, A logit, A* out) {
  LogitSums<A> sums = no_logit_sums<A>();
  int64_t begin = 0;
  for (int64_t part = 0; part < parts; ++part) {
    const ArrayLogits<A> logits{others + begin, static_cast<int>(ends[part] - begin)};
    sums = merge(sums, sum_logits(Alone{}, logits));
    begin = ends[part];
  }
  const Confidence<A> both = confidence(logit, sums);
  out[0] = label_margin(logit, sums);
  out[1] = softplus(-out[0]);
  out[2] = logit - rival_of(sums);
  out[3] = both.max_prob;
  out[4] = both.entropy;
}

}  // namespace

#define FASTMEM_TEST_EXPORTS(A, suffix)                                                            \
  extern "C" void centred_difference_##suffix(const A* p, const A* q, int64_t count, A centre,     \
                                              double temperature, A* out) {                        \
    const auto t = make_temperature<A>(temperature);                                               \
    const auto parts = make_centre(centre, t);                                                     \
    for (int64_t i = 0; i < count; ++i) out[i] = centred_difference(p[i], q[i], parts, t);         \
  }                                                                                                \
  extern "C" void phi_series_##suffix(const A* v, int64_t count, A* out) {                         \
    for (int64_t i = 0; i < count; ++i) out[i] = phi_series(v[i]);                                 \
  }                                                                                                \
  extern "C" void log1p_remainder_##suffix(const A* x, int64_t count, A* out) {                    \
    for (int64_t i = 0; i < count; ++i) out[i] = log1p_remainder(x[i]);                            \
  }                                                                                                \
  extern "C" int kl_of_parts_##suffix(const A* p, const A* q, const int64_t* ends, int64_t parts,  \
                                      double temperature, A* out) {                                \
    return kl_of_parts(p, q, ends, parts, temperature, out);                                       \
  }                                                                                                \
  extern "C" void kl_of_terms_##suffix(const A* p, const A* q, int64_t count, double temperature,  \
                                       A* out) {                                                   \
    kl_of_terms(p, q, count, temperature, out);                                                    \
  }                                                                                                \
  extern "C" void kl_gradients_##suffix(const A* p, const A* q, int64_t count, double temperature, \
                                        const A* row, A* dp, A* dq) {                              \
    kl_gradients(p, q, count, temperature, row, dp, dq);                                           \
  }                                                                                                \
  extern "C" void logit_statistics_##suffix(const A* others, const int64_t* ends, int64_t parts,   \
                                            A logit, A* out) {                                     \
    logit_statistics(others, ends, parts, logit, out);                                             \
  }

FASTMEM_TEST_EXPORTS(float, f32)
FASTMEM_TEST_EXPORTS(double, f64)
