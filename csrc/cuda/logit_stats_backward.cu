// logit_stats backward: 2 B C e bytes (one read, one write) where the row stays on the chip, up to
// 2048 classes; 3 B C e above, where it is read once for its sums and once for the gradient. The
// statistics are computed again rather than saved.
#include "cuda/logit_rows.cuh"

namespace fastmem::cuda {
namespace {

template <typename A>
struct Grads {
  const A *margin, *loss, *hinge, *max_prob, *entropy;

  __device__ __forceinline__ LogitGrads<A> at(int64_t row) const {
    return {read(margin, row), read(loss, row), read(hinge, row), read(max_prob, row),
            read(entropy, row)};
  }

 private:
  __device__ __forceinline__ static A read(const A* values, int64_t row) {
    return values == nullptr ? A{0} : values[row];
  }
};

// What the threads of a row need to write its gradient.
template <typename A>
struct Slope {
  LogitGradientRow<A> row;
  int label, rival;

  __device__ __forceinline__ A at(int column, A logit) const {
    if (column == label) return row.at_label;
    const A gradient = gradient_at(logit, row);
    return column == rival ? gradient + row.more_at_rival : gradient;
  }
};

template <typename A>
__device__ __forceinline__ Slope<A> slope_of(A logit, const LogitSums<A>& others, int label,
                                             int rival, const LogitGrads<A>& grads) {
  return {gradient_row(logit, others, rival < label, grads), label, rival};
}

template <typename T>
__global__ void __launch_bounds__(kTileRows<T>, 4)
    logit_short_gradients(const __grid_constant__ LogitRows<T> rows, TileSource<T> source,
                          SmallDivisor by_classes, Grads<Accumulator<T>> grads, T* dlogits) {
  using A = Accumulator<T>;
  T* tile = static_cast<T*>(dynamic_shared());
  __shared__ Slope<A> slopes[kTileRows<T>];
  int label;
  const int here = load_tile(rows, source, by_classes, tile, label);
  const int own = threadIdx.x;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows<T>;
  if (own < here) {
    const TileLogits<T> others{tile, own * rows.classes, rows.classes, label};
    const LogitSums<A> sums = sum_logits(Alone{}, others);
    int rival = kNowhere;
    for (int j = rows.classes - 1; j >= 0; --j) {
      if (others(j) == sums.largest) rival = j;
    }
    const A logit = label < 0 ? kNan<A> : widen(tile[slot<T>(others.start + label)]);
    slopes[own] = slope_of(logit, sums, label, rival, grads.at(first_row + own));
  }
  __syncthreads();
  T* out = dlogits + first_row * rows.classes;
  for (int i = own; i < here * rows.classes; i += kTileRows<T>) {
    const int row = by_classes.quotient_of(i);
    narrow(slopes[row].at(i - row * rows.classes, widen(tile[slot<T>(i)])), out[i]);
  }
}

inline constexpr int kLaneThreads = 128;

// Writes the gradient of a chunk that was read with read_chunk, its label included.
template <typename T, int Count>
__device__ __forceinline__ void write_chunk(bool packed, T* out, int unit, int end, int threads,
                                            const RegisterLogits<Accumulator<T>, Count>& chunk,
                                            const Slope<Accumulator<T>>& slope) {
  constexpr int width = kPack<T>;
  if (packed) {
#pragma unroll
    for (int j = 0; j < Count; j += width, unit += threads) {
      if (unit >= end) break;
      Pack<T> pack;
#pragma unroll
      for (int k = 0; k < width; ++k) {
        narrow(slope.at(unit * width + k, chunk.values[j + k]), pack.values[k]);
      }
      store_pack(out + unit * width, pack);
    }
  } else {
#pragma unroll
    for (int j = 0; j < Count; ++j, unit += threads) {
      if (unit < end) narrow(slope.at(unit, chunk.values[j]), out[unit]);
    }
  }
}

template <typename T, typename Group>
__global__ void __launch_bounds__(kLaneThreads, kResident<T>)
    logit_register_gradients(const __grid_constant__ LogitRows<T> rows, Grads<Accumulator<T>> grads,
                             T* dlogits) {
  using A = Accumulator<T>;
  constexpr int threads = Group::kThreads;
  const int own = threadIdx.x % threads;
  int64_t row = static_cast<int64_t>(blockIdx.x) * (kLaneThreads / threads) + threadIdx.x / threads;
  const bool is_extra = row >= rows.rows;  // of the last block: computes along, writes nothing
  if (is_extra) row = rows.rows - 1;
  int64_t at[2];
  rows.map.offsets(row, at);
  const int label = rows.label_at(at[1]);
  const T* logits = rows.logits + at[0];
  RegisterLogits<A, kLogitChunk<T>> chunk;
  read_chunk(rows, logits, own, rows.units, threads, chunk);
  drop_label<T>(rows.packed, own, threads, label, chunk);
  const LogitSums<A> sums = sum_logits(Group{}, chunk);
  const int rival =
      Group{}.smallest(first_column<T>(rows.packed, own, threads, sums.largest, chunk));
  const A logit = label_logit(rows, logits, label);
  const Slope<A> slope = slope_of(logit, sums, label, rival, grads.at(row));
  if (is_extra) return;
  write_chunk(rows.packed, dlogits + row * rows.classes, own, rows.units, threads, chunk, slope);
}

template <typename T>
__global__ void __launch_bounds__(kLongThreads, kResident<T>)
    logit_long_sums(const __grid_constant__ LogitRows<T> rows,
                    PlacedSums<Accumulator<T>>* workspace, int segments) {
  int64_t at[2];
  rows.map.offsets(blockIdx.x / segments, at);
  const auto total = sum_segment<T, true>(rows, rows.logits + at[0], rows.label_at(at[1]),
                                          blockIdx.x % segments, segments);
  if (threadIdx.x == 0) workspace[blockIdx.x] = total;
}

// A block for each segment again: the row's sums from those of its segments, then its gradient.
template <typename T>
__global__ void __launch_bounds__(kLongThreads, kResident<T>)
    logit_long_gradients(const __grid_constant__ LogitRows<T> rows,
                         const PlacedSums<Accumulator<T>>* workspace, int segments,
                         Grads<Accumulator<T>> grads, T* dlogits) {
  using A = Accumulator<T>;
  __shared__ Slope<A> shared_slope;
  const int64_t row = blockIdx.x / segments;
  const int segment = blockIdx.x % segments;
  int64_t at[2];
  rows.map.offsets(row, at);
  const T* logits = rows.logits + at[0];
  const PlacedSums<A> total = merge_segments(workspace + row * segments, segments);
  if (threadIdx.x == 0) {
    const int label = rows.label_at(at[1]);
    const A logit = label_logit(rows, logits, label);
    shared_slope = slope_of(logit, total.sums, label, total.first, grads.at(row));
  }
  __syncthreads();
  const Slope<A> slope = shared_slope;
  T* out = dlogits + row * rows.classes;
  const int end = static_cast<int>(static_cast<int64_t>(rows.units) * (segment + 1) / segments);
  int unit = static_cast<int>(static_cast<int64_t>(rows.units) * segment / segments) + threadIdx.x;
  for (; unit < end; unit += kLongThreads * units_in_chunk<T>(rows.packed)) {
    RegisterLogits<A, kLogitChunk<T>> chunk;
    read_chunk(rows, logits, unit, end, kLongThreads, chunk);
    write_chunk(rows.packed, out, unit, end, kLongThreads, chunk, slope);
  }
}

template <typename T, typename Group, typename G>
void launch_registers(const LogitRows<T>& rows, const G& grads, T* dlogits, cudaStream_t stream) {
  const unsigned blocks = blocks_for(rows.rows, kLaneThreads / Group::kThreads);
  run({blocks, kLaneThreads, stream}, logit_register_gradients<T, Group>, rows, grads, dlogits);
}

template <typename T>
void launch(const LogitBackward& call, const RowMap<2>& map, int64_t count) {
  using A = Accumulator<T>;
  LogitRows<T> rows = make_logit_rows<T>(call.logits, call.labels, map, count, call.classes);
  T* dlogits = static_cast<T*>(call.dlogits);
  if (!is_aligned(dlogits)) {
    rows.packed = false;
    rows.units = rows.classes;
  }
  const Grads<A> grads{static_cast<const A*>(call.margin), static_cast<const A*>(call.loss),
                       static_cast<const A*>(call.hinge), static_cast<const A*>(call.max_prob),
                       static_cast<const A*>(call.entropy)};
  const auto stream = static_cast<cudaStream_t>(call.target.stream);
  if (rows.classes <= kShortRow) {
    const auto source = make_tile_source<T>(call.logits.data, call.logits.class_stride,
                                            map.is_flat(0, rows.classes));
    run({blocks_for(count, kTileRows<T>), kTileRows<T>, stream,
         tile_bytes<T>(kTileRows<T>, rows.classes)},
        logit_short_gradients<T>, rows, source, SmallDivisor(rows.classes), grads, dlogits);
  } else if (rows.classes <= 8 * kLogitChunk<T>) {
    launch_registers<T, Lanewise<8>>(rows, grads, dlogits, stream);
  } else if (rows.classes <= 32 * kLogitChunk<T>) {
    launch_registers<T, Lanewise<32>>(rows, grads, dlogits, stream);
  } else if (rows.classes <= kLaneThreads * kLogitChunk<T>) {
    launch_registers<T, Blockwise<kLaneThreads>>(rows, grads, dlogits, stream);
  } else {
    auto* workspace = static_cast<PlacedSums<A>*>(call.workspace);
    const int segments = static_cast<int>(call.segments);
    const unsigned blocks = blocks_for(count * segments, 1);
    run({blocks, kLongThreads, stream}, logit_long_sums<T>, rows, workspace, segments);
    run({blocks, kLongThreads, stream}, logit_long_gradients<T>, rows, workspace, segments, grads,
        dlogits);
  }
}

}  // namespace

void logit_stats_backward(const LogitBackward& call) {
  const RowMap<2> map = make_row_map<2>(call.sizes, {&call.logits.strides, &call.labels.strides});
  const int64_t rows = map.rows();
  if (rows == 0) return;
  const DeviceGuard guard(call.target.device);
  for_dtype(call.target.dtype,
            [&](auto tag) { launch<typename decltype(tag)::type>(call, map, rows); });
}

}  // namespace fastmem::cuda
