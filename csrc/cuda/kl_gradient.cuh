// What the two backward passes of kl_div share: the values of a row, and units of elements.
#pragma once

#include "common/kl_math.h"
#include "cuda/memory.cuh"
#include "cuda/operators.h"

namespace fastmem::cuda {

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

// From the pointers of a call.
template <typename A>
RowValues<A> row_values(const KlRows& rows) {
  return {static_cast<const A*>(rows.grad), static_cast<const A*>(rows.kl),
          static_cast<const A*>(rows.lse_p), static_cast<const A*>(rows.centre),
          static_cast<const A*>(rows.shift)};
}

}  // namespace fastmem::cuda
