// Leave-one-out moments of shadow models: for every record, query and target the count, mean,
// variance and median of a statistic over the models that trained on the record and over those that
// did not, without the target.
//
// Which models stand beside a target is defined in fastmem/ops/leave_one_out.py. In the designs of
// practice no more than one model is missing from a group, so one table per group, of its moments
// without each of its models in turn, serves all targets. Where more are missing, moments are
// computed from the values that are left. A few targets need no table: they are taken off the sums
// of records side by side.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <new>
#include <utility>
#include <vector>

#include "common/dtype.h"
#include "cpu/arguments.h"
#include "cpu/isa.h"
#include "cpu/kernels/group_sums.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace fastmem::cpu {

FASTMEM_DECLARE_FOR_EVERY_ISA(extern const GroupSumsKernels group_sums)

namespace {

enum Rule : int64_t { kCutNothing = 0, kCutOne = 1, kCutToSmaller = 2 };
constexpr int32_t kSeveral = -1;
// Values read at once, and at least one cache line of each model's row: rows lie far apart, so a
// longer stretch of each keeps the prefetcher busy, while all of them stay in the first cache.
constexpr int64_t kTileValues = 4096, kLine = 8;
// A whole table goes by vectors: so many places of it cost what one alone does.
constexpr int64_t kFew = 4;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

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

// Puts up to three values around the middle of n >= 1 in their places: x[n/2 - 1], x[n/2] and x[n/2
// + 1].
void order_middle(double* x, int64_t n) {
  double* middle = x + n / 2;
  std::nth_element(x, middle, x + n);
  if (n > 1) std::iter_swap(middle - 1, std::max_element(x, middle));
  if (n > 2) std::iter_swap(middle + 1, std::min_element(middle + 1, x + n));
}

// One group of models on a record: what they said, and its moments without one of them, at the
// place of that one; the moments of the whole group come at `size`, and one place is spare.
class Group {
 public:
  Group(int64_t num_models, bool wants_median)
      : models(num_models),
        values(num_models),
        mean(num_models + 2),
        var(num_models + 2),
        median(wants_median ? num_models + 2 : 0),
        rest_(num_models) {}

  int64_t size = 0;
  std::vector<int64_t> models;
  std::vector<double> values, mean, var, median;

  // Of all models, or of those alone whose places are asked for where they are few.
  void tabulate(const std::vector<int32_t>& places) {
    const Sums sums = store(values.data(), size, size);
    const auto each = [&](auto&& table) {
      if (kFew * static_cast<int64_t>(places.size()) >= size) return table(0, size);
      for (const int64_t place : places) {
        if (place >= 0 && place < size) table(place, place + 1);
      }
    };
    if (size >= 3 && std::isfinite(sums.squares)) {
      if (!median.empty()) each([&](int64_t begin, int64_t end) { shift_median(begin, end); });
      each([&](int64_t begin, int64_t end) { subtract(sums, begin, end); });
    } else {
      each([&](int64_t begin, int64_t end) {
        for (int64_t place = begin; place < end; ++place) leave_out(place);
      });
    }
  }

  // Writes the moments without some of the models to `place`: those for which is_left(rank in the
  // group) is false.
  template <class IsLeft>
  void keep(int64_t place, IsLeft&& is_left) {
    int64_t n = 0;
    for (int64_t i = 0; i < size; ++i) {
      if (is_left(i)) rest_[n++] = values[i];
    }
    store(rest_.data(), n, place);
  }

 private:
  // Writes the moments of n values to `place`; orders rest_.
  Sums store(const double* x, int64_t n, int64_t place) {
    Sums sums{.sum = {}, .magnitude = 0, .centre = n > 0 ? x[0] : 0, .squares = 0};
    double offset = 0;
    for (int64_t i = 0; i < n; ++i) {
      sums.sum.add(x[i]);
      sums.magnitude += std::fabs(x[i]);
      offset += x[i] - x[0];
    }
    const double count = static_cast<double>(n);
    mean[place] = sums.mean(count);
    sums.centre += n > 0 ? offset / count : 0;  // exactly x[0] where all are equal
    for (int64_t i = 0; i < n; ++i) sums.squares += (x[i] - sums.centre) * (x[i] - sums.centre);
    var[place] = sums.squares / count;
    if (!median.empty()) {
      const bool has_nan =
          !std::isfinite(sums.squares) && std::any_of(x, x + n, [](double v) { return v != v; });
      if (x != rest_.data()) std::copy(x, x + n, rest_.data());
      if (n > 0 && !has_nan) order_middle(rest_.data(), n);
      median[place] = n > 0 && !has_nan ? 0.5 * (rest_[(n - 1) / 2] + rest_[n / 2]) : kNaN;
    }
    return sums;
  }

