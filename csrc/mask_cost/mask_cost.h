// mask_cost: where a point reads a map.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/bits.h"
#include "../common/logistic.h"

namespace s2d::mask_cost {

// The four pixels around a point (x, y) in [0, 1]: rows `row` and `row` + 1, columns `column` and `column` + 1, from -1
// to one past the size. `weight` is of top left, top right, bottom left, bottom right.
template <typename T>
struct Place {
  int32_t row, column;
  T weight[4];
};

// A point that reads nothing, or is NaN, gets four pixels outside: no weight saves it from an infinite pixel.
template <typename T>
S2D_HOST_DEVICE Place<T> place_of(T x, T y, int32_t height, int32_t width) {
  const T px = x * static_cast<T>(width) - static_cast<T>(0.5), py = y * static_cast<T>(height) - static_cast<T>(0.5);
  if (!(px > -1 && py > -1 && px < static_cast<T>(width) && py < static_cast<T>(height)))
    return {-1, width, {0, 0, 0, 0}};
  const T left = std::floor(px), top = std::floor(py), fx = px - left, fy = py - top;
  return {static_cast<int32_t>(top),
          static_cast<int32_t>(left),
          {(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy}};
}

}  // namespace s2d::mask_cost
