// Short rows, a thread each: a block brings many rows to shared memory in whole cache lines, and
// every thread then reads its own.
#pragma once

#include "cuda/memory.cuh"
#include "cuda/rows.h"

namespace fastmem::cuda {

inline constexpr int kShortRow = 32;

// Threads of a block, and rows of its tile; bounded by 48 KB of shared memory for two operands.
template <typename T>
inline constexpr int kTileRows = sizeof(T) == 8 ? 64 : 128;

// i / divisor for i < 2^16 and 1 <= divisor <= kShortRow.
struct SmallDivisor {
  explicit SmallDivisor(int divisor) : magic(divisor == 1 ? 0 : 0xffffffffu / divisor + 1) {}
  __device__ __forceinline__ int quotient_of(int i) const {
    return magic == 0 ? i : static_cast<int>(__umulhi(static_cast<uint32_t>(i), magic));
  }
  uint32_t magic;
};

// One word is left free after every 32, so that threads which read rows of any length at the same
// column seldom meet in a bank.
template <typename T>
__host__ __device__ __forceinline__ int slot(int i) {
  constexpr int in_line = 128 / sizeof(T);
  constexpr int skip = sizeof(T) == 8 ? 1 : 4 / sizeof(T);
  return i + i / in_line * skip;
}

// Bytes of a tile of `rows` rows, rounded so that another may follow.
template <typename T>
size_t tile_bytes(int rows, int classes) {
  return (slot<T>(rows * classes) * sizeof(T) + 15) / 16 * 16;
}

// One operand in global memory as a block sees it.
template <typename T>
struct TileSource {
  const T* data;
  int64_t class_stride;
  bool flat;     // rows follow each other without gaps
  bool aligned;  // and tiles start at multiples of 16 bytes
};

// Fills the tile with `rows` rows from `first_row` on; `offsets` are those of the rows if not flat.
template <typename T>
__device__ void stage(T* tile, const TileSource<T>& source, int64_t first_row,
                      const int64_t* offsets, int rows, int classes, SmallDivisor by_classes) {
  const int count = rows * classes;
  int done = 0;
  if (source.flat && source.aligned) {
    using Word = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
    constexpr int in_word = sizeof(Word) / sizeof(T);
    const T* from = source.data + first_row * classes;
    done = count / kPack<T> * kPack<T>;
#pragma unroll 4
    for (int i = threadIdx.x * kPack<T>; i < done; i += blockDim.x * kPack<T>) {
      const uint4 raw = *reinterpret_cast<const uint4*>(from + i);
      Word words[16 / sizeof(Word)];
      __builtin_memcpy(words, &raw, 16);
#pragma unroll
      for (int w = 0; w < 16 / static_cast<int>(sizeof(Word)); ++w) {
        *reinterpret_cast<Word*>(tile + slot<T>(i + w * in_word)) = words[w];
      }
    }
  }
#pragma unroll 4
  for (int i = done + threadIdx.x; i < count; i += blockDim.x) {
    const int row = by_classes.quotient_of(i);
    const int64_t start = source.flat ? (first_row + row) * classes : offsets[row];
    tile[slot<T>(i)] = source.data[start + (i - row * classes) * source.class_stride];
  }
}

template <typename T>
TileSource<T> make_tile_source(const void* data, int64_t class_stride, bool rows_are_flat) {
  const bool flat = rows_are_flat && class_stride == 1;
  return {static_cast<const T*>(data), class_stride, flat,
          flat && reinterpret_cast<uintptr_t>(data) % 16 == 0};
}

}  // namespace fastmem::cuda
