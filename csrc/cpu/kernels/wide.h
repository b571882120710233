// Rows of any stored type as registers of double.
#pragma once

#include "cpu/kernels/convert.h"

namespace fastmem::cpu::FASTMEM_ISA {

// The registers of double that hold one register of what is computed with.
template <class Stored>
inline constexpr int kParts = sizeof(double) / sizeof(Compute<Stored>);

FASTMEM_INLINE void widen(Vec<double> x, Vec<double>* parts) { parts[0] = x; }

FASTMEM_INLINE void widen(Vec<float> x, Vec<double>* parts) {
  typedef float HalfRegister __attribute__((vector_size(kVectorBytes / 2)));
  HalfRegister halves[2];
  memcpy(halves, &x.r[0], sizeof(halves));
  for (int i = 0; i < 2; ++i) parts[i].r[0] = __builtin_convertvector(halves[i], Register<double>);
}

// Calls body(x, y, valid) for all of two rows; lanes beyond their end hold 0 and are not valid.
template <class Stored, class Body>
FASTMEM_INLINE void for_each_wide(const Stored* x, const Stored* y, int64_t count, Body&& body) {
  constexpr int kStep = kLanes<Compute<Stored>>;
  Vec<double> a[kParts<Stored>], b[kParts<Stored>];
  for (int64_t i = 0; i < count; i += kStep) {
    const int64_t left = count - i;
    widen(left >= kStep ? load(x + i) : load_first(x + i, left), a);
    widen(left >= kStep ? load(y + i) : load_first(y + i, left), b);
    for (int part = 0; part < kParts<Stored>; ++part) {
      body(a[part], b[part], lanes_below<double, 1>(left - part * kLanes<double>));
    }
  }
}

template <class Stored, class Body>
FASTMEM_INLINE void for_each_wide(const Stored* x, int64_t count, Body&& body) {
  for_each_wide(x, x, count,
                [&](Vec<double> values, Vec<double>, Mask<double> valid)
                    __attribute__((always_inline)) { body(values, valid); });
}

}  // namespace fastmem::cpu::FASTMEM_ISA
