// Where the rows of operands lie: leading dimensions of any strides, broadcast ones with stride 0.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "common/scalar.h"
#include "cuda/operators.h"

namespace fastmem::cuda {

// Row numbers (row-major over `sizes`) to element offsets, for N operands at once.
template <int N>
struct RowMap {
  int ndim = 0;
  int64_t sizes[kMaxLeadingDims] = {};
  int64_t strides[N][kMaxLeadingDims] = {};

  FASTMEM_HD void offsets(int64_t row, int64_t (&out)[N]) const {
    FASTMEM_UNROLL
    for (int n = 0; n < N; ++n) out[n] = 0;
    for (int d = ndim - 1; d >= 0; --d) {
      const int64_t above = d == 0 ? 0 : divide(row, sizes[d]);
      const int64_t index = row - above * sizes[d];
      FASTMEM_UNROLL
      for (int n = 0; n < N; ++n) out[n] += index * strides[n][d];
      row = above;
    }
  }

  int64_t rows() const {
    int64_t product = 1;
    for (int d = 0; d < ndim; ++d) product *= sizes[d];
    return product;
  }

  // Whether rows follow each other without a gap in operand n.
  bool is_flat(int n, int64_t row_length) const {
    return ndim == 0 || (ndim == 1 && (sizes[0] == 1 || strides[n][0] == row_length));
  }

 private:
  // Division of 64 bits takes a hundred instructions, of 32 bits twenty.
  FASTMEM_HD static int64_t divide(int64_t a, int64_t b) {
    if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
    return a / b;
  }
};

template <int N>
RowMap<N> make_row_map(const std::vector<int64_t>& sizes,
                       const std::array<const std::vector<int64_t>*, N>& strides) {
  RowMap<N> map;
  map.ndim = static_cast<int>(sizes.size());
  if (map.ndim > kMaxLeadingDims) throw std::invalid_argument("too many leading dimensions");
  for (int n = 0; n < N; ++n) {
    if (strides[n]->size() != sizes.size()) throw std::invalid_argument("strides without sizes");
  }
  for (int d = 0; d < map.ndim; ++d) {
    map.sizes[d] = sizes[d];
    for (int n = 0; n < N; ++n) map.strides[n][d] = (*strides[n])[d];
  }
  return map;
}

}  // namespace fastmem::cuda
