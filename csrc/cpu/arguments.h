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

// An operand's leading sizes and strides, without the class dimension.
struct Operand {
  const pybind11::tuple& sizes;
  const pybind11::tuple& strides;
};

// The broadcast leading dimensions of operands of the same number of dimensions. Dimensions that
// lie behind each other in every operand become one.
template <int kOperands>
RowMap<kOperands> row_map(size_t leading_dims, const std::array<Operand, kOperands>& operands) {
  RowMap<kOperands> map;
  map.dims = 0;
  if (leading_dims > kMaxDims) throw pybind11::value_error("too many dimensions");
  for (size_t dim = 0; dim < leading_dims; ++dim) {
    int64_t size = 1, strides[kOperands];
    for (const Operand& operand : operands) {
      if (item(operand.sizes, dim) != 1) size = item(operand.sizes, dim);
    }
    if (size == 1) continue;
    bool joins = map.dims > 0;
    const int last = map.dims - 1;
    for (int k = 0; k < kOperands; ++k) {
      strides[k] = item(operands[k].sizes, dim) == 1 ? 0 : item(operands[k].strides, dim);
      joins = joins && map.strides[k][last] == strides[k] * size;
    }
    const int at = joins ? last : map.dims++;
    map.sizes[at] = joins ? map.sizes[at] * size : size;
    for (int k = 0; k < kOperands; ++k) map.strides[k][at] = strides[k];
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