  void leave_out(int64_t place) {
    keep(place, [place](int64_t i) { return i != place; });
  }

  // Mean and variance without each value; where differences from the sums lose digits, from the
  // values that are left.
  void subtract(const Sums& sums, int64_t begin, int64_t end) {
    const double n = static_cast<double>(size - 1), per_n = 1 / n;
    const double* x = values.data();
    double *to_mean = mean.data(), *to_var = var.data();
    for (int64_t i = begin; i < end; ++i) {
      const auto rest = sums.without(x[i], n, per_n);
      to_mean[i] = rest.mean;
      to_var[i] = rest.var;
    }
    const Sums::Least least(sums, n, per_n);
    for (int64_t i = begin; i < end; ++i) {
      if (least.lost(mean[i], var[i])) leave_out(i);
      var[i] = std::max(var[i], 0.0);
    }
  }

  // Without x, the values from its rank on move down by one; rest_ holds all values, the middle in
  // order.
  void shift_median(int64_t begin, int64_t end) {
    const int64_t lower = (size - 2) / 2, upper = (size - 1) / 2;
    const double a = rest_[lower], after_a = rest_[lower + 1], b = rest_[upper],
                 after_b = rest_[upper + 1];
    const double* x = values.data();
    double* to = median.data();
    for (int64_t i = begin; i < end; ++i)
      to[i] = 0.5 * ((a < x[i] ? a : after_a) + (b < x[i] ? b : after_b));
  }

  std::vector<double> rest_;
};

// 31 well-mixed bits of target and record; the same as _hash in leave_one_out.py.
int64_t hash(int64_t target, int64_t sample) {
  uint64_t x =
      static_cast<uint64_t>(sample) + static_cast<uint64_t>(target + 1) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return static_cast<int64_t>((x ^ (x >> 31)) >> 33);
}

// Where, of `size` models, those begin that a target does without.
int64_t start_of(const Call& call, int64_t target, int64_t sample, int64_t size) {
  return (hash(target, call.first_sample + sample) * size) >> 31;
}

// Goes from record to record on one thread.
class Worker {
 public:
  explicit Worker(const Call& call)
      : call_(call),
        groups_{Group(call.num_models, call.median[0] != nullptr),
                Group(call.num_models, call.median[1] != nullptr)},
        rank_(call.num_models),
        side_(call.num_models),
        tile_(std::max(kLine, kTileValues /
                                  std::max<int64_t>(call.num_queries * call.num_models, 1) / kLine *
                                  kLine)),
        said_(tile_ * call.num_queries * call.num_models),
        missing_{std::vector<int32_t>(call.num_targets), std::vector<int32_t>(call.num_targets)},
        cuts_{std::vector<Cut>(call.num_targets), std::vector<Cut>(call.num_targets)} {}

  void run(int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += tile_) {
      const int64_t last = std::min(first + tile_, end);
      if (call_.is_double) {
        call_.read<double>(first, last, said_.data());
      } else {
        call_.read<float>(first, last, said_.data());
      }
      const double* said = said_.data();
      for (int64_t sample = first; sample < last; ++sample) {
        divide_models(sample);
        plan(sample);
        for (int64_t query = 0; query < call_.num_queries; ++query, said += call_.num_models) {
          tabulate(said, (sample * call_.num_queries + query) * call_.num_targets);
        }
      }
    }
  }

 private:
  // How the models that a target lacks of a group are found where they are several: besides itself
  // and its partner, of the `left` others those `cut` from the one at `start` on, around the end.
  struct Cut {
    int64_t left, cut, start;
  };

