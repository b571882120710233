// What logits say about the label: margin, loss, hinge, max_prob and entropy in one read.
//
// With t = max of the other classes and e_c = exp(z_c - t), everything follows from the label's own
// z_y and three sums over the others, none of which cancels: `below`, of e_c where z_c < t;
// `equal`, how many reach t; and `surprise`, of e_c (t - z_c). Rows where t or z_y is not finite,
// or the label names no class, go through special_row().
#include "cpu/logit_stats.h"

#include "cpu/kernels/columns.h"
#include "cpu/kernels/cursor.h"
#include "cpu/kernels/math.h"

namespace fastmem::cpu::FASTMEM_ISA {
namespace {

inline constexpr int64_t kMaxLaneClasses = 64;

// exp(x) for x <= 0, and 0 below the normal range: a class without mass has none.
template <class T, int N>
FASTMEM_INLINE Vec<T, N> exp_negative(Vec<T, N> x) {
  constexpr T kLowest = T(2 - Constants<T>::kBias) * Constants<T>::kLn2;
  return select(x < kLowest, Vec<T, N>(T(0)), exp2(x * Constants<T>::kLog2E));
}

template <class T, int N>
struct Sums {
  Vec<T, N> label, top, below, equal, surprise;
};

template <class T, int N>
struct Stats {
  Vec<T, N> margin, loss, hinge, max_prob, entropy;
};

template <bool kMarginOnly, class T, int N>
FASTMEM_INLINE Stats<T, N> statistics(const Sums<T, N>& sums) {
  Stats<T, N> stats;
  const auto total = sums.below + sums.equal;
  // log(total) with the 1 of the largest left out of the sum: exact for total near 1.
  stats.hinge = sums.label - sums.top;
  stats.margin = stats.hinge - log1p(sums.below + (sums.equal - 1));
  if constexpr (kMarginOnly) return stats;
  const auto small = exp_negative(-abs(stats.margin));
  stats.loss = select(stats.margin < 0, -stats.margin, Vec<T, N>(T(0))) + log1p(small);
  // Relative to the largest of all, the label included, whose own 1 is left out of `rest`.
  const auto gap = min(T(1e30), abs(stats.hinge)),
             ratio = exp_negative(-gap);  // 0 times infinity is NaN
  const auto wins = stats.hinge > 0;
  const auto rest = select(wins, total * ratio, sums.below + (sums.equal - 1) + ratio);
  const auto surprise =
      select(wins, ratio * (sums.surprise + total * gap), sums.surprise + ratio * gap);
  const auto mass = rest + 1;
  stats.max_prob = 1 / mass;
  stats.entropy = log1p(rest) + surprise / mass;
  return stats;
}

// Every special value, by the definition and in double; one row.
template <class T>
Stats<double, 1> special_row(const T* x, int64_t classes, int64_t label) {
  constexpr double kInf = __builtin_inf(), kNan = __builtin_nan("");
  Stats<double, 1> stats;
  stats.margin = stats.loss = stats.hinge = stats.max_prob = stats.entropy = kNan;
  if (label < 0 || label >= classes) return stats;
  double top = -kInf, largest = -kInf;
  bool nan = false;
  for (int64_t c = 0; c < classes; ++c) {
    const double z = x[c];
    nan = nan || z != z;
    if (z > largest) largest = z;
    if (c != label && z > top) top = z;
  }
  if (nan) return stats;
  const double z_y = x[label];
  stats.hinge = z_y - top;
  double others = 0, all = 0, surprise = 0;
  for (int64_t c = 0; c < classes; ++c) {
    if (c != label) others += __builtin_exp(x[c] - top);
    const double below = x[c] - largest, e = __builtin_exp(below);
    all += e;
    if (e > 0) surprise -= e * below;
  }
  const double lse = top == kInf || top == -kInf ? top : top + __builtin_log(others);
  const double margin = z_y - lse;
  stats.margin = margin;
  stats.loss = margin != margin ? kNan
                                : (margin < 0 ? -margin : 0) +
                                      __builtin_log1p(__builtin_exp(-__builtin_fabs(margin)));
  if (__builtin_fabs(largest) == kInf) return stats;
  stats.max_prob = 1 / all;
  stats.entropy = __builtin_log(all) + surprise / all;
  return stats;
}

template <class T>
void store_row(const LogitStatsForward& args, int64_t row, const Stats<double, 1>& stats) {
  const Vec<double>* values[] = {&stats.margin, &stats.loss, &stats.hinge, &stats.max_prob,
                                 &stats.entropy};
  for (int i = 0; i < kLogitStats; ++i) {
    if (args.stats[i] != nullptr)
      static_cast<T*>(args.stats[i])[row] = static_cast<T>((*values[i])[0]);
  }
}

template <class T>
FASTMEM_INLINE void store_rows(const LogitStatsForward& args, int64_t row, int64_t count,
                               const Stats<T, 1>& stats) {
  const auto put = [&](int stat, Vec<T> values) __attribute__((always_inline)) {
    T* to = static_cast<T*>(args.stats[stat]) + row;
    count == kLanes<T> ? store(to, values) : store_first(to, values, count);
  };
  put(kMargin, stats.margin);
  if (args.stats[kLoss] == nullptr) return;
  put(kLoss, stats.loss);
  put(kHinge, stats.hinge);
  put(kMaxProb, stats.max_prob);
  put(kEntropy, stats.entropy);
}

template <class T, int N>
FASTMEM_INLINE Mask<T, N> ordinary(const Sums<T, N>& sums) {
  // A NaN anywhere has reached `below`.
  return (abs(sums.top) < T(kInfinity)) & (abs(sums.label) < T(kInfinity)) & (sums.below >= T(0));
}

// Walks over the rows and hands out the class values of each, contiguous and as they are computed
// with.
template <class Stored>
class Rows {
 public:
  using T = Compute<Stored>;

