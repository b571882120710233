// The parts of kkt_residual: products with one operand packed before, or both as they lie, and the
// chains between them.
#include "cpu/kernels/kkt.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <new>

#include "common/dtype.h"
#include "cpu/arguments.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace py = pybind11;

namespace fastmem::cpu {

FASTMEM_DECLARE_FOR_EVERY_ISA(extern const KktKernels kkt)

namespace {

const KktKernel& kernel_of(int dtype) {
  const bool is_double = static_cast<DType>(dtype) == DType::kFloat64;
  if (!is_double && static_cast<DType>(dtype) != DType::kFloat32)
    throw py::value_error("kkt: float32 or float64");
  return FASTMEM_FOR_CURRENT_ISA(kkt).of[is_double];
}

int64_t kkt_panel(int dtype) { return kernel_of(dtype).panel; }

void kkt_pack(uintptr_t b, int64_t b_depth, int64_t b_column, int64_t depth, int64_t columns,
              uintptr_t panels, int dtype, int threads) {
  KktProduct call{};
  call.b = reinterpret_cast<const void*>(b);
  call.b_depth = b_depth;
  call.b_column = b_column;
  call.depth = depth;
  call.columns = columns;
  const KktKernel& kernel = kernel_of(dtype);
  const py::gil_scoped_release released;
  parallel_rows((columns + kernel.panel - 1) / kernel.panel, depth * kernel.panel, 1, threads,
                [&](int64_t begin, int64_t end) {
                  kernel.pack(call, begin, end, reinterpret_cast<void*>(panels));
                });
}

// Copies what is below the diagonal to above it, block by block.
template <class T>
void mirror(T* c, int64_t row, int64_t size) {
  constexpr int64_t kBlock = 32;
  for (int64_t top = 0; top < size; top += kBlock) {
    for (int64_t left = 0; left <= top; left += kBlock) {
      for (int64_t i = top; i < std::min(top + kBlock, size); ++i) {
        for (int64_t j = left; j < std::min(left + kBlock, i); ++j) c[j * row + i] = c[i * row + j];
      }
    }
  }
}

// Operands are (address, row or depth stride, column stride, batch stride), in elements.
void kkt_product(uintptr_t a, int64_t a_row, int64_t a_batch, uintptr_t b, int64_t b_depth,
                 int64_t b_column, int64_t b_batch, uintptr_t c, int64_t c_row, int64_t c_batch,
                 int64_t batch, int64_t rows, int64_t depth, int64_t columns, double alpha,
                 double beta, bool symmetric, int dtype, int threads) {
  const KktKernel& kernel = kernel_of(dtype);
  const int64_t size = item_size(static_cast<DType>(dtype));
  const int64_t panels = (columns + kernel.panel - 1) / kernel.panel;
  // Few parts a thread, for each copies all rows; of a symmetric product some have less to do.
  const int64_t wanted = threads > 1 ? threads * (symmetric ? 4 : 2) : 1;
  const int64_t cuts = std::clamp<int64_t>((wanted + batch - 1) / batch, 1, panels);
  const bool serial = batch * rows * depth * columns < (int64_t{1} << 17);
  std::atomic<bool> failed{false};
  const py::gil_scoped_release released;
  const auto task = [&](int64_t part) {
    const int64_t problem = part / cuts, cut = part % cuts;
    const KktProduct call{reinterpret_cast<const char*>(a) + problem * a_batch * size,
                          a_row,
                          reinterpret_cast<const char*>(b) + problem * b_batch * size,
                          b_depth,
                          b_column,
                          reinterpret_cast<char*>(c) + problem * c_batch * size,
                          c_row,
                          rows,
                          depth,
                          columns,
                          alpha,
                          beta,
                          symmetric};
    const Scratch scratch(kernel.scratch_bytes);
    if (scratch.failed()) return failed.store(true);
    kernel.product(call, panels * cut / cuts, panels * (cut + 1) / cuts, scratch.get());
  };
  run_parts(
      serial ? 1 : threads, batch * cuts,
      [](void* context, int64_t part) { (*static_cast<decltype(task)*>(context))(part); },
      const_cast<void*>(static_cast<const void*>(&task)));
  if (failed.load()) {
    const py::gil_scoped_acquire acquired;
    throw std::bad_alloc();
  }
  for (int64_t problem = 0; symmetric && problem < batch; ++problem) {
    void* const own = reinterpret_cast<char*>(c) + problem * c_batch * size;
    if (size == sizeof(float)) {
      mirror(static_cast<float*>(own), c_row, rows);
    } else {
      mirror(static_cast<double*>(own), c_row, rows);
    }
  }
}

void kkt_activate(uintptr_t z, uintptr_t bias, uintptr_t alpha, int64_t alpha_rows, uintptr_t a,
                  uintptr_t s, int64_t rows, int64_t columns, int dtype, int threads) {
  const KktActivate call{reinterpret_cast<void*>(z),
                         reinterpret_cast<const void*>(bias),
                         reinterpret_cast<const double*>(alpha),
                         alpha_rows,
                         reinterpret_cast<void*>(a),
                         reinterpret_cast<void*>(s),
                         columns};
  const auto activate = kernel_of(dtype).activate;
  const py::gil_scoped_release released;
  parallel_rows(rows, 8 * columns, 1, threads,
                [&](int64_t begin, int64_t end) { activate(call, begin, end); });
}

void kkt_rise(uintptr_t h, uintptr_t z, uintptr_t s, uintptr_t d, uintptr_t alpha,
              int64_t alpha_rows, uintptr_t v, uintptr_t curve, uintptr_t loss, bool onward,
              int64_t rows, int64_t columns, int dtype, int threads) {
  const KktRise call{reinterpret_cast<const void*>(h),
                     reinterpret_cast<const void*>(z),
                     reinterpret_cast<const void*>(s),
                     reinterpret_cast<const void*>(d),
                     reinterpret_cast<const double*>(alpha),
                     alpha_rows,
                     reinterpret_cast<void*>(v),
                     reinterpret_cast<void*>(curve),
                     reinterpret_cast<double*>(loss),
                     columns,
                     onward};
  const auto rise = kernel_of(dtype).rise;
  const py::gil_scoped_release released;
  parallel_rows(rows, 8 * columns, 1, threads,
                [&](int64_t begin, int64_t end) { rise(call, begin, end); });
}

}  // namespace

void bind_kkt(py::module_& module) {
  module.def("kkt_panel", &kkt_panel, py::arg("dtype"), "Columns of a panel that kkt_pack writes.");
  module.def("kkt_pack", &kkt_pack, "Panels of a right operand, for kkt_product.");
  module.def("kkt_product", &kkt_product, "c = alpha a b + beta c for every problem of a batch.");
  module.def("kkt_activate", &kkt_activate, "Bias, ReLU and its modified derivative.");
  module.def("kkt_rise", &kkt_rise, "From half a layer's residual to what its inputs see of it.");
}

}  // namespace fastmem::cpu
