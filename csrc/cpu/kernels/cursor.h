// Walks over the rows of several operands.
#pragma once

#include "cpu/kernels/vec.h"
#include "cpu/rows.h"

namespace fastmem::cpu::FASTMEM_ISA {

template <int kOperands>
class Cursor {
 public:
  Cursor(const RowMap<kOperands>& map, int64_t row) : map_(map) {
    for (int dim = map.dims - 1; dim >= 0; --dim) {
      index_[dim] = row % map.sizes[dim];
      row /= map.sizes[dim];
      for (int k = 0; k < kOperands; ++k) offset_[k] += index_[dim] * map.strides[k][dim];
    }
  }

  int64_t offset(int operand) const { return offset_[operand]; }

  // The distance to the next row of this operand, for as many rows as run() says.
  int64_t stride(int operand) const {
    return map_.dims == 0 ? 0 : map_.strides[operand][map_.dims - 1];
  }

  // Rows from this one to the end of the innermost dimension.
  int64_t run() const {
    return map_.dims == 0 ? 1 : map_.sizes[map_.dims - 1] - index_[map_.dims - 1];
  }

  void advance(int64_t rows) {
    for (int dim = map_.dims - 1; dim >= 0 && rows > 0; --dim) {
      const int64_t to = index_[dim] + rows, size = map_.sizes[dim];
      const int64_t carry = to < size ? 0 : to / size;
      const int64_t steps = rows - carry * size;
      index_[dim] += steps;
      for (int k = 0; k < kOperands; ++k) offset_[k] += steps * map_.strides[k][dim];
      rows = carry;
    }
  }

 private:
  const RowMap<kOperands>& map_;
  int64_t index_[kMaxDims];
  int64_t offset_[kOperands] = {};
};

}  // namespace fastmem::cpu::FASTMEM_ISA