  void divide_models(int64_t sample) {
    const bool* keep = call_.keep + sample * call_.keep_sample;
    int64_t* const models[2] = {groups_[0].models.data(), groups_[1].models.data()};
    int64_t num_in = 0;
    for (int64_t model = 0; model < call_.num_models; ++model) {
      const bool is_in = keep[model * call_.keep_model];
      const int64_t rank = is_in ? num_in : model - num_in;
      side_[model] = is_in ? 0 : 1;
      rank_[model] = rank;
      models[is_in ? 0 : 1][rank] = model;
      num_in += is_in;
    }
    groups_[0].size = num_in;
    groups_[1].size = call_.num_models - num_in;
  }

  void plan(int64_t sample) {
    int32_t* counts[2] = {call_.counts[0] + sample * call_.num_targets,
                          call_.counts[1] + sample * call_.num_targets};
    for (int64_t t = 0; t < call_.num_targets; ++t) {
      const int64_t target = call_.targets[t], rule = call_.rules[t];
      const int own = side_[target], other = 1 - own;
      const int64_t sizes[2] = {groups_[own].size, groups_[other].size};
      if (call_.partners[t] < 0 && rule != kCutToSmaller) {
        // The common case: the target itself, and of the other group one model or none.
        missing_[own][t] = static_cast<int32_t>(rank_[target]);
        missing_[other][t] = static_cast<int32_t>(
            rule == kCutOne ? start_of(call_, target, sample, sizes[1]) : sizes[1]);
        counts[own][t] = static_cast<int32_t>(sizes[0] - 1);
        counts[other][t] = static_cast<int32_t>(sizes[1] - (rule == kCutOne));
      } else {
        plan_any(sample, t, counts);
      }
    }
  }

  void plan_any(int64_t sample, int64_t t, int32_t* const* counts) {
    const int64_t target = call_.targets[t], partner = call_.partners[t], rule = call_.rules[t];
    int64_t left[2], cut[2] = {0, 0};
    for (int g = 0; g < 2; ++g) {
      left[g] = groups_[g].size - (side_[target] == g) - (partner >= 0 && side_[partner] == g);
    }
    if (rule == kCutOne) cut[1 - side_[target]] = 1;
    if (rule == kCutToSmaller) {
      const int larger = left[0] > left[1] ? 0 : 1;
      cut[larger] = left[larger] - left[1 - larger];
    }
    for (int g = 0; g < 2; ++g) {
      const int64_t excluded = groups_[g].size - left[g],
                    start = start_of(call_, target, sample, left[g]);
      int64_t place = kSeveral;
      if (excluded + cut[g] == 0) place = groups_[g].size;
      if (excluded == 0 && cut[g] == 1) place = start;
      if (excluded == 1 && cut[g] == 0) place = rank_[side_[target] == g ? target : partner];
      missing_[g][t] = static_cast<int32_t>(place);
      cuts_[g][t] = {left[g], cut[g], start};
      counts[g][t] = static_cast<int32_t>(left[g] - cut[g]);
    }
  }

  void tabulate(const double* said, int64_t offset) {
    for (int g = 0; g < 2; ++g) {
      Group& group = groups_[g];
      for (int64_t i = 0; i < group.size; ++i) group.values[i] = said[group.models[i]];
      group.tabulate(missing_[g]);
      write(g, offset);
    }
  }

  void write(int g, int64_t offset) {
    Group& group = groups_[g];
    for (int64_t t = 0; t < call_.num_targets; ++t) {
      int64_t place = missing_[g][t];
      if (place == kSeveral) keep_left(group, place = group.size + 1, t, cuts_[g][t]);
      call_.mean[g][offset + t] = group.mean[place];
      call_.var[g][offset + t] = group.var[place];
      if (!group.median.empty()) call_.median[g][offset + t] = group.median[place];
    }
  }

  void keep_left(Group& group, int64_t place, int64_t t, const Cut& cut) {
    int64_t seen = 0;
    group.keep(place, [&](int64_t i) {
      if (group.models[i] == call_.targets[t] || group.models[i] == call_.partners[t]) return false;
      const int64_t from_start = seen++ - cut.start;
      return (from_start < 0 ? from_start + cut.left : from_start) >= cut.cut;
    });
  }

