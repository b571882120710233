// kl_div backward: 2 B C e bytes read and B C e written for each gradient wanted; 20 B of row
// values. Every element stands for itself (kl_math.h), so rows need no reduction. Where an operand
// broadcasts, a thread keeps its elements and adds up over the rows that share them: one operand
// against R rows costs (1 + R) B C e to read, and its gradient is written once.
#include "common/kl_math.h"
#include "cuda/launch.h"
#include "cuda/operators.h"
#include "cuda/tile.cuh"

namespace fastmem::cuda {
namespace {

template <typename A>
struct RowValues {
  const A *grad, *kl, *lse_p, *centre, *shift;
};

// What the elements of a row share.
template <typename A>
struct RowState {
  KlRow<A> row;
  Centre<A> centre;
  A grad;  // NaN where the KL is not finite: such a row has no gradient
};

template <typename A>
__device__ __forceinline__ RowState<A> load_row(const RowValues<A>& values, int64_t row,
                                                const Temperature<A>& t) {
  RowState<A> state;
  state.row = {values.kl[row], values.lse_p[row], values.centre[row], values.shift[row]};
  state.centre = make_centre(state.row.centre, t);
  state.grad = is_finite(state.row.kl) ? values.grad[row] : kNan<A>;
  return state;
}

template <typename A>
__device__ __forceinline__ KlGradient<A> gradient_of(A p, A q, const RowState<A>& state,
                                                     const Temperature<A>& t) {
  const KlGradient<A> unit = kl_gradient(p, q, state.row, state.centre, t);
  return {state.grad * unit.p, state.grad * unit.q};
}

// `Width` neighbouring elements: a pack of 16 bytes, or one element.
template <typename T, int Width>
__device__ __forceinline__ void load_unit(const T* from, T (&values)[Width]) {
  if constexpr (Width == 1) {
    values[0] = *from;
  } else {
    const Pack<T> pack = load_pack(from);
#pragma unroll
    for (int k = 0; k < Width; ++k) values[k] = pack.values[k];
  }
}

template <typename T, int Width, typename A>
__device__ __forceinline__ void store_unit(T* to, const A (&values)[Width]) {
  if (to == nullptr) return;
  if constexpr (Width == 1) {
    narrow(values[0], *to);
  } else {
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < Width; ++k) narrow(values[k], pack.values[k]);
    store_pack(to, pack);
  }
}

template <typename T>
__device__ __forceinline__ T* at_offset(T* pointer, int64_t offset) {
  return pointer == nullptr ? nullptr : pointer + offset;
}

// ------------------------------------------------------------------------ a row for every row:
// short

template <typename T>
struct Arguments {
  using A = Accumulator<T>;
  const T *p, *q;
  int64_t p_class_stride, q_class_stride;
  RowMap<2> map;
  int64_t rows;
  int classes;
  Temperature<A> temperature;
  RowValues<A> values;
  T *dp, *dq;
};

// Rows of at most kShortRow classes: a block takes kTileRows of them as one run of elements.
// `Width` above 1 asks that all four tensors are contiguous and aligned.
template <typename T, int Width>
__global__ void __launch_bounds__(256)
    kl_short_gradients(const __grid_constant__ Arguments<T> args, SmallDivisor by_classes) {
  using A = Accumulator<T>;
  const Temperature<A>& t = args.temperature;
  // A column for each value, so that threads on neighbouring rows use different banks.
  __shared__ A grad[kTileRows<T>], kl[kTileRows<T>], lse_p[kTileRows<T>], centre[kTileRows<T>],
      shift[kTileRows<T>];
  __shared__ int64_t offsets[2][kTileRows<T>];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows<T>;
  const int64_t left = args.rows - first_row;
  const int rows = left < kTileRows<T> ? static_cast<int>(left) : kTileRows<T>;
  const int own = threadIdx.x;
  if (own < rows) {
    const RowState<A> state = load_row(args.values, first_row + own, t);
    grad[own] = state.grad;
    kl[own] = state.row.kl;
    lse_p[own] = state.row.lse_p;
    centre[own] = state.row.centre;
    shift[own] = state.row.shift;
    if constexpr (Width == 1) {
      int64_t at[2];
      args.map.offsets(first_row + own, at);
      offsets[0][own] = at[0];
      offsets[1][own] = at[1];
    }
  }
  __syncthreads();

  const int64_t start = first_row * args.classes;
  const int count = rows * args.classes;
#pragma unroll 2
  for (int i = own * Width; i < count; i += 256 * Width) {
    T p[Width], q[Width];
    A dp[Width], dq[Width];
    if constexpr (Width == 1) {
      const int row = by_classes.quotient_of(i);
      const int64_t column = i - row * args.classes;
      p[0] = args.p[offsets[0][row] + column * args.p_class_stride];
      q[0] = args.q[offsets[1][row] + column * args.q_class_stride];
    } else {
      load_unit(args.p + start + i, p);
      load_unit(args.q + start + i, q);
    }
#pragma unroll
    for (int k = 0; k < Width; ++k) {
      const int row = by_classes.quotient_of(i + k);
      const RowState<A> state{
          {kl[row], lse_p[row], centre[row], shift[row]}, make_centre(centre[row], t), grad[row]};
      const KlGradient<A> gradient = gradient_of(widen(p[k]), widen(q[k]), state, t);
      dp[k] = gradient.p;
      dq[k] = gradient.q;
    }
    store_unit(at_offset(args.dp, start + i), dp);
    store_unit(at_offset(args.dq, start + i), dq);
  }
}

// ------------------------------------------------------------------------- a row for every row:
// long

inline constexpr int kUnitsAtOnce = 4;

// A block takes a tile of blockDim.y rows by kUnitsAtOnce * blockDim.x units.
template <typename T, int Width>
__global__ void __launch_bounds__(256)
    kl_gradients(const __grid_constant__ Arguments<T> args, int units, int tiles_per_row) {
  using A = Accumulator<T>;
  const Temperature<A>& t = args.temperature;
  const int64_t row = static_cast<int64_t>(blockIdx.x / tiles_per_row) * blockDim.y + threadIdx.y;
  if (row >= args.rows) return;
  const int lanes = blockDim.x;
  const int first =
      static_cast<int>(blockIdx.x % tiles_per_row) * kUnitsAtOnce * lanes + threadIdx.x;
  int64_t at[2];
  args.map.offsets(row, at);
  const T *p_row = args.p + at[0], *q_row = args.q + at[1];
  T p[kUnitsAtOnce][Width], q[kUnitsAtOnce][Width];
#pragma unroll
  for (int j = 0; j < kUnitsAtOnce; ++j) {
    const int64_t column = static_cast<int64_t>(first + j * lanes) * Width;
    if (first + j * lanes < units) {
      load_unit(p_row + column * args.p_class_stride, p[j]);
      load_unit(q_row + column * args.q_class_stride, q[j]);
    }
  }
  const RowState<A> state = load_row(args.values, row, t);
#pragma unroll
  for (int j = 0; j < kUnitsAtOnce; ++j) {
    if (first + j * lanes >= units) break;
    A dp[Width], dq[Width];
#pragma unroll
    for (int k = 0; k < Width; ++k) {
      const KlGradient<A> gradient = gradient_of(widen(p[j][k]), widen(q[j][k]), state, t);
      dp[k] = gradient.p;
      dq[k] = gradient.q;
    }
    const int64_t place = row * args.classes + static_cast<int64_t>(first + j * lanes) * Width;
    store_unit(at_offset(args.dp, place), dp);
    store_unit(at_offset(args.dq, place), dq);
  }
}

// -------------------------------------------------------------------------------- summed over rows

template <typename T>
struct SummedArguments {
  using A = Accumulator<T>;
  const T *p, *q;
  int64_t p_class_stride, q_class_stride;
  RowMap<3> kept, summed;  // of p, q and the row values
  int64_t kept_rows, summed_rows;
  int classes;
  Temperature<A> temperature;
  RowValues<A> values;
  bool sum_p;
  T *gradient, *other_gradient;
  A* workspace;
};

// A thread keeps one unit of a row and runs over every summed row of its segment, in order.
template <typename T, int Width>
__global__ void __launch_bounds__(128, kResident<T>)
    kl_summed_gradients(const __grid_constant__ SummedArguments<T> args, int units, int segments) {
  using A = Accumulator<T>;
  const Temperature<A>& t = args.temperature;
  const int64_t own = static_cast<int64_t>(blockIdx.x / segments) * blockDim.x + threadIdx.x;
  const int segment = blockIdx.x % segments;
  if (own >= args.kept_rows * units) return;
  const int64_t kept = own / units;
  const int64_t column = (own - kept * units) * Width;
  int64_t from[3];
  args.kept.offsets(kept, from);
  A total[Width] = {};
  const int64_t end = args.summed_rows * (segment + 1) / segments;
#pragma unroll 2
  for (int64_t r = args.summed_rows * segment / segments; r < end; ++r) {
    int64_t at[3];
    args.summed.offsets(r, at);
    T p[Width], q[Width];
    load_unit(args.p + from[0] + at[0] + column * args.p_class_stride, p);
    load_unit(args.q + from[1] + at[1] + column * args.q_class_stride, q);
    const int64_t row = from[2] + at[2];
    const RowState<A> state = load_row(args.values, row, t);
    A other[Width];
#pragma unroll
    for (int k = 0; k < Width; ++k) {
      const KlGradient<A> gradient = gradient_of(widen(p[k]), widen(q[k]), state, t);
      total[k] += args.sum_p ? gradient.p : gradient.q;
      other[k] = args.sum_p ? gradient.q : gradient.p;
    }
    store_unit(at_offset(args.other_gradient, row * args.classes + column), other);
  }
  const int64_t place = kept * args.classes + column;
  if (segments == 1) {
    store_unit(args.gradient + place, total);
  } else {
    const int64_t partial = segment * args.kept_rows * args.classes + place;
#pragma unroll
    for (int k = 0; k < Width; ++k) args.workspace[partial + k] = total[k];
  }
}

template <typename T>
__global__ void __launch_bounds__(256)
    kl_add_segments(const Accumulator<T>* workspace, T* gradient, int64_t count, int segments) {
  const int64_t own = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (own >= count) return;
  Accumulator<T> total = 0;
#pragma unroll 8
  for (int s = 0; s < segments; ++s) total += workspace[s * count + own];
  narrow(total, gradient[own]);
}

// ------------------------------------------------------------------------------------------
// launches

template <typename A>
RowValues<A> row_values(const KlRows& rows) {
  return {static_cast<const A*>(rows.grad), static_cast<const A*>(rows.kl),
          static_cast<const A*>(rows.lse_p), static_cast<const A*>(rows.centre),
          static_cast<const A*>(rows.shift)};
}

template <typename T, int Width>
void launch_long(const Arguments<T>& args, cudaStream_t stream) {
  const int units = args.classes / Width;
  unsigned lanes = 8;
  while (lanes < 256 && lanes * kUnitsAtOnce < static_cast<unsigned>(units)) lanes *= 2;
  const dim3 block(lanes, 256 / lanes);
  const unsigned tiles_per_row = blocks_for(units, lanes * kUnitsAtOnce);
  const int64_t row_tiles = (args.rows + block.y - 1) / block.y;
  run({blocks_for(row_tiles * tiles_per_row, 1), block, stream}, kl_gradients<T, Width>, args,
      units, static_cast<int>(tiles_per_row));
}

template <typename T>
void launch(const KlBackward& call, const RowMap<2>& map, int64_t rows) {
  using A = Accumulator<T>;
  const Arguments<T> args{static_cast<const T*>(call.p.data),
                          static_cast<const T*>(call.q.data),
                          call.p.class_stride,
                          call.q.class_stride,
                          map,
                          rows,
                          static_cast<int>(call.classes),
                          make_temperature<A>(call.temperature),
                          row_values<A>(call.rows),
                          static_cast<T*>(call.dp),
                          static_cast<T*>(call.dq)};
  const auto stream = static_cast<cudaStream_t>(call.target.stream);
  const bool outputs_aligned = is_aligned(call.dp) && is_aligned(call.dq);  // null is aligned
  if (args.classes <= kShortRow) {
    const unsigned blocks = blocks_for(rows, kTileRows<T>);
    const SmallDivisor by_classes(args.classes);
    const bool flat = outputs_aligned && is_aligned(call.p.data) && is_aligned(call.q.data) &&
                      call.p.class_stride == 1 && call.q.class_stride == 1 &&
                      map.is_flat(0, args.classes) && map.is_flat(1, args.classes) &&
                      rows * args.classes % kPack<T> == 0;
    if (flat) {
      run({blocks, 256, stream}, kl_short_gradients<T, kPack<T>>, args, by_classes);
    } else {
      run({blocks, 256, stream}, kl_short_gradients<T, 1>, args, by_classes);
    }
  } else if (outputs_aligned && args.classes % kPack<T> == 0 && is_packed<T>(call.p, map, 0) &&
             is_packed<T>(call.q, map, 1)) {
    launch_long<T, kPack<T>>(args, stream);
  } else {
    launch_long<T, 1>(args, stream);
  }
}

RowMap<3> part_of(const KlBackwardSummed& call, const std::vector<int64_t>& sizes, size_t first) {
  const auto cut = [&](const std::vector<int64_t>& strides) {
    if (strides.size() != call.kept.size() + call.summed.size()) {
      throw std::invalid_argument("strides without sizes");
    }
    return std::vector<int64_t>(strides.begin() + first, strides.begin() + first + sizes.size());
  };
  const std::vector<int64_t> p = cut(call.p.strides), q = cut(call.q.strides),
                             rows = cut(call.row_strides);
  return make_row_map<3>(sizes, {&p, &q, &rows});
}

template <typename T, int Width>
void launch_summed(const SummedArguments<T>& args, int segments, cudaStream_t stream) {
  const int units = args.classes / Width;
  const int64_t blocks = (args.kept_rows * units + 127) / 128;
  run({blocks_for(blocks * segments, 1), 128, stream}, kl_summed_gradients<T, Width>, args, units,
      segments);
}

template <typename T>
void launch_summed(const KlBackwardSummed& call, const RowMap<3>& kept, const RowMap<3>& summed) {
  using A = Accumulator<T>;
  const SummedArguments<T> args{static_cast<const T*>(call.p.data),
                                static_cast<const T*>(call.q.data),
                                call.p.class_stride,
                                call.q.class_stride,
                                kept,
                                summed,
                                kept.rows(),
                                summed.rows(),
                                static_cast<int>(call.classes),
                                make_temperature<A>(call.temperature),
                                row_values<A>(call.rows),
                                call.sum_p,
                                static_cast<T*>(call.gradient),
                                static_cast<T*>(call.other_gradient),
                                static_cast<A*>(call.workspace)};
  const auto stream = static_cast<cudaStream_t>(call.target.stream);
  const int segments = static_cast<int>(call.segments);
  const bool packed = args.classes % kPack<T> == 0 && is_aligned(call.gradient) &&
                      is_aligned(call.other_gradient) && is_packed<T>(call.p, kept, 0) &&
                      is_packed<T>(call.p, summed, 0) && is_packed<T>(call.q, kept, 1) &&
                      is_packed<T>(call.q, summed, 1);
  if (packed) {
    launch_summed<T, kPack<T>>(args, segments, stream);
  } else {
    launch_summed<T, 1>(args, segments, stream);
  }
  if (segments == 1) return;
  const int64_t count = args.kept_rows * args.classes;
  run({blocks_for(count, 256), 256, stream}, kl_add_segments<T>, args.workspace, args.gradient,
      count, segments);
}

}  // namespace

void kl_div_backward(const KlBackward& call) {
  const RowMap<2> map = make_row_map<2>(call.sizes, {&call.p.strides, &call.q.strides});
  const int64_t rows = map.rows();
  if (rows == 0) return;
  const DeviceGuard guard(call.target.device);
  for_dtype(call.target.dtype,
            [&](auto tag) { launch<typename decltype(tag)::type>(call, map, rows); });
}

void kl_div_backward_summed(const KlBackwardSummed& call) {
  const RowMap<3> kept = part_of(call, call.kept, 0);
  const RowMap<3> summed = part_of(call, call.summed, call.kept.size());
  if (kept.rows() == 0) return;
  const DeviceGuard guard(call.target.device);
  for_dtype(call.target.dtype,
            [&](auto tag) { launch_summed<typename decltype(tag)::type>(call, kept, summed); });
}

}  // namespace fastmem::cuda
