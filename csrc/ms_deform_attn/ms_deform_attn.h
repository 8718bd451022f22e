// ms_deform_attn: one sampling point of one head on one level, shared by the CPU and GPU kernels.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/bits.h"

namespace s2d::ms_deform_attn {

// The 2 x 2 pixels around a point, row-major. A pixel outside the level has index -1 and reads as zero.
template <typename T>
struct Corners {
  int64_t index[4];
  T fx, fy;
  bool inside;

  S2D_HOST_DEVICE T share(int corner) const { return (corner & 1 ? fx : 1 - fx) * (corner & 2 ? fy : 1 - fy); }
};

// Corners of the point at shares (x, y) of a level; 0 and 1 are its outer edges.
template <typename T>
S2D_HOST_DEVICE Corners<T> corners_of(T x, T y, int64_t height, int64_t width) {
  const T px = x * static_cast<T>(width) - static_cast<T>(0.5), py = y * static_cast<T>(height) - static_cast<T>(0.5);
  Corners<T> at;
  // Written so that NaN is outside.
  at.inside = px > -1 && py > -1 && px < static_cast<T>(width) && py < static_cast<T>(height);
  if (!at.inside) return at;
  const T left = std::floor(px), top = std::floor(py);
  at.fx = px - left;
  at.fy = py - top;
  const auto column = static_cast<int64_t>(left), row = static_cast<int64_t>(top);
  for (int corner = 0; corner < 4; ++corner) {
    const int64_t c = column + (corner & 1), r = row + (corner >> 1);
    at.index[corner] = c >= 0 && c < width && r >= 0 && r < height ? r * width + c : -1;
  }
  return at;
}

// d value / d px and d value / d py from the four corners' values.
template <typename T>
S2D_HOST_DEVICE T slope_x(const Corners<T>& at, const T* corner) {
  return (1 - at.fy) * (corner[1] - corner[0]) + at.fy * (corner[3] - corner[2]);
}
template <typename T>
S2D_HOST_DEVICE T slope_y(const Corners<T>& at, const T* corner) {
  return (1 - at.fx) * (corner[2] - corner[0]) + at.fx * (corner[3] - corner[1]);
}

}  // namespace s2d::ms_deform_attn
