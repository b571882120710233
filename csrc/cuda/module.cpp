// fastmem._cuda: operators on raw pointers, sizes, strides and a stream. It knows nothing of torch;
// who calls it checks arguments and owns memory. Importing it touches no device.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <tuple>

#include "cuda/operators.h"

namespace py = pybind11;

namespace fastmem::cuda {
namespace {

using Sizes = std::vector<int64_t>;
using Address = uintptr_t;

// (device, stream, dtype code), and (address, leading strides, stride of classes or none).
using TargetTuple = std::tuple<int, Address, int>;
using LogitsTuple = std::tuple<Address, Sizes, int64_t>;
using LabelsTuple = std::tuple<Address, Sizes>;

void* at(Address address) { return reinterpret_cast<void*>(address); }

Target target_of(const TargetTuple& tuple) {
  const auto& [device, stream, dtype] = tuple;
  if (!is_dtype(dtype)) throw std::invalid_argument("unknown dtype code");
  return {device, at(stream), static_cast<DType>(dtype)};
}

Logits logits_of(const LogitsTuple& tuple) {
  const auto& [data, strides, class_stride] = tuple;
  return {at(data), strides, class_stride};
}

Labels labels_of(const LabelsTuple& tuple) {
  const auto& [data, strides] = tuple;
  return {static_cast<const int64_t*>(at(data)), strides};
}

int64_t checked_classes(int64_t classes) {
  if (classes < 1 || classes > kMaxClasses) throw std::invalid_argument("classes out of range");
  return classes;
}

KlRows rows_of(const std::array<Address, 5>& rows) {
  return {at(rows[0]), at(rows[1]), at(rows[2]), at(rows[3]), at(rows[4])};
}

void forward_kl(const TargetTuple& target, const Sizes& sizes, int64_t classes,
                const LogitsTuple& p, const LogitsTuple& q, double temperature,
                const std::array<Address, 4>& outputs, Address workspace, int64_t segments) {
  kl_div_forward({target_of(target), sizes, checked_classes(classes), logits_of(p), logits_of(q),
                  temperature, at(outputs[0]), at(outputs[1]), at(outputs[2]), at(outputs[3]),
                  at(workspace), segments});
}

void backward_kl(const TargetTuple& target, const Sizes& sizes, int64_t classes,
                 const LogitsTuple& p, const LogitsTuple& q, double temperature,
                 const std::array<Address, 5>& rows, Address dp, Address dq) {
  kl_div_backward({target_of(target), sizes, checked_classes(classes), logits_of(p), logits_of(q),
                   temperature, rows_of(rows), at(dp), at(dq)});
}

void backward_kl_summed(const TargetTuple& target, const Sizes& kept, const Sizes& summed,
                        int64_t classes, const LogitsTuple& p, const LogitsTuple& q,
                        const Sizes& row_strides, double temperature,
                        const std::array<Address, 5>& rows, bool sum_p, Address gradient,
                        Address other_gradient, Address workspace, int64_t segments) {
  kl_div_backward_summed({target_of(target), kept, summed, checked_classes(classes), logits_of(p),
                          logits_of(q), row_strides, temperature, rows_of(rows), sum_p,
                          at(gradient), at(other_gradient), at(workspace), segments});
}

void forward_logits(const TargetTuple& target, const Sizes& sizes, int64_t classes,
                    const LogitsTuple& logits, const LabelsTuple& labels,
                    const std::array<Address, 5>& outputs, Address workspace, int64_t segments) {
  logit_stats_forward({target_of(target), sizes, checked_classes(classes), logits_of(logits),
                       labels_of(labels), at(outputs[0]), at(outputs[1]), at(outputs[2]),
                       at(outputs[3]), at(outputs[4]), at(workspace), segments});
}

void backward_logits(const TargetTuple& target, const Sizes& sizes, int64_t classes,
                     const LogitsTuple& logits, const LabelsTuple& labels,
                     const std::array<Address, 5>& grads, Address dlogits, Address workspace,
                     int64_t segments) {
  logit_stats_backward({target_of(target), sizes, checked_classes(classes), logits_of(logits),
                        labels_of(labels), at(grads[0]), at(grads[1]), at(grads[2]), at(grads[3]),
                        at(grads[4]), at(dlogits), at(workspace), segments});
}

}  // namespace
}  // namespace fastmem::cuda

PYBIND11_MODULE(_cuda, module) {
  using namespace fastmem::cuda;
  using py::arg;
  const py::call_guard<py::gil_scoped_release> released;
  module.doc() = "CUDA kernels of fastmem's operators. Address 0 stands for an output not wanted.";
  module.attr("EMULATED") = is_emulated();
  module.attr("MAX_CLASSES") = kMaxClasses;
  module.attr("MAX_LEADING_DIMS") = kMaxLeadingDims;
  module.attr("KL_SUMS") = kKlSums;
  module.attr("LOGIT_SUMS") = kLogitSums;
  module.def("device_count", &device_count,
             "Number of CUDA devices; 0 for whatever reason there is none.");
  module.def("row_segments", &row_segments, arg("device"), arg("rows"), arg("classes"),
             "Segments into which long rows are cut.");
  module.def("sum_segments", &sum_segments, arg("device"), arg("kept_rows"), arg("summed_rows"),
             arg("classes"), "Segments into which a sum over rows is cut.");
  module.def("kl_div_forward", &forward_kl, released, arg("target"), arg("sizes"), arg("classes"),
             arg("p"), arg("q"), arg("temperature"), arg("outputs"), arg("workspace"),
             arg("segments"));
  module.def("kl_div_backward", &backward_kl, released, arg("target"), arg("sizes"), arg("classes"),
             arg("p"), arg("q"), arg("temperature"), arg("rows"), arg("dp"), arg("dq"));
  module.def("kl_div_backward_summed", &backward_kl_summed, released, arg("target"), arg("kept"),
             arg("summed"), arg("classes"), arg("p"), arg("q"), arg("row_strides"),
             arg("temperature"), arg("rows"), arg("sum_p"), arg("gradient"), arg("other_gradient"),
             arg("workspace"), arg("segments"));
  module.def("logit_stats_forward", &forward_logits, released, arg("target"), arg("sizes"),
             arg("classes"), arg("logits"), arg("labels"), arg("outputs"), arg("workspace"),
             arg("segments"));
  module.def("logit_stats_backward", &backward_logits, released, arg("target"), arg("sizes"),
             arg("classes"), arg("logits"), arg("labels"), arg("grads"), arg("dlogits"),
             arg("workspace"), arg("segments"));
}
