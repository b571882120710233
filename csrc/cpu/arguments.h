// From Python's sizes and strides to what kernels walk over.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <memory>
#include <new>

#include "cpu/rows.h"

namespace fastmem::cpu {

inline int64_t item(const pybind11::tuple& tuple, size_t i) {
  return PyLong_AsLongLong(PyTuple_GET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(i)));
}

// Adds a dimension inside the others. It joins the one before if every operand steps over both
// alike.
template <int kOperands>
void add_dimension(RowMap<kOperands>& map, int64_t size,
                   const std::array<int64_t, kOperands>& strides) {
  if (size == 1) return;
  const int last = map.dims - 1;
  bool joins = last >= 0;
  for (int k = 0; k < kOperands; ++k) {
    joins = joins && map.strides[k][last] == strides[k] * size;
  }
  if (!joins && map.dims == kMaxDims) throw pybind11::value_error("too many dimensions");
  const int at = joins ? last : map.dims++;
  map.sizes[at] = joins ? map.sizes[at] * size : size;
  for (int k = 0; k < kOperands; ++k) map.strides[k][at] = strides[k];
}

// An operand's sizes and strides.
struct Operand {
  const pybind11::tuple& sizes;
  const pybind11::tuple& strides;

  int64_t size(size_t dim) const { return item(sizes, dim); }
  // 0 where one element stands for all.
  int64_t stride(size_t dim) const { return size(dim) == 1 ? 0 : item(strides, dim); }
};

inline int64_t broadcast_size(const Operand& x, const Operand& y, size_t dim) {
  return x.size(dim) == 1 ? y.size(dim) : x.size(dim);
}

// The broadcast leading dimensions of two operands of as many dimensions.
inline RowMap<2> row_map(size_t leading_dims, const Operand& x, const Operand& y) {
  RowMap<2> map{};
  for (size_t dim = 0; dim < leading_dims; ++dim) {
    add_dimension<2>(map, broadcast_size(x, y, dim), {x.stride(dim), y.stride(dim)});
  }
  return map;
}

template <int kOperands>
int64_t row_count(const RowMap<kOperands>& map) {
  int64_t rows = 1;
  for (int dim = 0; dim < map.dims; ++dim) rows *= map.sizes[dim];
  return rows;
}

// Memory of one call on one thread, aligned to a register.
class Scratch {
 public:
  explicit Scratch(int64_t bytes)
      : memory_(bytes > 0 ? ::operator new(static_cast<size_t>(bytes), kAlignment, std::nothrow)
                          : nullptr),
        failed_(bytes > 0 && memory_ == nullptr) {}
  ~Scratch() { ::operator delete(memory_, kAlignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* get() const { return memory_; }
  bool failed() const { return failed_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void* memory_;
  bool failed_;
};

}  // namespace fastmem::cpu