  const Call& call_;
  Group groups_[2];
  std::vector<int64_t> rank_;
  std::vector<int8_t> side_;
  int64_t tile_;  // records read at once
  std::vector<double> said_;
  // Per target the place of the one model that it lacks of a group, the group's size if it lacks
  // none, or kSeveral.
  std::vector<int32_t> missing_[2];
  std::vector<Cut> cuts_[2];
};

// The same for few targets that lack at most one model of a group, and no medians.
class FewTargets {
 public:
  static bool serves(const Call& call) {
    if (call.median[0] != nullptr || kFew * call.num_targets >= call.num_models) return false;
    for (int64_t t = 0; t < call.num_targets; ++t) {
      if (call.partners[t] >= 0 || call.rules[t] == kCutToSmaller) return false;
    }
    return true;
  }

  explicit FewTargets(const Call& call)
      : call_(call),
        any_(call),
        pitch_(std::max(kGroupLanes, kTileValues / call.num_models / kGroupLanes * kGroupLanes)),
        said_(call.num_models * pitch_),
        kept_(call.num_models * pitch_),
        sums_(2 * kSums * pitch_) {}

  void run(int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += pitch_) {
      const int64_t last = std::min(first + pitch_, end);
      read_members(first, last);
      for (int64_t query = 0; query < call_.num_queries; ++query) {
        call_.is_double ? read<double>(first, last, query) : read<float>(first, last, query);
        double* at = sums_.data();
        const auto next = [&] { return std::exchange(at, at + pitch_); };
        GroupSums groups[2];
        for (GroupSums& group : groups) group = {next(), next(), next(), next(), next(), next()};
        FASTMEM_FOR_CURRENT_ISA(group_sums)
            .sum({said_.data(), kept_.data(), call_.num_models, pitch_, {groups[0], groups[1]}});
        for (int64_t sample = first; sample < last; ++sample) {
          // The other way does all queries of a record.
          if (!write(groups, sample, sample - first, query)) any_.run(sample, sample + 1);
        }
      }
    }
  }

 private:
  static constexpr int64_t kSums = sizeof(GroupSums) / sizeof(double*);

  // Beyond the last record stands what was there before, and nobody reads its sums.
  template <class T>
  void read(int64_t first, int64_t last, int64_t query) {
    for (int64_t model = 0; model < call_.num_models; ++model) {
      const T* row = static_cast<const T*>(call_.phi) + model * call_.phi_model +
                     first * call_.phi_sample + query * call_.phi_query;
      double* to = said_.data() + model * pitch_;
      if (call_.phi_sample == 1) {
        for (int64_t i = 0; i < last - first; ++i) to[i] = row[i];
      } else {
        for (int64_t i = 0; i < last - first; ++i) to[i] = row[i * call_.phi_sample];
      }
    }
  }

  void read_members(int64_t first, int64_t last) {
    for (int64_t model = 0; model < call_.num_models; ++model) {
      const bool* row = call_.keep + model * call_.keep_model + first * call_.keep_sample;
      uint8_t* to = kept_.data() + model * pitch_;
      for (int64_t i = 0; i < last - first; ++i) to[i] = row[i * call_.keep_sample];
    }
  }

  // False if a moment has to be taken from the values that are left.
  bool write(const GroupSums* groups, int64_t sample, int64_t record, int64_t query) const {
    for (int64_t t = 0; t < call_.num_targets; ++t) {
      const int64_t target = call_.targets[t];
      const int own = kept_[target * pitch_ + record] != 0 ? 0 : 1;
      for (int g = 0; g < 2; ++g) {
        const GroupSums& group = groups[g];
        const double size = group.count[record];
        const Sums sums{{group.high[record], group.low[record]},
                        group.magnitude[record],
                        group.centre[record],
                        group.squares[record]};
        const bool cut = g != own && call_.rules[t] == kCutOne;
        const int64_t missing = g == own ? target
                                : cut    ? cut_from(g, target, sample, record, size)
                                         : kSeveral;
        const int64_t place = (sample * call_.num_queries + query) * call_.num_targets + t;
        if (query == 0) {
          call_.counts[g][sample * call_.num_targets + t] =
              static_cast<int32_t>(size) - (g == own || cut);
        }
        if (missing == kSeveral) {
          call_.mean[g][place] = sums.mean(size);
          call_.var[g][place] = sums.squares / size;
          continue;
        }
        if (size < 3 || !std::isfinite(sums.squares)) return false;
        const double n = size - 1, per_n = 1 / n;
        const auto rest = sums.without(said_[missing * pitch_ + record], n, per_n);
        if (Sums::Least(sums, n, per_n).lost(rest.mean, rest.var)) return false;
        call_.mean[g][place] = rest.mean;
        call_.var[g][place] = std::max(rest.var, 0.0);
      }
    }
    return true;
  }

  // The model that a target does without; kSeveral if the group is empty.
  int64_t cut_from(int g, int64_t target, int64_t sample, int64_t record, double size) const {
    int64_t left = start_of(call_, target, sample, static_cast<int64_t>(size));
    for (int64_t model = 0; model < call_.num_models; ++model) {
      if ((kept_[model * pitch_ + record] == 0) == (g == 1) && left-- == 0) return model;
    }
    return kSeveral;
  }

  const Call& call_;
  Worker any_;
  int64_t pitch_;
  std::vector<double> said_;
  std::vector<uint8_t> kept_;
  std::vector<double> sums_;
};

