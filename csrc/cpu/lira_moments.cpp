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
#include <new>
#include <utility>
#include <vector>

#include "common/dtype.h"
#include "cpu/arguments.h"
#include "cpu/isa.h"
#include "cpu/kernels/group_sums.h"
#include "cpu/lira_groups.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace fastmem::cpu {

FASTMEM_DECLARE_FOR_EVERY_ISA(extern const GroupSumsKernels group_sums)

namespace lira {
namespace {

// Moments for few targets that lack at most one model of a group, and no medians.
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

}  // namespace
}  // namespace lira

namespace {

void lira_moments(uintptr_t phi, int dtype, py::tuple phi_strides, uintptr_t keep,
                  py::tuple keep_strides, py::tuple sizes, uintptr_t targets, uintptr_t partners,
                  uintptr_t rules, int64_t first_sample, py::tuple counts, py::tuple means,
                  py::tuple vars, py::tuple medians, int threads) {
  const auto pointer = [](const py::tuple& addresses, size_t g) {
    return reinterpret_cast<void*>(item(addresses, g));
  };
  lira::Call call{.phi = reinterpret_cast<const void*>(phi),
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
  const bool few = lira::FewTargets::serves(call);
  std::atomic<bool> out_of_memory{false};
  {
    py::gil_scoped_release release;
    const int64_t elements = call.num_queries * (call.num_models + call.num_targets) * 16;
    parallel_rows(call.num_samples, elements, 1, threads, [&](int64_t begin, int64_t end) {
      try {
        few ? lira::FewTargets(call).run(begin, end) : lira::Worker(call).run(begin, end);
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
