// Where the rows of several operands lie in memory. Offsets count elements, in 64 bits.
#pragma once

#include <cstdint>

namespace fastmem::cpu {

inline constexpr int kMaxDims = 64;  // torch's own limit

// The leading dimensions, innermost last. An operand that is shared along a dimension has stride 0
// there.
template <int kOperands>
struct RowMap {
  int dims;
  int64_t sizes[kMaxDims];
  int64_t strides[kOperands][kMaxDims];
};

}  // namespace fastmem::cpu
