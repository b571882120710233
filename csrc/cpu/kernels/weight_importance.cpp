#include "cpu/kernels/weight_importance.h"

#include "cpu/kernels/convert.h"

namespace fastmem::cpu::FASTMEM_ISA {
namespace {

template <Importance kKind, class V>
FASTMEM_INLINE V importance(V w, V g) {
  const V factor = kKind == Importance::kAbsG || kKind == Importance::kSqG ? g : g * w;
  if constexpr (kKind == Importance::kSqGW || kKind == Importance::kSqG) return factor * factor;
  if constexpr (kKind == Importance::kGW) return factor;
  return abs(factor);
}

template <class Stored, Importance kKind, bool kOverwrite>
void accumulate(const ImportancePiece& piece, double scale) {
  using T = Compute<Stored>;
  constexpr int kStep = kLanes<T>;
  T* score = static_cast<T*>(piece.score);
  const Stored* weight = static_cast<const Stored*>(piece.weight);
  const Stored* gradient = static_cast<const Stored*>(piece.gradient);
  const Vec<T> factor = static_cast<T>(scale);
  int64_t i = 0;
  for (; i + kStep <= piece.count; i += kStep) {
    const Vec<T> added = factor * importance<kKind>(load(weight + i), load(gradient + i));
    store(score + i, kOverwrite ? added : load(score + i) + added);
  }
  if (const int64_t rest = piece.count - i; rest > 0) {
    const Vec<T> added =
        factor * importance<kKind>(load_first(weight + i, rest), load_first(gradient + i, rest));
    store_first(score + i, kOverwrite ? added : load_first(score + i, rest) + added, rest);
  }
}

template <class Stored, Importance kKind>
void accumulate(const ImportancePiece& piece, double scale, bool overwrite) {
  overwrite ? accumulate<Stored, kKind, true>(piece, scale)
            : accumulate<Stored, kKind, false>(piece, scale);
}

template <class Stored>
void accumulate(const ImportancePiece& piece, Importance kind, double scale, bool overwrite) {
  switch (kind) {
    case Importance::kAbsGW:
      return accumulate<Stored, Importance::kAbsGW>(piece, scale, overwrite);
    case Importance::kSqGW:
      return accumulate<Stored, Importance::kSqGW>(piece, scale, overwrite);
    case Importance::kAbsG:
      return accumulate<Stored, Importance::kAbsG>(piece, scale, overwrite);
    case Importance::kSqG:
      return accumulate<Stored, Importance::kSqG>(piece, scale, overwrite);
    case Importance::kGW:
      return accumulate<Stored, Importance::kGW>(piece, scale, overwrite);
  }
}

}  // namespace

void accumulate_importance(const ImportancePiece& piece, DType dtype, Importance kind, double scale,
                           bool overwrite) {
  switch (dtype) {
    case DType::kFloat32:
      return accumulate<float>(piece, kind, scale, overwrite);
    case DType::kFloat64:
      return accumulate<double>(piece, kind, scale, overwrite);
    case DType::kFloat16:
      return accumulate<Half>(piece, kind, scale, overwrite);
    case DType::kBFloat16:
      return accumulate<BFloat16>(piece, kind, scale, overwrite);
  }
}

int64_t collect_candidates(const float* scores, int64_t count, uint32_t lower, uint32_t* bits,
                           uint16_t* indices) {
  constexpr int kStep = kLanes<float>;
  constexpr uint32_t kInfinityBits = 0x7f800000;
  Bits32 highest{};
  int64_t found = 0;
  int64_t i = 0;
  const auto larger = [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; };
  const auto block = [&](Vec<float> values, int lanes) __attribute__((always_inline)) {
    // Adding zero turns -0 into 0; the bits of numbers from 0 to infinity are ordered as the
    // numbers are.
    const auto ordered = bit_cast<Bits32>(values + 0);
    highest = ordered > highest ? ordered : highest;
    if (reduce(ordered, larger) < lower) return;
    for (int lane = 0; lane < lanes; ++lane) {
      // Written always and counted when it belongs: which of them belong is not predictable.
      bits[found] = ordered[lane];
      indices[found] = static_cast<uint16_t>(i + lane);
      found += ordered[lane] >= lower;
    }
  };
  for (; i + kStep <= count; i += kStep) block(load(scores + i), kStep);
  if (i < count) block(load_first(scores + i, count - i), static_cast<int>(count - i));
  return reduce(highest, larger) > kInfinityBits ? -1 : found;
}

}  // namespace fastmem::cpu::FASTMEM_ISA
