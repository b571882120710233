// Rows of any stored type as registers of double.
#pragma once

#include "cpu/kernels/convert.h"
#include "cpu/kernels/math.h"

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

FASTMEM_INLINE Vec<float> narrow(const Vec<double>* parts) {
  typedef float HalfRegister __attribute__((vector_size(kVectorBytes / 2)));
  HalfRegister halves[2];
  for (int i = 0; i < 2; ++i) halves[i] = __builtin_convertvector(parts[i].r[0], HalfRegister);
  Vec<float> x;
  memcpy(&x.r[0], halves, sizeof(halves));
  return x;
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

// log of the sum of exp(x/T) less that of the sum of the Weights, for the rows in the lanes of
// `top`.
FASTMEM_INLINE void log_of_weight_unit(Vec<float> top, float scale, double temperature,
                                       Vec<double>* unit) {
  widen(top, unit);
  if constexpr (kFusedMultiplyAdd) {
    Vec<double> integers[kParts<float>];
    widen(round(top * scale), integers);
    const double ln2 = Constants<double>::kLn2, rest = 1 / temperature - scale * ln2;
    for (int i = 0; i < kParts<float>; ++i) unit[i] = integers[i] * ln2 + unit[i] * rest;
  } else {
    for (int i = 0; i < kParts<float>; ++i) unit[i] = unit[i] / temperature;
  }
}

}  // namespace fastmem::cpu::FASTMEM_ISA
