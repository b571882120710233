// logit_stats forward: B C e bytes read, 8 B for labels and 4 B for each result written, for B rows
// of C classes of e bytes. Every path reads each logit once:
//
//   C <= 32     a thread per row, from a tile in shared memory
//   C <= 2048   8, 32 or 128 threads per row, the row in registers (half as many float64 classes)
//   more        a block per row or per segment of it; sums of parts merge at the end
#include "cuda/logit_rows.cuh"

namespace fastmem::cuda {
namespace {

static_assert(sizeof(PlacedSums<float>) == kLogitSums * sizeof(float));
static_assert(sizeof(PlacedSums<double>) == kLogitSums * sizeof(double));

template <typename A>
struct Results {
  A *margin, *loss, *hinge, *max_prob, *entropy;

  __device__ __forceinline__ void write(int64_t row, A logit, const LogitSums<A>& others) const {
    const A own_margin = label_margin(logit, others);
    margin[row] = own_margin;
    if (loss != nullptr) loss[row] = softplus(-own_margin);
    if (hinge != nullptr) hinge[row] = logit - rival_of(others);
    if (max_prob == nullptr && entropy == nullptr) return;
    const Confidence<A> both = confidence(logit, others);
    if (max_prob != nullptr) max_prob[row] = both.max_prob;
    if (entropy != nullptr) entropy[row] = both.entropy;
  }
};

template <typename T>
__global__ void __launch_bounds__(kTileRows<T>, 8)
    logit_short_rows(const __grid_constant__ LogitRows<T> rows, TileSource<T> source,
                     SmallDivisor by_classes, Results<Accumulator<T>> results) {
  using A = Accumulator<T>;
  T* tile = static_cast<T*>(dynamic_shared());
  int label;
  const int here = load_tile(rows, source, by_classes, tile, label);
  const int own = threadIdx.x;
  if (own >= here) return;
  const int start = own * rows.classes;
  const auto sums = sum_logits(Alone{}, TileLogits<T>{tile, start, rows.classes, label});
  const A logit = label < 0 ? kNan<A> : widen(tile[slot<T>(start + label)]);
  results.write(static_cast<int64_t>(blockIdx.x) * kTileRows<T> + own, logit, sums);
}

inline constexpr int kLaneThreads = 128;

template <typename T, typename Group>
__global__ void __launch_bounds__(kLaneThreads, kResident<T>)
    logit_register_rows(const __grid_constant__ LogitRows<T> rows,
                        Results<Accumulator<T>> results) {
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
  if (own == 0 && !is_extra) results.write(row, label_logit(rows, logits, label), sums);
}

template <typename T>
__global__ void __launch_bounds__(kLongThreads, kResident<T>)
    logit_long_rows(const __grid_constant__ LogitRows<T> rows,
                    PlacedSums<Accumulator<T>>* workspace, int segments,
                    Results<Accumulator<T>> results) {
  const int64_t row = blockIdx.x / segments;
  int64_t at[2];
  rows.map.offsets(row, at);
  const int label = rows.label_at(at[1]);
  const T* logits = rows.logits + at[0];
  const auto total = sum_segment<T, false>(rows, logits, label, blockIdx.x % segments, segments);
  if (threadIdx.x != 0) return;
  if (segments > 1) {
    workspace[blockIdx.x] = total;
  } else {
    results.write(row, label_logit(rows, logits, label), total.sums);
  }
}

// A warp per row.
template <typename T>
__global__ void __launch_bounds__(32)
    logit_merge_segments(const __grid_constant__ LogitRows<T> rows,
                         const PlacedSums<Accumulator<T>>* workspace, int segments,
                         Results<Accumulator<T>> results) {
  const int64_t row = blockIdx.x;
  const auto total = merge_segments(workspace + row * segments, segments);
  if (threadIdx.x != 0) return;
  int64_t at[2];
  rows.map.offsets(row, at);
  const int label = rows.label_at(at[1]);
  results.write(row, label_logit(rows, rows.logits + at[0], label), total.sums);
}

template <typename T, typename Group, typename R>
void launch_registers(const LogitRows<T>& rows, const R& results, cudaStream_t stream) {
  const unsigned blocks = blocks_for(rows.rows, kLaneThreads / Group::kThreads);
  run({blocks, kLaneThreads, stream}, logit_register_rows<T, Group>, rows, results);
}

template <typename T>
void launch(const LogitForward& call, const RowMap<2>& map, int64_t count) {
  using A = Accumulator<T>;
  const LogitRows<T> rows = make_logit_rows<T>(call.logits, call.labels, map, count, call.classes);
  const Results<A> results{static_cast<A*>(call.margin), static_cast<A*>(call.loss),
                           static_cast<A*>(call.hinge), static_cast<A*>(call.max_prob),
                           static_cast<A*>(call.entropy)};
  const auto stream = static_cast<cudaStream_t>(call.target.stream);
  if (rows.classes <= kShortRow) {
    const auto source = make_tile_source<T>(call.logits.data, call.logits.class_stride,
                                            map.is_flat(0, rows.classes));
    run({blocks_for(count, kTileRows<T>), kTileRows<T>, stream,
         tile_bytes<T>(kTileRows<T>, rows.classes)},
        logit_short_rows<T>, rows, source, SmallDivisor(rows.classes), results);
  } else if (rows.classes <= 8 * kLogitChunk<T>) {
    launch_registers<T, Lanewise<8>>(rows, results, stream);
  } else if (rows.classes <= 32 * kLogitChunk<T>) {
    launch_registers<T, Lanewise<32>>(rows, results, stream);
  } else if (rows.classes <= kLaneThreads * kLogitChunk<T>) {
    launch_registers<T, Blockwise<kLaneThreads>>(rows, results, stream);
  } else {
    auto* workspace = static_cast<PlacedSums<A>*>(call.workspace);
    const int segments = static_cast<int>(call.segments);
    run({blocks_for(count * segments, 1), kLongThreads, stream}, logit_long_rows<T>, rows,
        workspace, segments, results);
    if (segments > 1) {
      run({blocks_for(count, 1), 32, stream}, logit_merge_segments<T>, rows, workspace, segments,
          results);
    }
  }
}

}  // namespace

void logit_stats_forward(const LogitForward& call) {
  const RowMap<2> map = make_row_map<2>(call.sizes, {&call.logits.strides, &call.labels.strides});
  const int64_t rows = map.rows();
  if (rows == 0) return;
  const DeviceGuard guard(call.target.device);
  for_dtype(call.target.dtype,
            [&](auto tag) { launch<typename decltype(tag)::type>(call, map, rows); });
}

}  // namespace fastmem::cuda