  template <class Args>
  Rows(const Args& args, int64_t row, void* scratch)
      : logits_(static_cast<const Stored*>(args.logits)),
        labels_(args.labels),
        classes_(args.classes),
        class_stride_(args.class_stride),
        scratch_(static_cast<T*>(scratch)),
        at_(args.rows, row) {}

  int64_t label() const { return labels_[at_.offset(1)]; }
  void advance(int64_t rows) { at_.advance(rows); }
  const Cursor<2>& at() const { return at_; }

  const T* row() const {
    const Stored* from = logits_ + at_.offset(0);
    if constexpr (__is_same(Stored, T)) {
      if (class_stride_ == 1) return from;
    }
    copy(from, scratch_);
    return scratch_;
  }

  void copy(const Stored* from, T* to) const {
    if (class_stride_ == 1) {
      int64_t c = 0;
      for (; c + kLanes<T> <= classes_; c += kLanes<T>) store(to + c, load(from + c));
      if (c < classes_) store_first(to + c, load_first(from + c, classes_ - c), classes_ - c);
      return;
    }
    for (int64_t c = 0; c < classes_; ++c) {
      Stored one[kLanes<T>] = {from[c * class_stride_]};
      to[c] = load(one)[0];
    }
  }

  const Stored* logits() const { return logits_; }

