// A register of values in one type, whatever the machine, and a square of them turned on its diagonal.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "simd.h"

namespace s2d {

template <typename T, int kLanes>
struct Vector {
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef T Values __attribute__((vector_size(kLanes * sizeof(T))));
  typedef T InMemory __attribute__((vector_size(kLanes * sizeof(T)), aligned(alignof(T)), may_alias));
  typedef Integer Bits __attribute__((vector_size(kLanes * sizeof(T))));
};
template <typename T, int kLanes>
using Lanes = typename Vector<T, kLanes>::Values;

// Lanes of a and b in turn: the first half of both, or from lane kLanes / 2 on.
template <int kFrom, typename Values, int... kLane>
S2D_LOOP void interleave(const Values& a, const Values& b, Values& out, std::integer_sequence<int, kLane...>) {
  constexpr int kLanes = sizeof...(kLane);
  out = __builtin_shufflevector(a, b, (kFrom + kLane / 2 + kLane % 2 * kLanes)...);
}

// A square of values turned on its diagonal by interleaving its upper and lower half log2 of its size times.
template <int kLanes, typename Values>
S2D_LOOP void turn(Values* rows) {
  constexpr auto kLane = std::make_integer_sequence<int, kLanes>();
  for (int size = 1; size < kLanes; size *= 2) {
    Values turned[kLanes];
    for (int k = 0; k < kLanes / 2; ++k) {
      interleave<0>(rows[k], rows[k + kLanes / 2], turned[2 * k], kLane);
      interleave<kLanes / 2>(rows[k], rows[k + kLanes / 2], turned[2 * k + 1], kLane);
    }
    std::copy(turned, turned + kLanes, rows);
  }
}

}  // namespace s2d
