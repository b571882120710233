// The element types of logits and the codes by which Python names them.
#pragma once

#include <cstdint>

namespace fastmem {

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

// Storage only: kernels convert on load and store.
struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

constexpr bool is_dtype(int code) { return code >= 0 && code <= 3; }

constexpr int64_t item_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

}  // namespace fastmem
