// kl_div backward where an operand broadcasts: a thread keeps its elements and adds up over the
// rows that share them. One operand against R rows costs (1 + R) B C e bytes to read, its gradient
// is written once, and the other operand's on the way.
#include "cuda/kl_gradient.cuh"
#include "cuda/launch.h"
#include "cuda/rows.h"

namespace fastmem::cuda {
namespace {

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

// ---------------------------------------------------------------------------------------- launches

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

void kl_div_backward_summed(const KlBackwardSummed& call) {
  const RowMap<3> kept = part_of(call, call.kept, 0);
  const RowMap<3> summed = part_of(call, call.summed, call.kept.size());
  if (kept.rows() == 0) return;
  const DeviceGuard guard(call.target.device);
  for_dtype(call.target.dtype,
            [&](auto tag) { launch_summed<typename decltype(tag)::type>(call, kept, summed); });
}

}  // namespace fastmem::cuda
