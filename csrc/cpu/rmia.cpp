// The RMIA count: of Z population records, how many have a smaller ratio than each of N records?
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>

#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace fastmem::cpu {
namespace {

// The number of sorted values below x, without a branch on the data: the steps of the search do not
// depend on it.
int64_t count_below(const double* sorted, int64_t count, double x) {
  const double* base = sorted;
  while (count > 1) {
    const int64_t half = count / 2;
    base += base[half - 1] < x ? half : 0;
    count -= half;
  }
  return base - sorted + (count == 1 && *base < x);
}

// ratios_x [T, N], ratios_z [T, Z] and scores [T, N] are contiguous; nothing is NaN.
void rmia(uintptr_t ratios_x, uintptr_t ratios_z, uintptr_t scores, int64_t num_targets,
          int64_t num_records, int64_t num_population, double log_gamma, int threads) {
  const auto* x = reinterpret_cast<const double*>(ratios_x);
  const auto* z = reinterpret_cast<const double*>(ratios_z);
  auto* out = reinterpret_cast<double*>(scores);
  py::gil_scoped_release release;
  const std::unique_ptr<double[]> sorted(new double[num_targets * num_population]);
  parallel_rows(num_targets, 16 * num_population, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      double* row = sorted.get() + t * num_population;
      std::copy_n(z + t * num_population, num_population, row);
      std::sort(row, row + num_population);
    }
  });
  parallel_rows(num_targets * num_records, 16, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double* row = sorted.get() + i / num_records * num_population;
      out[i] = static_cast<double>(count_below(row, num_population, x[i] - log_gamma)) /
               static_cast<double>(num_population);
    }
  });
}

}  // namespace

void bind_rmia(py::module_& module) {
  module.def(
      "rmia", &rmia, py::arg("ratios_x"), py::arg("ratios_z"), py::arg("scores"),
      py::arg("num_targets"), py::arg("num_records"), py::arg("num_population"),
      py::arg("log_gamma"), py::arg("threads"),
      "Share of the population with a ratio strictly below each record's ratio divided by gamma.");
}

}  // namespace fastmem::cpu