void lira_moments(uintptr_t phi, int dtype, py::tuple phi_strides, uintptr_t keep,
                  py::tuple keep_strides, py::tuple sizes, uintptr_t targets, uintptr_t partners,
                  uintptr_t rules, int64_t first_sample, py::tuple counts, py::tuple means,
                  py::tuple vars, py::tuple medians, int threads) {
  const auto pointer = [](const py::tuple& addresses, size_t g) {
    return reinterpret_cast<void*>(item(addresses, g));
  };
  Call call{.phi = reinterpret_cast<const void*>(phi),
            .is_double = static_cast<DType>(dtype) == DType::kFloat64,
            .phi_model = item(phi_strides, 0),
            .phi_sample = item(phi_strides, 1),
            .phi_query = item(phi_strides, 2),
            .keep = reinterpret_cast<const bool*>(keep),
            .keep_model = item(keep_strides, 0),
            .keep_sample = item(keep_strides, 1),
            .num_models = item(sizes, 0),
            .num_samples = item(sizes, 1),
            .num_queries = item(sizes, 2),
            .num_targets = item(sizes, 3),
            .targets = reinterpret_cast<const int64_t*>(targets),
            .partners = reinterpret_cast<const int64_t*>(partners),
            .rules = reinterpret_cast<const int64_t*>(rules),
            .first_sample = first_sample};
  for (int g = 0; g < 2; ++g) {
    call.counts[g] = static_cast<int32_t*>(pointer(counts, g));
    call.mean[g] = static_cast<double*>(pointer(means, g));
    call.var[g] = static_cast<double*>(pointer(vars, g));
    call.median[g] = static_cast<double*>(pointer(medians, g));
  }
  const bool few = FewTargets::serves(call);
  std::atomic<bool> out_of_memory{false};
  {
    py::gil_scoped_release release;
    const int64_t elements = call.num_queries * (call.num_models + call.num_targets) * 16;
    parallel_rows(call.num_samples, elements, 1, threads, [&](int64_t begin, int64_t end) {
      try {
        few ? FewTargets(call).run(begin, end) : Worker(call).run(begin, end);
      } catch (const std::bad_alloc&) {
        out_of_memory.store(true);
      }
    });
  }
  if (out_of_memory.load()) throw std::bad_alloc();
}

}  // namespace

void bind_lira_moments(py::module_& module) {
  module.def("lira_moments", &lira_moments, py::arg("phi"), py::arg("dtype"),
             py::arg("phi_strides"), py::arg("keep"), py::arg("keep_strides"), py::arg("sizes"),
             py::arg("targets"), py::arg("partners"), py::arg("rules"), py::arg("first_sample"),
             py::arg("counts"), py::arg("means"), py::arg("vars"), py::arg("medians"),
             py::arg("threads"),
             "Moments of phi [M, N, A] over the references of T targets; sizes are (M, N, A, T).");
}

}  // namespace fastmem::cpu
