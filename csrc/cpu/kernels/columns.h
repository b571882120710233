// Short rows side by side: one row in each lane.
//
// kLanes rows of few classes are read as columns, so that every reduction over classes is an
// addition of registers.
#pragma once

#include <utility>

#include "cpu/kernels/convert.h"

namespace fastmem::cpu::FASTMEM_ISA {

// Columns that are read together: as many as fit into 16 bytes.
template <class T>
inline constexpr int kColumnsAtOnce = 16 / static_cast<int>(sizeof(T));

// Elements that load_columns touches in a row of `classes`.
template <class T>
constexpr int64_t padded_classes(int64_t classes) {
  return (classes + kColumnsAtOnce<T> - 1) / kColumnsAtOnce<T> * kColumnsAtOnce<T>;
}

// 16 bytes of each of kLanes rows, `stride` elements apart; register i has those of rows i, i +
// kColumnsAtOnce, ...
template <class T>
FASTMEM_INLINE void load_pieces(const T* rows, int64_t stride, Register<T>* pieces) {
  constexpr int kStep = kColumnsAtOnce<T>;
  for (int i = 0; i < kStep; ++i) {
    const T* row = rows + i * stride;
#if defined(__AVX2__)
    const auto piece = [&](int k) __attribute__((always_inline)) {
      return _mm_loadu_ps(reinterpret_cast<const float*>(row + k * kStep * stride));
    };
    const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(piece(0)), piece(1), 1);
#if defined(__AVX512F__)
    const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(piece(2)), piece(3), 1);
    pieces[i] = bit_cast<Register<T>>(_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1));
#else
    pieces[i] = bit_cast<Register<T>>(low);
#endif
#else
    pieces[i] = load_register(row);
#endif
  }
}

// The lower halves of every 16 bytes of a and b, lane by lane in turn, or the upper halves.
template <bool kUpper, class R, size_t... I>
FASTMEM_INLINE R interleave(R a, R b, std::index_sequence<I...>) {
  constexpr size_t kLane = 16 / sizeof(R{}[0]), kHalf = kLane / 2;
  return __builtin_shufflevector(
      a, b,
      (I / kLane * kLane + (kUpper ? kHalf : 0) + I % kLane / 2 + (I % 2 ? sizeof...(I) : 0))...);
}

template <bool kUpper, class R>
FASTMEM_INLINE R interleave(R a, R b) {
  return interleave<kUpper>(a, b, std::make_index_sequence<sizeof(R) / sizeof(R{}[0])>());
}

template <bool kUpper>
FASTMEM_INLINE Register<float> interleave_pairs(Register<float> a, Register<float> b) {
  return bit_cast<Register<float>>(
      interleave<kUpper>(bit_cast<Register<double>>(a), bit_cast<Register<double>>(b)));
}

FASTMEM_INLINE void load_columns(const float* rows, int64_t stride, Register<float>* columns) {
  Register<float> x[4];
  load_pieces(rows, stride, x);
  const auto low01 = interleave<false>(x[0], x[1]), low23 = interleave<false>(x[2], x[3]);
  const auto high01 = interleave<true>(x[0], x[1]), high23 = interleave<true>(x[2], x[3]);
  columns[0] = interleave_pairs<false>(low01, low23);
  columns[1] = interleave_pairs<true>(low01, low23);
  columns[2] = interleave_pairs<false>(high01, high23);
  columns[3] = interleave_pairs<true>(high01, high23);
}

FASTMEM_INLINE void load_columns(const double* rows, int64_t stride, Register<double>* columns) {
  Register<double> x[2];
  load_pieces(rows, stride, x);
  columns[0] = interleave<false>(x[0], x[1]);
  columns[1] = interleave<true>(x[0], x[1]);
}

// N * kLanes rows in memory, `stride` elements apart, each with padded_classes() elements that may
// be read.
template <class T>
struct LaneRows {
  const T* first;
  int64_t stride;
};

// Calls body(class, column) for every class; lane i of a column belongs to row i.
template <int N, class T, class Body>
FASTMEM_INLINE void for_each_column(LaneRows<T> rows, int64_t classes, Body&& body) {
  constexpr int kColumns = kColumnsAtOnce<T>;
  for (int64_t c = 0; c < classes; c += kColumns) {
    Register<T> columns[N][kColumns];
    for (int n = 0; n < N; ++n) {
      load_columns(rows.first + c + n * kLanes<T> * rows.stride, rows.stride, columns[n]);
    }
#pragma GCC unroll 4
    for (int k = 0; k < kColumns; ++k) {
      if (c + k >= classes) break;
      Vec<T, N> column;
      FASTMEM_EACH_REGISTER(column, columns[i][k]);
      body(c + k, column);
    }
  }
}

}  // namespace fastmem::cpu::FASTMEM_ISA