 private:
  const Stored* logits_;
  const int64_t* labels_;
  int64_t classes_, class_stride_;
  T* scratch_;
  Cursor<2> at_;
};

// Calls body(first class, values, lanes that count) for all classes but the label.
template <int N, class T, class Body>
FASTMEM_INLINE void for_each_other(const T* x, int64_t classes, int64_t label, Body&& body) {
  constexpr int64_t kStep = N * kLanes<T>;
  const auto range = [&](int64_t begin, int64_t end) __attribute__((always_inline)) {
    int64_t c = begin;
    for (; c + kStep <= end; c += kStep) body(c, load<N>(x + c), lanes_below<T, N>(kStep));
    if (c < end) body(c, load_first<N>(x + c, end - c), lanes_below<T, N>(end - c));
  };
  range(0, label);
  range(label + 1, classes);
}

// The sums of one row, in lane 0 of what is returned; `label` names a class.
template <class T>
FASTMEM_INLINE Sums<T, 1> sum_row(const T* x, int64_t classes, int64_t label) {
  constexpr int N = 4;
  Vec<T, N> largest = -T(kInfinity);
  for_each_other<N>(x, classes, label,
                    [&](int64_t, Vec<T, N> z, Mask<T, N> valid) __attribute__((always_inline)) {
                      largest = select(valid, max(largest, z), largest);
                    });
  const T top = maximum(largest);
  Vec<T, N> below = T(0), equal = T(0), surprise = T(0);
  for_each_other<N>(x, classes, label,
                    [&](int64_t, Vec<T, N> z, Mask<T, N> valid) __attribute__((always_inline)) {
                      const Vec<T, N> t = z - top;
                      const Vec<T, N> e = select(valid, exp_negative(t), Vec<T, N>(T(0)));
                      const auto reaches = t == T(0);
                      below += select(reaches, Vec<T, N>(T(0)), e);
                      equal += select(reaches & valid, Vec<T, N>(T(1)), Vec<T, N>(T(0)));
                      surprise -= select(e == T(0), Vec<T, N>(T(0)), e * t);
                    });
  return {x[label], top, sum(below), sum(equal), sum(surprise)};
}

template <class Stored>
class Forward {
 public:
  using T = Compute<Stored>;

  Forward(const LogitStatsForward& args, void* scratch) : args_(args), scratch_(scratch) {}

  void run(int64_t begin, int64_t end) const {
    const bool margin_only = args_.stats[kLoss] == nullptr;
    if (args_.classes <= kMaxLaneClasses) {
      margin_only ? lanes<true>(begin, end) : lanes<false>(begin, end);
    } else {
      margin_only ? long_rows<true>(begin, end) : long_rows<false>(begin, end);
    }
  }

 private:
  // As many rows at a time as a register has lanes, so that their logarithms are taken together.
  template <bool kMarginOnly>
  void long_rows(int64_t begin, int64_t end) const {
    Rows<Stored> rows(args_, begin, scratch_);
    for (int64_t first = begin; first < end; first += kLanes<T>) {
      const int64_t count = end - first < kLanes<T> ? end - first : kLanes<T>;
      T tile[5][kLanes<T>] = {};
      bool special[kLanes<T>] = {};
      for (int64_t i = 0; i < count; ++i) {
        const T* x = rows.row();
        const int64_t label = rows.label();
        special[i] = label < 0 || label >= args_.classes;
        if (!special[i]) {
          const auto sums = sum_row(x, args_.classes, label);
          special[i] = !ordinary(sums)[0];
          const Vec<T>* parts[] = {&sums.label, &sums.top, &sums.below, &sums.equal,
                                   &sums.surprise};
          for (int k = 0; k < 5; ++k) tile[k][i] = (*parts[k])[0];
        }
        if (first + i + 1 < end) rows.advance(1);
      }
      const Sums<T, 1> sums = {load(tile[0]), load(tile[1]), load(tile[2]), load(tile[3]),
                               load(tile[4])};
      store_rows<T>(args_, first, count, statistics<kMarginOnly>(sums));
      for (int64_t i = 0; i < count; ++i) {
        if (special[i]) special_at(first + i);
      }
    }
  }

  template <bool kMarginOnly>
  void lanes(int64_t begin, int64_t end) const {
    const int64_t classes = args_.classes, pitch = padded_classes<T>(classes);
    alignas(64) T stage[kLanes<T> * kMaxLaneClasses];
    Rows<Stored> rows(args_, begin, scratch_);
    for (int64_t row = begin; row < end;) {
      const int64_t count = end - row < kLanes<T> ? end - row : kLanes<T>;
      T label[kLanes<T>] = {};
      const T* from = stage;
      int64_t stride = pitch;
      if (in_place(rows.at(), count)) {
        const Cursor<2>& at = rows.at();
        from = reinterpret_cast<const T*>(rows.logits()) + at.offset(0);
        stride = at.stride(0);
        for (int64_t i = 0; i < count; ++i)
          label[i] = as_class(args_.labels[at.offset(1) + i * at.stride(1)]);
        if (row + count < end) rows.advance(count);
      } else {
        memset(stage, 0, sizeof(T) * kLanes<T> * pitch);
        for (int64_t i = 0; i < count; ++i) {
          rows.copy(rows.logits() + rows.at().offset(0), stage + i * pitch);
          label[i] = as_class(rows.label());
          if (row + i + 1 < end) rows.advance(1);
        }
      }
      const auto sums = sum_lanes(from, stride, load(label));
      store_rows<T>(args_, row, count, statistics<kMarginOnly>(sums));
      const auto fine = ordinary(sums) & (load(label) >= 0);
      for (int64_t i = 0; i < count; ++i) {
        if (!fine[static_cast<int>(i)]) special_at(row + i);
      }
      row += count;
    }
  }

