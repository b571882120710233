#include "cpu/kl_div.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <new>

#include "common/dtype.h"
#include "cpu/arguments.h"
#include "cpu/isa.h"
#include "cpu/pages.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace fastmem::cpu {

FASTMEM_DECLARE_FOR_EVERY_ISA(extern const KlDivForwardKernels kl_div_forward;
                              extern const KlDivBackwardKernels kl_div_backward)

namespace {

// Cuts between the threads fall on multiples of this many rows: at least two registers of the
// widest set.
constexpr int64_t kGranule = 32;

// A sum over rows is cut into this many tasks or more, if each has kRowsPerChunk rows or more; how
// many threads there are does not matter, so that the result does not depend on it.
constexpr int64_t kSumTasks = 64, kRowsPerChunk = 64;

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Runs body(begin, end, scratch) over all rows without the interpreter's lock.
template <class Body>
void run_rows(int64_t rows, int64_t elements_per_row, int64_t granule, int threads,
              int64_t scratch_bytes, Body&& body) {
  std::atomic<bool> out_of_memory{false};
  parallel_rows(rows, elements_per_row, granule, threads, [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_bytes);
    if (scratch.failed()) {
      out_of_memory = true;
    } else {
      body(begin, end, scratch.get());
    }
  });
  if (out_of_memory) throw std::bad_alloc();
}

int64_t forward_scratch(const KlDivForward& args, DType dtype) {
  const int inner = args.rows.dims - 1;
  const bool shares_p = inner >= 0 && args.rows.strides[0][inner] == 0;
  if (args.p_class_stride == 1 && args.q_class_stride == 1 && !shares_p) return 0;
  return args.classes * (2 * item_size(dtype) + static_cast<int64_t>(sizeof(float)));
}

void forward(uintptr_t p, const py::tuple& p_sizes, const py::tuple& p_strides, uintptr_t q,
             const py::tuple& q_sizes, const py::tuple& q_strides, int dtype, double temperature,
             uintptr_t kl, uintptr_t lse_p, uintptr_t centre, uintptr_t shift, int threads) {
  const size_t leading = p_sizes.size() - 1;
  if (!is_dtype(dtype) || q_sizes.size() != p_sizes.size())
    throw py::value_error("kl_div_forward: arguments");
  const KlDivForward args{
      .p = pointer<const void>(p),
      .q = pointer<const void>(q),
      .rows = row_map(leading, {p_sizes, p_strides}, {q_sizes, q_strides}),
      .classes = item(p_sizes, leading),
      .p_class_stride = item(p_strides, leading),
      .q_class_stride = item(q_strides, leading),
      .temperature = temperature,
      .kl = pointer<void>(kl),
      .lse_p = pointer<void>(lse_p),
      .centre = pointer<void>(centre),
      .shift = pointer<void>(shift),
  };
  const auto kernel = FASTMEM_FOR_CURRENT_ISA(kl_div_forward).run[dtype];
  const int64_t scratch_bytes = forward_scratch(args, static_cast<DType>(dtype));
  const py::gil_scoped_release released;
  run_rows(row_count(args.rows), args.classes, kGranule, threads, scratch_bytes,
           [&](int64_t begin, int64_t end, void* scratch) { kernel(args, begin, end, scratch); });
}

void value(uintptr_t p, const py::tuple& p_sizes, const py::tuple& p_strides, uintptr_t q,
           const py::tuple& q_sizes, const py::tuple& q_strides, int dtype, double temperature,
           uintptr_t kl, int threads) {
  forward(p, p_sizes, p_strides, q, q_sizes, q_strides, dtype, temperature, kl, 0, 0, 0, threads);
}

// Whether the gradient of this operand is a sum over rows of the other.
bool is_shared(const Operand& operand, const Operand& other, size_t leading) {
  for (size_t dim = 0; dim < leading; ++dim) {
    if (operand.size(dim) == 1 && other.size(dim) != 1) return true;
  }
  return false;
}

// Elements from row to row of a contiguous gradient of this operand, dimension by dimension.
std::array<int64_t, kMaxDims> gradient_strides(const Operand& operand, size_t leading) {
  std::array<int64_t, kMaxDims> strides{};
  int64_t step = operand.size(leading);
  for (size_t dim = leading; dim-- > 0;) {
    strides[dim] = operand.size(dim) == 1 ? 0 : step;
    step *= operand.size(dim);
  }
  return strides;
}

void split_dimensions(KlDivBackward& args, const Operand& p, const Operand& q,
                      const py::tuple& grad_strides, size_t leading) {
  if (leading > kMaxDims) throw py::value_error("too many dimensions");
  const auto dp = gradient_strides(p, leading), dq = gradient_strides(q, leading);
  std::array<int64_t, kMaxDims> saved{};
  int64_t step = 1;
  for (size_t dim = leading; dim-- > 0;) {
    saved[dim] = step;
    step *= broadcast_size(p, q, dim);
  }
  for (size_t dim = 0; dim < leading; ++dim) {
    const int64_t size = broadcast_size(p, q, dim);
    const Operand& target = args.summed_operand == KlDivBackward::kDp ? p : q;
    const bool is_summed = args.summed_operand >= 0 && target.size(dim) == 1;
    add_dimension<KlDivBackward::kOperands>(
        is_summed ? args.summed : args.kept, size,
        {p.stride(dim), q.stride(dim), item(grad_strides, dim), saved[dim], dp[dim], dq[dim]});
  }
}

