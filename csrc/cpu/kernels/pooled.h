// Of the four pixels of a 2 x 2 window: the largest, or 0, and which one it was.
#pragma once

#include "cpu/kernels/convert.h"

namespace fastmem::cpu::FASTMEM_ISA {

// A byte for each lane of a register.
template <class T>
struct BytesOf {
  typedef uint8_t type __attribute__((vector_size(kLanes<T>)));
};
template <class T>
using Bytes = typename BytesOf<T>::type;

template <class T>
using Code = Register<Integer<T>>;

// As its code: the ReLU is off.
inline constexpr uint8_t kNobody = 4;

template <class T>
struct Pooled {
  Register<T> value;
  Code<T> winner;  // 0 to 3, or kNobody
};

// Of equal pixels the first wins, and NaN wins over numbers. value_of(place) gives a pixel.
template <class T, class ValueOf>
FASTMEM_INLINE Pooled<T> pool(ValueOf&& value_of) {
  Register<T> best = value_of(0);
  Code<T> code{};
#pragma GCC unroll 3
  for (int place = 1; place < 4; ++place) {
    const Register<T> value = value_of(place);
    const Code<T> wins = (value > best) | (value != value);
    best = wins ? value : best;
    code = wins ? Code<T>{} + place : code;
  }
  const Code<T> off = best <= 0;
  return {off ? Register<T>{} : best, off ? Code<T>{} + kNobody : code};
}

// The first `count` lanes.
template <class T>
FASTMEM_INLINE void store_pooled(const Pooled<T>& pooled, int64_t count, T* value,
                                 uint8_t* winner) {
  const auto bytes = __builtin_convertvector(pooled.winner, Bytes<T>);
  if (count == kLanes<T>) {
    store_register(value, pooled.value);
    memcpy(winner, &bytes, sizeof(bytes));
  } else {
    store_register_first(value, pooled.value, count);
    memcpy(winner, &bytes, static_cast<size_t>(count));
  }
}

}  // namespace fastmem::cpu::FASTMEM_ISA
