// kl_div forward: 2 B C e bytes read, 16 B written for B rows of C classes of e bytes. Every path
// reads each logit once:
//
//   C <= 32     a thread per row, from a tile in shared memory
//   C <= 1024   8 or 32 lanes per row, the row in registers
//   more        a block per row or per segment of it; threads sum what they read and merge at the
//               end (kl_math.h), so neither the row nor any synchronisation is in the loop
//
// A row of special values is computed again term by term by the same threads.
#include "common/kl_math.h"
#include "cuda/groups.cuh"
#include "cuda/launch.h"
#include "cuda/operators.h"
#include "cuda/tile.cuh"

namespace fastmem::cuda {
namespace {

template <typename T>
struct Arguments {
  using A = Accumulator<T>;
  const T *p, *q;
  int64_t p_class_stride, q_class_stride;
  RowMap<2> map;
  int64_t rows;
  int classes;
  bool packed;  // rows of p and q consist of whole, aligned packs of 16 bytes
  int units;    // of a row: packs, or else elements
  Temperature<A> temperature;
  A *kl, *lse_p, *centre, *shift;

  __device__ __forceinline__ void write(int64_t row, const KlRow<A>& result) const {
    kl[row] = result.kl;
    lse_p[row] = result.lse_p;
    centre[row] = result.centre;
    shift[row] = result.shift;
  }
};

// ------------------------------------------------------------------------------- a thread per row

template <typename T>
struct TilePairs {
  using Scalar = Accumulator<T>;
  const T *p_tile, *q_tile;
  int start, classes;
  __device__ __forceinline__ int count() const { return classes; }
  __device__ __forceinline__ Scalar p(int j) const { return widen(p_tile[slot<T>(start + j)]); }
  __device__ __forceinline__ Scalar q(int j) const { return widen(q_tile[slot<T>(start + j)]); }
};

template <typename T>
__global__ void __launch_bounds__(kTileRows<T>, 8)
    kl_short_rows(const __grid_constant__ Arguments<T> args, TileSource<T> p, TileSource<T> q,
                  SmallDivisor by_classes) {
  __shared__ int64_t offsets[2][kTileRows<T>];
  T* p_tile = static_cast<T*>(dynamic_shared());
  const int slots = slot<T>(kTileRows<T> * args.classes);
  T* q_tile = p_tile + (slots + kPack<T> - 1) / kPack<T> * kPack<T>;

  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows<T>;
  const int64_t left = args.rows - first_row;
  const int rows = left < kTileRows<T> ? static_cast<int>(left) : kTileRows<T>;
  const int own = threadIdx.x;
  if (!(p.flat && q.flat)) {
    if (own < rows) {
      int64_t at[2];
      args.map.offsets(first_row + own, at);
      offsets[0][own] = at[0];
      offsets[1][own] = at[1];
    }
    __syncthreads();
  }
  stage(p_tile, p, first_row, offsets[0], rows, args.classes, by_classes);
  stage(q_tile, q, first_row, offsets[1], rows, args.classes, by_classes);
  __syncthreads();
  if (own >= rows) return;
  const TilePairs<T> pairs{p_tile, q_tile, own * args.classes, args.classes};
  const auto sums = sum_pairs(Alone{}, pairs, args.temperature);
  auto result = is_regular(sums) ? finish(sums, args.temperature)
                                 : kl_by_terms(Alone{}, pairs, args.temperature);
  if (args.classes == 1 && is_finite(result.kl)) result.kl = 0;  // not the rounding of p - q
  args.write(first_row + own, result);
}

// ------------------------------------------------------------------------- a row held in registers

template <typename T>
struct StridedPairs {
  using Scalar = Accumulator<T>;
  const T *p_data, *q_data;
  int64_t p_stride, q_stride;
  int number;
  __device__ __forceinline__ int count() const { return number; }
  __device__ __forceinline__ Scalar p(int j) const { return widen(p_data[j * p_stride]); }
  __device__ __forceinline__ Scalar q(int j) const { return widen(q_data[j * q_stride]); }
};

// Every `threads`-th element from number `own` on.
template <typename T>
__device__ __forceinline__ StridedPairs<T> strided(const Arguments<T>& args, const T* p, const T* q,
                                                   int own, int threads) {
  return {p + own * args.p_class_stride, q + own * args.q_class_stride,
          threads * args.p_class_stride, threads * args.q_class_stride,
          (args.classes - own + threads - 1) / threads};
}

// Elements that a thread sums at once.
template <typename T>
inline constexpr int kChunk = sizeof(T) == 8 ? 8 : 16;

template <typename T>
__device__ __forceinline__ int units_in_chunk(bool packed) {
  return packed ? kChunk<T> / kPack<T> : kChunk<T>;
}

inline constexpr int kLaneThreads = 128;

// Reads a chunk: units of one pack (16 bytes) or of one element, `threads` apart, from `unit` on,
// as far as they lie below `end`. Neighbouring threads read neighbouring units.
template <typename T, typename Pairs>
__device__ __forceinline__ void read_chunk(const Arguments<T>& args, const T* p, const T* q,
                                           int unit, int end, int threads, Pairs& pairs) {
  constexpr int each = kChunk<T>, width = kPack<T>;
  if (args.packed) {
#pragma unroll
    for (int j = 0; j < each; j += width, unit += threads) {
      Pack<T> p_pack, q_pack;
      if (unit < end) {
        p_pack = load_pack(p + unit * width);
        q_pack = load_pack(q + unit * width);
      }
#pragma unroll
      for (int k = 0; k < width; ++k) {
        if (unit < end) {
          pairs.set(j + k, widen(p_pack.values[k]), widen(q_pack.values[k]));
        } else {
          pairs.clear(j + k);
        }
      }
    }
  } else {
#pragma unroll
    for (int j = 0; j < each; ++j, unit += threads) {
      if (unit < end) {
        pairs.set(j, widen(p[unit * args.p_class_stride]), widen(q[unit * args.q_class_stride]));
      } else {
        pairs.clear(j);
      }
    }
  }
}

// `Group` holds a row, kChunk elements in every thread.
template <typename T, typename Group>
__global__ void __launch_bounds__(kLaneThreads, kResident<T>)
    kl_register_rows(const __grid_constant__ Arguments<T> args) {
  using A = Accumulator<T>;
  constexpr int threads = Group::kThreads;
  const int own = threadIdx.x % threads;
  int64_t row = static_cast<int64_t>(blockIdx.x) * (kLaneThreads / threads) + threadIdx.x / threads;
  const bool is_extra = row >= args.rows;  // of the last block: computes along, writes nothing
  if (is_extra) row = args.rows - 1;
  int64_t at[2];
  args.map.offsets(row, at);
  const T *p = args.p + at[0], *q = args.q + at[1];

  RegisterPairs<A, kChunk<T>> pairs;
  read_chunk(args, p, q, own, args.units, threads, pairs);
  const KlSums<A> sums = sum_unmasked(Group{}, pairs, args.temperature);
  const KlRow<A> result =
      is_regular(sums) ? finish(sums, args.temperature)
                       : kl_by_terms(Group{}, strided(args, p, q, own, threads), args.temperature);
  if (own == 0 && !is_extra) args.write(row, result);
}

// ------------------------------------------------------------------- a block per (segment of a)
// row

// The merge over lanes above, in the lanes whose number is a multiple of 2 step.
template <typename A>
__device__ __forceinline__ KlSums<A> merge_lanes(KlSums<A> sums, int lanes,
                                                 const Temperature<A>& t) {
  for (int step = 1; step < lanes; step *= 2) {
    KlSums<A> other;
    other.largest = __shfl_down_sync(kWholeWarp, sums.largest, step);
    other.weight = __shfl_down_sync(kWholeWarp, sums.weight, step);
    other.centre = __shfl_down_sync(kWholeWarp, sums.centre, step);
    other.first = __shfl_down_sync(kWholeWarp, sums.first, step);
    other.second = __shfl_down_sync(kWholeWarp, sums.second, step);
    sums = merge(sums, other, t);
  }
  return sums;
}

// Writes the row whose sums thread 0 holds; all threads of the block help where that is not enough.
template <int Threads, typename T, typename A>
__device__ void conclude(const Arguments<T>& args, int64_t row, const KlSums<A>& sums) {
  __shared__ bool regular;
  if (threadIdx.x == 0) {
    regular = is_regular(sums);
    if (regular) args.write(row, finish(sums, args.temperature));
  }
  __syncthreads();
  if (regular) return;
  int64_t at[2];
  args.map.offsets(row, at);
  const auto pairs = strided(args, args.p + at[0], args.q + at[1], threadIdx.x, Threads);
  const KlRow<A> result = kl_by_terms(Blockwise<Threads>{}, pairs, args.temperature);
  if (threadIdx.x == 0) args.write(row, result);
}

inline constexpr int kLongThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kLongThreads, kResident<T>)
    kl_long_rows(const __grid_constant__ Arguments<T> args, KlSums<Accumulator<T>>* workspace,
                 int segments) {
  using A = Accumulator<T>;
  const Temperature<A>& t = args.temperature;
  const int64_t row = blockIdx.x / segments;
  const int own = threadIdx.x;
  int64_t at[2];
  args.map.offsets(row, at);

  KlSums<A> sums = no_kl_sums<A>();
  const int segment = blockIdx.x % segments;
  const int end = static_cast<int>(static_cast<int64_t>(args.units) * (segment + 1) / segments);
  int unit = static_cast<int>(static_cast<int64_t>(args.units) * segment / segments) + own;
  for (; unit < end; unit += kLongThreads * units_in_chunk<T>(args.packed)) {
    RegisterPairs<A, kChunk<T>> pairs;
    read_chunk(args, args.p + at[0], args.q + at[1], unit, end, kLongThreads, pairs);
    KlSums<A> part = sum_unmasked(Alone{}, pairs, t);
    if (!has_weight(part)) part = sum_masked(pairs, t);
    sums = merge(sums, part, t);
  }

  __shared__ KlSums<A> of_warp[kLongThreads / 32];
  sums = merge_lanes(sums, 32, t);
  if (own % 32 == 0) of_warp[own / 32] = sums;
  __syncthreads();
  if (own < 32) {
    sums = own < kLongThreads / 32 ? of_warp[own] : no_kl_sums<A>();
    sums = merge_lanes(sums, kLongThreads / 32, t);
  }
  if (segments == 1) {
    conclude<kLongThreads>(args, row, sums);
  } else if (own == 0) {
    workspace[blockIdx.x] = sums;
  }
}

inline constexpr int kMergeThreads = 256;

// A block per row: the sums of its segments (32 at most) in their order.
template <typename T>
__global__ void __launch_bounds__(kMergeThreads)
    kl_merge_segments(const __grid_constant__ Arguments<T> args,
                      const KlSums<Accumulator<T>>* workspace, int segments) {
  using A = Accumulator<T>;
  KlSums<A> sums = no_kl_sums<A>();
  if (threadIdx.x < 32) {
    if (static_cast<int>(threadIdx.x) < segments) {
      sums = workspace[static_cast<int64_t>(blockIdx.x) * segments + threadIdx.x];
    }
    sums = merge_lanes(sums, 32, args.temperature);
  }
  conclude<kMergeThreads>(args, blockIdx.x, sums);
}

// ------------------------------------------------------------------------------------------
// launches

template <typename T>
void launch_short(const KlForward& call, const Arguments<T>& args, cudaStream_t stream) {
  const size_t shared = 2 * tile_bytes<T>(kTileRows<T>, args.classes);
  run({blocks_for(args.rows, kTileRows<T>), kTileRows<T>, stream, shared}, kl_short_rows<T>, args,
      make_tile_source<T>(call.p.data, call.p.class_stride, args.map.is_flat(0, args.classes)),
      make_tile_source<T>(call.q.data, call.q.class_stride, args.map.is_flat(1, args.classes)),
      SmallDivisor(args.classes));
}

template <typename T, typename Group>
void launch_registers(const Arguments<T>& args, cudaStream_t stream) {
  const unsigned blocks = blocks_for(args.rows, kLaneThreads / Group::kThreads);
  run({blocks, kLaneThreads, stream}, kl_register_rows<T, Group>, args);
}

template <typename T>
void launch_long(const KlForward& call, const Arguments<T>& args, cudaStream_t stream) {
  auto* workspace = static_cast<KlSums<Accumulator<T>>*>(call.workspace);
  const int segments = static_cast<int>(call.segments);
  run({blocks_for(args.rows * segments, 1), kLongThreads, stream}, kl_long_rows<T>, args, workspace,
      segments);
  if (segments == 1) return;
  run({blocks_for(args.rows, 1), kMergeThreads, stream}, kl_merge_segments<T>, args, workspace,
      segments);
}

template <typename T>
void launch(const KlForward& call, const RowMap<2>& map, int64_t rows) {
  using A = Accumulator<T>;
  const bool packed =
      call.classes % kPack<T> == 0 && is_packed<T>(call.p, map, 0) && is_packed<T>(call.q, map, 1);
  const Arguments<T> args{static_cast<const T*>(call.p.data),
                          static_cast<const T*>(call.q.data),
                          call.p.class_stride,
                          call.q.class_stride,
                          map,
                          rows,
                          static_cast<int>(call.classes),
                          packed,
                          static_cast<int>(call.classes / (packed ? kPack<T> : 1)),
                          make_temperature<A>(call.temperature),
                          static_cast<A*>(call.kl),
                          static_cast<A*>(call.lse_p),
                          static_cast<A*>(call.centre),
                          static_cast<A*>(call.shift)};
  const auto stream = static_cast<cudaStream_t>(call.target.stream);
  if (args.classes <= kShortRow) {
    launch_short(call, args, stream);
  } else if (args.classes <= 8 * kChunk<T>) {
    launch_registers<T, Lanewise<8>>(args, stream);
  } else if (args.classes <= 32 * kChunk<T>) {
    launch_registers<T, Lanewise<32>>(args, stream);
  } else if (args.classes <= 128 * kChunk<T>) {
    launch_registers<T, Blockwise<kLaneThreads>>(args, stream);
  } else {
    launch_long(call, args, stream);
  }
}

}  // namespace

void kl_div_forward(const KlForward& call) {
  const RowMap<2> map = make_row_map<2>(call.sizes, {&call.p.strides, &call.q.strides});
  const int64_t rows = map.rows();
  if (rows == 0) return;
  const DeviceGuard guard(call.target.device);
  for_dtype(call.target.dtype,
            [&](auto tag) { launch<typename decltype(tag)::type>(call, map, rows); });
}

}  // namespace fastmem::cuda
