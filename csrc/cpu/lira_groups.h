// Moments for any targets: a table of a group's moments without each of its models in turn.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/lira_call.h"

namespace fastmem::cpu::lira {

inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Puts up to three values around the middle of n >= 1 in their places: x[n/2 - 1], x[n/2] and x[n/2
// + 1].
inline void order_middle(double* x, int64_t n) {
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

}  // namespace fastmem::cpu::lira
