// What the weight-importance kernels are handed; see fastmem/ops/weight_importance.py for the
// definitions.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fastmem::cpu {

enum class Importance : int { kAbsGW = 0, kSqGW = 1, kAbsG = 2, kSqG = 3, kGW = 4 };

// A contiguous piece of one parameter, its gradient and its scores.
struct ImportancePiece {
  void* score;
  const void* weight;
  const void* gradient;
  int64_t count;
};

// Elements of a piece of scores that selection looks at in one go: an index within it fits 16 bits.
inline constexpr int64_t kSelectionPiece = 1 << 16;

}  // namespace fastmem::cpu
