// What forward and backward of logit_stats share: how threads come by the logits of a row.
#pragma once

#include "common/logit_math.h"
#include "cuda/groups.cuh"
#include "cuda/launch.h"
#include "cuda/tile.cuh"

namespace fastmem::cuda {

template <typename T>
struct LogitRows {
  const T* logits;
  int64_t class_stride;
  const int64_t* labels;
  RowMap<2> map;  // of logits and labels
  int64_t rows;
  int classes;
  bool packed;  // rows consist of whole, aligned packs of 16 bytes
  int units;    // of a row: packs, or else elements

  // The label of a row if it is in range, else -1.
  __device__ __forceinline__ int label_at(int64_t offset) const {
    const int64_t label = labels[offset];
    return label >= 0 && label < classes ? static_cast<int>(label) : -1;
  }
};

template <typename T>
LogitRows<T> make_logit_rows(const Logits& logits, const Labels& labels, const RowMap<2>& map,
                             int64_t rows, int64_t classes) {
  const bool packed = classes % kPack<T> == 0 && is_packed<T>(logits, map, 0);
  return {static_cast<const T*>(logits.data),
          logits.class_stride,
          labels.data,
          map,
          rows,
          static_cast<int>(classes),
          packed,
          static_cast<int>(classes / (packed ? kPack<T> : 1))};
}

// The label's logit; NaN for a label out of range, which then spoils the row.
template <typename T>
__device__ __forceinline__ Accumulator<T> label_logit(const LogitRows<T>& rows, const T* row,
                                                      int label) {
  if (label < 0) return kNan<Accumulator<T>>;
  return widen(row[label * rows.class_stride]);
}

// --------------------------------------------------------------------------------- a thread per
// row

// A row of a tile without its label.
template <typename T>
struct TileLogits {
  using Scalar = Accumulator<T>;
  const T* tile;
  int start, classes, label;
  __device__ __forceinline__ int count() const { return classes; }
  __device__ __forceinline__ Scalar operator()(int j) const {
    return j == label ? -kInfinity<Scalar> : widen(tile[slot<T>(start + j)]);
  }
};

// Brings the block's tile to shared memory; gives the number of its rows and this thread's label.
template <typename T>
__device__ int load_tile(const LogitRows<T>& rows, const TileSource<T>& source,
                         SmallDivisor by_classes, T* tile, int& label) {
  __shared__ int64_t offsets[kTileRows<T>];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows<T>;
  const int64_t left = rows.rows - first_row;
  const int here = left < kTileRows<T> ? static_cast<int>(left) : kTileRows<T>;
  label = -1;
  if (static_cast<int>(threadIdx.x) < here) {
    int64_t at[2];
    rows.map.offsets(first_row + threadIdx.x, at);
    offsets[threadIdx.x] = at[0];
    label = rows.label_at(at[1]);
  }
  __syncthreads();
  stage(tile, source, first_row, offsets, here, rows.classes, by_classes);
  __syncthreads();
  return here;
}

// ------------------------------------------------------------------------- a row held in registers

// Elements that a thread sums at once.
template <typename T>
inline constexpr int kLogitChunk = sizeof(T) == 8 ? 8 : 16;

template <typename T>
__device__ __forceinline__ int units_in_chunk(bool packed) {
  return packed ? kLogitChunk<T> / kPack<T> : kLogitChunk<T>;
}

// The column of a chunk's j-th element.
template <typename T>
__device__ __forceinline__ int column_of(bool packed, int unit, int threads, int j) {
  if (!packed) return unit + j * threads;
  return (unit + j / kPack<T> * threads) * kPack<T> + j % kPack<T>;
}

// Reads a chunk: units of one pack or one element, `threads` apart, from `unit` on, as far as they
// lie below `end`. What lies beyond is -inf.
template <typename T, int Count>
__device__ __forceinline__ void read_chunk(const LogitRows<T>& rows, const T* row, int unit,
                                           int end, int threads,
                                           RegisterLogits<Accumulator<T>, Count>& chunk) {
  constexpr int width = kPack<T>;
  if (rows.packed) {
#pragma unroll
    for (int j = 0; j < Count; j += width, unit += threads) {
      Pack<T> pack;
      if (unit < end) pack = load_pack(row + unit * width);
#pragma unroll
      for (int k = 0; k < width; ++k) {
        chunk.values[j + k] = unit < end ? widen(pack.values[k]) : -kInfinity<Accumulator<T>>;
      }
    }
  } else {
#pragma unroll
    for (int j = 0; j < Count; ++j, unit += threads) {
      chunk.values[j] =
          unit < end ? widen(row[unit * rows.class_stride]) : -kInfinity<Accumulator<T>>;
    }
  }
}

// Takes the label out of a chunk.
template <typename T, int Count>
__device__ __forceinline__ void drop_label(bool packed, int unit, int threads, int label,
                                           RegisterLogits<Accumulator<T>, Count>& chunk) {
#pragma unroll
  for (int j = 0; j < Count; ++j) {
    if (column_of<T>(packed, unit, threads, j) == label) {
      chunk.values[j] = -kInfinity<Accumulator<T>>;
    }
  }
}

inline constexpr int kNowhere = 0x7fffffff;

// The first column of a chunk whose logit is the given one.
template <typename T, int Count>
__device__ __forceinline__ int first_column(bool packed, int unit, int threads,
                                            Accumulator<T> logit,
                                            const RegisterLogits<Accumulator<T>, Count>& chunk) {
  int first = kNowhere;
#pragma unroll
  for (int j = Count - 1; j >= 0; --j) {
    if (chunk.values[j] == logit) first = column_of<T>(packed, unit, threads, j);
  }
  return first;
}

// ------------------------------------------------------------------ a block per (segment of a) row

// Sums of a part of a row and where its largest logit is.
template <typename A>
struct PlacedSums {
  LogitSums<A> sums;
  int first;
};

template <typename A>
__device__ __forceinline__ PlacedSums<A> no_placed_sums() {
  return {no_logit_sums<A>(), kNowhere};
}

template <typename A>
__device__ __forceinline__ PlacedSums<A> merge(const PlacedSums<A>& a, const PlacedSums<A>& b) {
  PlacedSums<A> out;
  out.sums = merge(a.sums, b.sums);
  const bool from_a = a.sums.largest > b.sums.largest;
  const bool from_b = b.sums.largest > a.sums.largest;
  out.first = from_a ? a.first : from_b ? b.first : min(a.first, b.first);
  return out;
}

// The merge over `lanes` lanes, in lane 0.
template <typename A>
__device__ __forceinline__ PlacedSums<A> merge_lanes(PlacedSums<A> part, int lanes) {
  for (int step = 1; step < lanes; step *= 2) {
    PlacedSums<A> other;
    other.sums.largest = __shfl_down_sync(kWholeWarp, part.sums.largest, step);
    other.sums.weight = __shfl_down_sync(kWholeWarp, part.sums.weight, step);
    other.sums.tilt = __shfl_down_sync(kWholeWarp, part.sums.tilt, step);
    other.first = __shfl_down_sync(kWholeWarp, part.first, step);
    part = merge(part, other);
  }
  return part;
}

inline constexpr int kLongThreads = 128;

// The sums over a segment of a row, in thread 0; `Placed` asks for the place of the largest too.
template <typename T, bool Placed>
__device__ PlacedSums<Accumulator<T>> sum_segment(const LogitRows<T>& rows, const T* row, int label,
                                                  int segment, int segments) {
  using A = Accumulator<T>;
  const int own = threadIdx.x;
  const int end = static_cast<int>(static_cast<int64_t>(rows.units) * (segment + 1) / segments);
  int unit = static_cast<int>(static_cast<int64_t>(rows.units) * segment / segments) + own;
  PlacedSums<A> total = no_placed_sums<A>();
  for (; unit < end; unit += kLongThreads * units_in_chunk<T>(rows.packed)) {
    RegisterLogits<A, kLogitChunk<T>> chunk;
    read_chunk(rows, row, unit, end, kLongThreads, chunk);
    drop_label<T>(rows.packed, unit, kLongThreads, label, chunk);
    PlacedSums<A> part{sum_logits(Alone{}, chunk), kNowhere};
    if (Placed && part.sums.largest >= total.sums.largest) {
      part.first = first_column<T>(rows.packed, unit, kLongThreads, part.sums.largest, chunk);
    }
    total = merge(total, part);
  }
  __shared__ PlacedSums<A> of_warp[kLongThreads / 32];
  total = merge_lanes(total, 32);
  if (own % 32 == 0) of_warp[own / 32] = total;
  __syncthreads();
  if (own < 32) {
    total = own < kLongThreads / 32 ? of_warp[own] : no_placed_sums<A>();
    total = merge_lanes(total, kLongThreads / 32);
  }
  return total;
}

// The sums of a row from those of its segments (32 at most), in lane 0 of the first warp.
template <typename A>
__device__ __forceinline__ PlacedSums<A> merge_segments(const PlacedSums<A>* of_segment,
                                                        int segments) {
  PlacedSums<A> total = no_placed_sums<A>();
  if (threadIdx.x < 32) {
    if (static_cast<int>(threadIdx.x) < segments) total = of_segment[threadIdx.x];
    total = merge_lanes(total, 32);
  }
  return total;
}

}  // namespace fastmem::cuda