int64_t bytes(const Operand& operand, size_t leading, DType dtype) {
  int64_t elements = 1;
  for (size_t dim = 0; dim <= leading; ++dim) elements *= operand.size(dim);
  return elements * item_size(dtype);
}

// At most one of the wanted gradients is a sum.
void differentiate(KlDivBackward args, const Operand& p, const Operand& q,
                   const py::tuple& grad_strides, size_t leading, DType dtype, int threads) {
  args.summed_operand = args.dp != nullptr && is_shared(p, q, leading)   ? KlDivBackward::kDp
                        : args.dq != nullptr && is_shared(q, p, leading) ? KlDivBackward::kDq
                                                                         : -1;
  split_dimensions(args, p, q, grad_strides, leading);
  const int64_t kept = row_count(args.kept), summed = row_count(args.summed);
  if (kept == 0) return;
  const auto kernels = FASTMEM_FOR_CURRENT_ISA(kl_div_backward);
  const int code = static_cast<int>(dtype);
  args.chunks = 1;
  if (args.summed_operand >= 0) {
    args.chunks = std::clamp((kSumTasks + kept - 1) / kept, int64_t{1},
                             std::max(int64_t{1}, summed / kRowsPerChunk));
  }
  const Scratch partial(args.chunks > 1 ? kept * args.chunks * args.classes *
                                              static_cast<int64_t>(sizeof(double))
                                        : 0);
  if (partial.failed()) throw std::bad_alloc();
  args.partial = static_cast<double*>(partial.get());

  const py::gil_scoped_release released;
  const int64_t scratch_bytes = args.classes * static_cast<int64_t>(6 * sizeof(double));
  run_rows(kept * args.chunks, args.classes * ((summed + args.chunks - 1) / args.chunks),
           args.summed_operand < 0 ? kGranule : 1, threads, scratch_bytes,
           [&](int64_t begin, int64_t end, void* scratch) {
             kernels.run[code](args, begin, end, scratch);
           });
  if (args.chunks > 1) {
    parallel_rows(kept, args.classes * args.chunks, 1, threads,
                  [&](int64_t begin, int64_t end) { kernels.add_up[code](args, begin, end); });
  }
}

void backward(uintptr_t grad, const py::tuple& grad_strides, uintptr_t p, const py::tuple& p_sizes,
              const py::tuple& p_strides, uintptr_t q, const py::tuple& q_sizes,
              const py::tuple& q_strides, int dtype, uintptr_t kl, uintptr_t lse_p,
              uintptr_t centre, uintptr_t shift, double temperature, uintptr_t dp, uintptr_t dq,
              int threads) {
  const size_t leading = p_sizes.size() - 1;
  if (!is_dtype(dtype) || q_sizes.size() != p_sizes.size() || grad_strides.size() != leading)
    throw py::value_error("kl_div_backward: arguments");
  const Operand of_p{p_sizes, p_strides}, of_q{q_sizes, q_strides};
  KlDivBackward args{};
  args.p = pointer<const void>(p);
  args.q = pointer<const void>(q);
  args.grad = pointer<const void>(grad);
  args.kl = pointer<const void>(kl);
  args.lse_p = pointer<const void>(lse_p);
  args.centre = pointer<const void>(centre);
  args.shift = pointer<const void>(shift);
  args.dp = pointer<void>(dp);
  args.dq = pointer<void>(dq);
  ask_for_large_pages(args.dp, bytes(of_p, leading, static_cast<DType>(dtype)));
  ask_for_large_pages(args.dq, bytes(of_q, leading, static_cast<DType>(dtype)));
  args.classes = item(p_sizes, leading);
  args.p_class_stride = item(p_strides, leading);
  args.q_class_stride = item(q_strides, leading);
  args.temperature = temperature;
  const auto run = [&](const KlDivBackward& part) {
    differentiate(part, of_p, of_q, grad_strides, leading, static_cast<DType>(dtype), threads);
  };
  if (dp != 0 && dq != 0 && is_shared(of_p, of_q, leading) && is_shared(of_q, of_p, leading)) {
    KlDivBackward part = args;
    part.dq = nullptr;
    run(part);
    args.dp = nullptr;
  }
  run(args);
}

}  // namespace

void bind_kl_div(py::module_& module) {
  module.def("kl_div_forward", &forward, py::arg("p"), py::arg("p_sizes"), py::arg("p_strides"),
             py::arg("q"), py::arg("q_sizes"), py::arg("q_strides"), py::arg("dtype"),
             py::arg("temperature"), py::arg("kl"), py::arg("lse_p"), py::arg("centre"),
             py::arg("shift"), py::arg("threads"),
             "KL of every row, and what the backward pass needs of it.");
  module.def("kl_div_value", &value, py::arg("p"), py::arg("p_sizes"), py::arg("p_strides"),
             py::arg("q"), py::arg("q_sizes"), py::arg("q_strides"), py::arg("dtype"),
             py::arg("temperature"), py::arg("kl"), py::arg("threads"), "KL of every row alone.");
  module.def("kl_div_backward", &backward, py::arg("grad"), py::arg("grad_strides"), py::arg("p"),
             py::arg("p_sizes"), py::arg("p_strides"), py::arg("q"), py::arg("q_sizes"),
             py::arg("q_strides"), py::arg("dtype"), py::arg("kl"), py::arg("lse_p"),
             py::arg("centre"), py::arg("shift"), py::arg("temperature"), py::arg("dp"),
             py::arg("dq"), py::arg("threads"),
             "Gradients of p and q (address 0: not wanted), summed over rows that they share.");
}

}  // namespace fastmem::cpu
