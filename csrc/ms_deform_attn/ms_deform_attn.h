// ms_deform_attn: one sampling point of one head on one level, shared by the CPU and GPU kernels.
#pragma once

#include <cstdint>

#include "../common/bits.h"

namespace s2d::ms_deform_attn {

// The 2 x 2 pixels around a point, row-major: corner c is pixel place + c % 2 + c / 2 * width of its level where bit c
// of `inside` is set; where it is not, it is no pixel, and reads as zero.
template <typename T>
struct Corners {
  int32_t place;
  int inside;
  T fx, fy;

  S2D_HOST_DEVICE T share(int corner) const { return (corner & 1 ? fx : 1 - fx) * (corner & 2 ? fy : 1 - fy); }
};

// The pixel that `position` is in or to the right of; positions are above -1 and of int32's range.
template <typename T>
S2D_HOST_DEVICE int32_t pixel_before(T position) {
  const auto towards_zero = static_cast<int32_t>(position);
  return towards_zero - (position < static_cast<T>(towards_zero));
}

// Corners of the point at shares (x, y) of a level; 0 and 1 are its outer edges. A point that is a pixel or more
// outside has no corner inside, nor has one that is NaN or infinite.
template <typename T>
S2D_HOST_DEVICE Corners<T> corners_of(T x, T y, int32_t height, int32_t width) {
  const T px = x * static_cast<T>(width) - static_cast<T>(0.5), py = y * static_cast<T>(height) - static_cast<T>(0.5);
  // Written so that NaN is not near.
  const bool near = px > -1 && py > -1 && px < static_cast<T>(width) && py < static_cast<T>(height);
  const int32_t column = near ? pixel_before(px) : 0, row = near ? pixel_before(py) : 0;
  const int columns = (column >= 0) | (column + 1 < width) << 1;
  const int inside = (row >= 0 ? columns : 0) | (row + 1 < height ? columns << 2 : 0);
  return {row * width + column, near ? inside : 0, px - static_cast<T>(column), py - static_cast<T>(row)};
}

}  // namespace s2d::ms_deform_attn