  // Small enough to be exact in a lane; -1 where it names no class.
  T as_class(int64_t label) const {
    return label >= 0 && label < args_.classes ? static_cast<T>(label) : T(-1);
  }

  // Whether load_columns may read the rows where they are: all in a row, and nothing read beyond
  // the last of them.
  bool in_place(const Cursor<2>& at, int64_t count) const {
    if constexpr (!__is_same(Stored, T)) return false;
    const bool padded = padded_classes<T>(args_.classes) != args_.classes;
    return args_.class_stride == 1 && count == kLanes<T> && at.run() >= count + padded &&
           (!padded || at.stride(0) >= padded_classes<T>(args_.classes) - args_.classes);
  }

  Sums<T, 1> sum_lanes(const T* from, int64_t stride, Vec<T> label) const {
    const int64_t classes = args_.classes;
    Register<T> columns[kMaxLaneClasses + kColumnsAtOnce<T>];
    const auto column = [&](int64_t c) __attribute__((always_inline)) {
      Vec<T> x;
      x.r[0] = columns[c];
      return x;
    };
    Sums<T, 1> sums = {T(0), -T(kInfinity), T(0), T(0), T(0)};
    for (int64_t c = 0; c < classes; c += kColumnsAtOnce<T>)
      load_columns(from + c, stride, columns + c);
    for (int64_t c = 0; c < classes; ++c) {
      const auto own = label == static_cast<T>(c);
      sums.label = select(own, column(c), sums.label);
      sums.top = select(own, sums.top, max(sums.top, column(c)));
    }
    for (int64_t c = 0; c < classes; ++c) {
      const auto own = label == static_cast<T>(c);
      const Vec<T> t = column(c) - sums.top;
      const Vec<T> e = exp_negative(t);
      const auto reaches = t == T(0);
      sums.below += select(own | reaches, Vec<T>(T(0)), e);
      sums.equal += select(reaches & !own, Vec<T>(T(1)), Vec<T>(T(0)));
      sums.surprise -= select(own | (e == T(0)), Vec<T>(T(0)), e * t);
    }
    return sums;
  }

  void special_at(int64_t row) const {
    Rows<Stored> rows(args_, row, scratch_);
    store_row<T>(args_, row, special_row(rows.row(), args_.classes, rows.label()));
  }

  const LogitStatsForward& args_;
  void* scratch_;
};

template <class Stored>
class Backward {
 public:
  using T = Compute<Stored>;

  Backward(const LogitStatsBackward& args, void* scratch) : args_(args), scratch_(scratch) {}

  void run(int64_t begin, int64_t end) const {
    Rows<Stored> rows(args_, begin, scratch_);
    for (int64_t row = begin; row < end; ++row) {
      Stored* to = static_cast<Stored*>(args_.gradient) + row * args_.classes;
      const int64_t label = rows.label();
      const T* x = rows.row();
      if (label < 0 || label >= args_.classes || !differentiate(x, label, row, to)) fill_nan(to);
      if (row + 1 < end) rows.advance(1);
    }
  }

 private:
  T grad(int stat, int64_t row) const {
    return args_.grads[stat] == nullptr ? T(0) : static_cast<const T*>(args_.grads[stat])[row];
  }

