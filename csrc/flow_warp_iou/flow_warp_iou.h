// flow_warp_iou: the arithmetic of a pixel, shared by the CPU and GPU kernels, and the launchers of the latter.
#pragma once

#include <cmath>
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

// Where the masks of a word, one a bit, are more than half set. Only bits on which the corners differ need arithmetic.
template <typename Word>
S2D_HOST_DEVICE Word blend_words(const Word corner[4], float fx, float fy) {
  Word result = corner[0] & corner[1] & corner[2] & corner[3];
  for (Word rest = (corner[0] | corner[1] | corner[2] | corner[3]) & ~result; rest; rest &= rest - 1) {
    const int bit = lowest_bit(rest);
    const bool set =
        more_than_half(corner[0] >> bit & 1, corner[1] >> bit & 1, corner[2] >> bit & 1, corner[3] >> bit & 1, fx, fy);
    result |= static_cast<Word>(set) << bit;
  }
  return result;
}

// Whether a pixel at p with flow f leads into the other frame and is led back.
S2D_HOST_DEVICE bool consistent(const float* reverse, const Bounds& bounds, Vector p, Vector f) {
  const Vector there{p.x + f.x, p.y + f.y};
  return bounds.hold(there) & agree(f, lookup(reverse, bounds, there));
}

// The flow of a pixel at p that moves by `step` and on by `second`; NaN where the step leaves the frame.
S2D_HOST_DEVICE Vector composed(const float* second, const Bounds& bounds, Vector p, Vector step) {
  const Vector there{p.x + step.x, p.y + step.y};
  const Vector onward = lookup(second, bounds, there);
  const bool inside = bounds.hold(there);
  return {inside ? step.x + onward.x : NAN, inside ? step.y + onward.y : NAN};
}

// Launchers: device pointers and a cudaStream_t; every flow begins at a multiple of eight bytes. Definitions in
// flow_warp_iou.cu.

// Masks [P, N or M, H, ceil(W/64)], flow and reverse [P, H, W, 2], visible [P, H, ceil(W/64)]; the last two may be
// null.
struct Warp {
  const uint64_t* source;
  const uint64_t* target;
  const float* flow;
  const uint64_t* visible;
  const float* reverse;
  int64_t pairs, sources, targets, height, width;
  Mode mode;
};

// How many 32-bit words of scratch launch_counts needs.
int64_t scratch_size(const Warp& warp);
// intersection [P, N, M], warped_area [P, N] and target_area [P, M] are zero before.
void launch_counts(const Warp& warp, uint32_t* scratch, int64_t* intersection, int64_t* warped_area,
                   int64_t* target_area, void* stream);
void launch_consistency(const float* flow, const float* reverse, uint8_t* good, int64_t pairs, int64_t height,
                        int64_t width, void* stream);
void launch_compose(const float* first, const float* second, float* out, int64_t pairs, int64_t height, int64_t width,
                    void* stream);

}  // namespace s2d::flow_warp_iou
