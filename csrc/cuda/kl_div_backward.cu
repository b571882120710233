// kl_div backward: 2 B C e bytes read, B C e written for each gradient wanted and 20 B of row
// values, for B rows of C classes of e bytes. Every element stands for itself (kl_math.h): no
// reduction.
#include "cuda/kl_gradient.cuh"
#include "cuda/launch.h"
#include "cuda/tile.cuh"

namespace fastmem::cuda {
namespace {

// -------------------------------------------------------------------------------------- short rows

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

// ------------------------------------------------------------------------------------- longer rows

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

// ---------------------------------------------------------------------------------------- launches

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

}  // namespace

void kl_div_backward(const KlBackward& call) {
  const RowMap<2> map = make_row_map<2>(call.sizes, {&call.p.strides, &call.q.strides});
  const int64_t rows = map.rows();
  if (rows == 0) return;
  const DeviceGuard guard(call.target.device);
  for_dtype(call.target.dtype,
            [&](auto tag) { launch<typename decltype(tag)::type>(call, map, rows); });
}

}  // namespace fastmem::cuda