  // Every class but three gets e_c (alpha + beta (z_c - t)). False where the margin is not finite.
  bool differentiate(const T* x, int64_t label, int64_t row, Stored* to) const {
    const int64_t classes = args_.classes;
    const auto sums = sum_row(x, classes, label);
    if (!ordinary(sums)[0]) return false;
    const auto stats = statistics<false>(sums);
    // Beyond this nothing changes any more, and an infinity times a probability of 0 would be NaN.
    const T margin = min(T(1e30), max(T(-1e30), stats.margin))[0];
    const T top = sums.top[0], z_y = x[label];
    const T total = sums.below[0] + sums.equal[0];
    const T small = exp_negative(Vec<T>(-__builtin_fabs(margin)))[0];
    const T p_y = (margin < 0 ? small : T(1)) / (1 + small),
            p_not_y = (margin < 0 ? T(1) : small) / (1 + small);
    const T of_margin = grad(kMargin, row) - grad(kLoss, row) * p_not_y;
    const T hinge = grad(kHinge, row), entropy = grad(kEntropy, row);
    const T prob = grad(kMaxProb, row) * stats.max_prob[0];
    const T per_e = p_not_y / total;  // p_c = e_c per_e
    const T log_p_top = -minus_log_p_top(margin, small, total);
    const T alpha = -of_margin / total - per_e * (prob + entropy * (log_p_top + stats.entropy[0]));
    const T beta = -per_e * entropy;
    constexpr int N = 2;
    for_each_other<N>(
        x, classes, label, [&](int64_t c, Vec<T, N> z, Mask<T, N>) __attribute__((always_inline)) {
          const Vec<T, N> t = z - top, e = exp_negative(t);
          const auto value =
              select(e == T(0), Vec<T, N>(T(0)), e * fma(t, Vec<T, N>(beta), Vec<T, N>(alpha)));
          const int64_t left = (c < label ? label : classes) - c;
          left >= N* kLanes<T> ? store(to + c, value) : store_first(to + c, value, left);
        });
    // Both -inf, p of the label and its logarithm, are kept apart by hand: its part of the entropy
    // is 0 then.
    const T log_p_y = (margin < 0 ? margin : T(0)) - __builtin_log1p(small);
    const T of_label = of_margin + hinge - p_y * prob -
                       (p_y > 0 ? p_y * entropy * (log_p_y + stats.entropy[0]) : T(0));
    // The first of the largest among the others; at it e = 1 and t = 0. The first among all gets
    // the gradient of max_prob.
    int64_t rival = label == 0 ? 1 : 0;
    while (rival == label || x[rival] != top) ++rival;
    const bool label_first = z_y > top || (z_y == top && label < rival);
    put(to + label, of_label + (label_first ? prob : T(0)));
    put(to + rival, alpha - hinge + (label_first ? T(0) : prob));
    return true;
  }

  // log of the sum over the others, in units of the largest of them, less log p_not_y: -log of p of
  // the largest.
  static T minus_log_p_top(T margin, T small, T total) {
    return (margin > 0 ? margin : T(0)) + __builtin_log1p(small) + __builtin_log(total);
  }

  static void put(Stored* to, T value) { store_first(to, Vec<T>(value), 1); }

  void fill_nan(Stored* to) const {
    for (int64_t c = 0; c < args_.classes; ++c) put(to + c, T(kNaN));
  }

  const LogitStatsBackward& args_;
  void* scratch_;
};

template <class Stored>
void forward(const LogitStatsForward& args, int64_t begin, int64_t end, void* scratch) {
  Forward<Stored>(args, scratch).run(begin, end);
}

template <class Stored>
void backward(const LogitStatsBackward& args, int64_t begin, int64_t end, void* scratch) {
  Backward<Stored>(args, scratch).run(begin, end);
}

}  // namespace

extern const LogitStatsKernels logit_stats;
const LogitStatsKernels logit_stats = {
    {&forward<float>, &forward<double>, &forward<Half>, &forward<BFloat16>},
    {&backward<float>, &backward<double>, &backward<Half>, &backward<BFloat16>}};

}  // namespace fastmem::cpu::FASTMEM_ISA
