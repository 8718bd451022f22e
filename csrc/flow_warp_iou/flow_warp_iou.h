// flow_warp_iou: the arithmetic of a pixel, shared by the CPU and GPU kernels.
#pragma once

#include <cstdint>

#include "../common/flow.h"

namespace s2d::flow_warp_iou {

enum Mode : int64_t { kNearest = 0, kBilinear = 1 };

// Where a pixel reads the four neighbours of its position. A neighbour outside the frame has index `none`.
struct Corners {
  int32_t index[4];  // upper left, upper right, lower left, lower right
  float fx, fy;
};

S2D_HOST_DEVICE int32_t floor_of(float x) {
  const int32_t cut = static_cast<int32_t>(x);
  return cut - (x < static_cast<float>(cut));
}

S2D_HOST_DEVICE Corners corners_of(const Bounds& bounds, Vector p, int32_t none) {
  const bool near = (p.x > -1.0f) & (p.x < static_cast<float>(bounds.width)) & (p.y > -1.0f) &
                    (p.y < static_cast<float>(bounds.height));
  const float x = near ? p.x : 0.0f, y = near ? p.y : 0.0f;
  const int32_t left = floor_of(x), top = floor_of(y), first = top * bounds.width + left;
  const bool has_left = near & (left >= 0), has_right = near & (left + 1 < bounds.width);
  const bool has_top = top >= 0, has_bottom = top + 1 < bounds.height;
  return {
      {has_top & has_left ? first : none, has_top & has_right ? first + 1 : none,
       has_bottom & has_left ? first + bounds.width : none, has_bottom & has_right ? first + bounds.width + 1 : none},
      x - static_cast<float>(left),
      y - static_cast<float>(top)};
}

// Whether a binary mask with these corners is more than half set at the position.
S2D_HOST_DEVICE bool more_than_half(bool a, bool b, bool c, bool d, float fx, float fy) {
  const float upper = (a ? 1.0f - fx : 0.0f) + (b ? fx : 0.0f);
  const float lower = (c ? 1.0f - fx : 0.0f) + (d ? fx : 0.0f);
  return upper * (1.0f - fy) + lower * fy > 0.5f;
}

// Where 64 masks, one a bit, are more than half set. Only bits on which the corners differ need arithmetic.
S2D_HOST_DEVICE uint64_t blend_words(const uint64_t corner[4], float fx, float fy) {
  uint64_t result = corner[0] & corner[1] & corner[2] & corner[3];
  for (uint64_t rest = (corner[0] | corner[1] | corner[2] | corner[3]) & ~result; rest; rest &= rest - 1) {
    const int bit = lowest_bit(rest);
    const bool set =
        more_than_half(corner[0] >> bit & 1, corner[1] >> bit & 1, corner[2] >> bit & 1, corner[3] >> bit & 1, fx, fy);
    result |= static_cast<uint64_t>(set) << bit;
  }
  return result;
}

// Whether a pixel at p with flow f leads into the other frame and is led back.
S2D_HOST_DEVICE bool consistent(const float* reverse, const Bounds& bounds, Vector p, Vector f) {
  const Vector there{p.x + f.x, p.y + f.y};
  return bounds.hold(there) & agree(f, lookup(reverse, bounds, there));
}

}  // namespace s2d::flow_warp_iou
