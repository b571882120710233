// Matrices cut into panels: columns in groups of a few registers, each group contiguous, row after
// row. A panel is what a tile of the product below reads beside its six rows, so neither cache sets
// nor pages are wasted on the columns that other tiles need.
#pragma once

#include "cpu/kernels/convert.h"
#include "cpu/kernels/layer_grad_vec.h"
#include "cpu/kernels/pieces.h"

namespace fastmem::cpu::FASTMEM_ISA {

// A tile holds kTileRows x kTileRegisters sums in registers. 6 x 4 of 32 registers, 6 x 2 of 16: as
// many as leave room for one row of the panel and a broadcast value.
inline constexpr int kTileRows = 6;
#if defined(__AVX512F__)
inline constexpr int kTileRegisters = 4;
#else
inline constexpr int kTileRegisters = 2;
#endif
template <class T>
inline constexpr int64_t kPanel = kTileRegisters * kLanes<T>;

// [panels][rows][kPanel], where columns beyond `columns` fill up the last register.
template <class T>
struct Panels {
  T* data;
  int64_t rows;
  int64_t columns;

  static FASTMEM_INLINE int64_t elements(int64_t rows, int64_t columns) {
    return divide_up(columns, kPanel<T>) * rows * kPanel<T>;
  }
  FASTMEM_INLINE int64_t count() const { return divide_up(columns, kPanel<T>); }
  FASTMEM_INLINE T* at(int64_t panel, int64_t row) const {
    return data + (panel * rows + row) * kPanel<T>;
  }
  // Columns of a panel, and the registers that hold them.
  FASTMEM_INLINE int64_t width(int64_t panel) const {
    return least(kPanel<T>, columns - panel * kPanel<T>);
  }
  FASTMEM_INLINE int64_t registers(int64_t panel) const {
    return divide_up(width(panel), kLanes<T>);
  }
};

// Calls body.template operator()<n>() with the constant n = `registers`.
template <int kFirst = kTileRegisters, class Body>
FASTMEM_INLINE void with_registers(int64_t registers, Body&& body) {
  if constexpr (kFirst > 1) {
    if (registers < kFirst) return with_registers<kFirst - 1>(registers, body);
  }
  body.template operator()<kFirst>();
}

template <class T, int kRows, int kRegisters>
struct Sums {
  Register<T> r[kRows][kRegisters];

  // Adds a (kRows x count) times b (count x kRegisters, rows kPanel apart); a(t) gives a column of
  // a, which gives the element of a row.
  template <class Columns>
  FASTMEM_INLINE void add(int64_t count, const T* b, Columns&& a) {
    for (int64_t t = 0; t < count; ++t, b += kPanel<T>) {
      Register<T> columns[kRegisters];
#pragma GCC unroll 8
      for (int j = 0; j < kRegisters; ++j) columns[j] = load_register(b + j * kLanes<T>);
      const auto column = a(t);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const Register<T> element = column(i) - Register<T>{};
#pragma GCC unroll 8
        for (int j = 0; j < kRegisters; ++j) r[i][j] = fma(element, columns[j], r[i][j]);
      }
    }
  }
};

// Transposes block by block: load(r, c) gives a register of row r of the source, from column c on,
// with zeros beyond the last column, and put(block, c, r) stores what becomes of the block: its
// register i is row c + i, from column r on, with zeros beyond the last row.
template <class T, class Load, class Put>
FASTMEM_INLINE void transpose_blocks(int64_t rows, int64_t columns, Load&& load, Put&& put) {
  constexpr int kSide = kLanes<T>;
  for (int64_t r = 0; r < rows; r += kSide) {
    for (int64_t c = 0; c < columns; c += kSide) {
      grad::Vec<T> block[kSide];
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) {
        block[i] = r + i < rows ? (grad::Vec<T>)load(r + i, c) : grad::Vec<T>{};
      }
      grad::transpose<T>(block);
      put(block, c, r);
    }
  }
}

// A dense matrix [rows][columns] as panels of its transpose: row k holds column k.
template <class T>
void pack(const T* from, int64_t rows, int64_t columns, const Panels<T>& to) {
  transpose_blocks<T>(
      rows, columns,
      [&](int64_t r, int64_t c) __attribute__((always_inline)) {
        const T* at = from + r * columns + c;
        return columns - c >= kLanes<T> ? load_register(at) : load_register_first(at, columns - c);
      },
      [&](const auto& block, int64_t c, int64_t r) __attribute__((always_inline)) {
        T* at = to.at(r / kPanel<T>, c) + r % kPanel<T>;
        const int64_t last = least(kLanes<T>, columns - c);
        for (int64_t i = 0; i < last; ++i)
          store_register(at + i * kPanel<T>, (Register<T>)block[i]);
      });
}

// And back.
template <class T>
void unpack(const Panels<T>& from, int64_t rows, int64_t columns, T* to) {
  transpose_blocks<T>(
      columns, rows,
      [&](int64_t c, int64_t r) __attribute__((always_inline)) {
        return load_register(from.at(r / kPanel<T>, c) + r % kPanel<T>);
      },
      [&](const auto& block, int64_t r, int64_t c) __attribute__((always_inline)) {
        const int64_t last = least(kLanes<T>, rows - r);
        for (int64_t i = 0; i < last; ++i) {
          T* at = to + (r + i) * columns + c;
          if (columns - c >= kLanes<T>) {
            store_register(at, (Register<T>)block[i]);
          } else {
            store_register_first(at, (Register<T>)block[i], columns - c);
          }
        }
      });
}

}  // namespace fastmem::cpu::FASTMEM_ISA
