// Positions, lookups and the forward-backward check on optical flow. Every operation is rounded by itself, in the order
// of s2d/ops/reference/_flow.py, which defines them: so all kernels decide alike at a threshold.
#pragma once

#include <cmath>
#include <cstdint>

#include "bits.h"
#include "half.h"

namespace s2d {

struct Vector {
  float x, y;
};

// Of a frame of pixels: which positions have their nearest pixel (half to even) in it.
struct Bounds {
  int32_t height, width;
  float bottom, right;  // the largest positions that do

  Bounds(int64_t rows, int64_t columns)
      : height(static_cast<int32_t>(rows)),
        width(static_cast<int32_t>(columns)),
        bottom(largest(rows)),
        right(largest(columns)) {}

  S2D_HOST_DEVICE bool hold(Vector p) const {
    return (p.x >= -0.5f) & (p.x <= right) & (p.y >= -0.5f) & (p.y <= bottom);
  }

 private:
  static float largest(int64_t size) {
    if (size == 0) return -1.0f;
    const float half = static_cast<float>(size) - 0.5f;
    return size % 2 ? half : std::nextafter(half, 0.0f);
  }
};

// Nearest integer, half to even, of a number of magnitude under 2^22: the sum pushes the fraction out of the mantissa,
// whose low bits then hold the integer. Any other number gives some integer.
S2D_HOST_DEVICE int32_t nearest(float x) {
  constexpr float kPush = 12582912.0f;
  constexpr uint32_t kPushBits = 0x4b400000u;
  const float pushed = x + kPush;
  uint32_t bits;
  __builtin_memcpy(&bits, &pushed, 4);
  return static_cast<int32_t>(bits - kPushBits);
}

// Index of the pixel nearest to a position that the bounds hold.
S2D_HOST_DEVICE int32_t nearest_pixel(const Bounds& bounds, Vector p) {
  return nearest(p.y) * bounds.width + nearest(p.x);
}

// (dx, dy) of one pixel, in one load. A GPU needs flow to begin at a multiple of its size for it.
S2D_HOST_DEVICE Vector flow_at(const float* flow, int32_t pixel) {
#if defined(__CUDA_ARCH__)
  const float2 both = __ldg(reinterpret_cast<const float2*>(flow) + pixel);
  return {both.x, both.y};
#else
  uint64_t both;
  __builtin_memcpy(&both, flow + 2 * static_cast<int64_t>(pixel), 8);
  const uint32_t low = static_cast<uint32_t>(both), high = static_cast<uint32_t>(both >> 32);
  Vector result;
  __builtin_memcpy(&result.x, &low, 4);
  __builtin_memcpy(&result.y, &high, 4);
  return result;
#endif
}

S2D_HOST_DEVICE Vector flow_at(const Half* flow, int32_t pixel) {
  uint32_t both;
#if defined(__CUDA_ARCH__)
  both = __ldg(reinterpret_cast<const uint32_t*>(flow) + pixel);
#else
  __builtin_memcpy(&both, flow + 2 * static_cast<int64_t>(pixel), 4);
#endif
  return {widened(Half{static_cast<uint16_t>(both)}), widened(Half{static_cast<uint16_t>(both >> 16)})};
}

S2D_HOST_DEVICE float clamped(float x, float last) {
  x = x > 0.0f ? x : 0.0f;
#if defined(__CUDA_ARCH__)
  return fminf(x, last);
#else
  return x < last ? x : last;
#endif
}

// The position in the frame that is nearest; what is not a number becomes 0.
S2D_HOST_DEVICE Vector clamped_to(const Bounds& bounds, Vector p) {
  return {clamped(p.x, static_cast<float>(bounds.width - 1)), clamped(p.y, static_cast<float>(bounds.height - 1))};
}

S2D_HOST_DEVICE float between(float a, float b, float share) { return a + (b - a) * share; }

// The four pixels that a position in the frame lies between, the border repeated, and its place among them.
struct Cell {
  int32_t first, right, below;  // the upper left pixel, and how far the others are from it
  float fx, fy;
};

S2D_HOST_DEVICE Cell cell_of(const Bounds& bounds, Vector p) {
  const Vector at = clamped_to(bounds, p);
  const int32_t left = static_cast<int32_t>(at.x), top = static_cast<int32_t>(at.y);
  return {top * bounds.width + left, left + 1 < bounds.width ? 1 : 0, top + 1 < bounds.height ? bounds.width : 0,
          at.x - static_cast<float>(left), at.y - static_cast<float>(top)};
}

// Flow of float or Half, bilinear.
template <typename Value>
S2D_HOST_DEVICE Vector interpolated(const Value* flow, const Cell& cell) {
  const Vector a = flow_at(flow, cell.first), b = flow_at(flow, cell.first + cell.right);
  const Vector c = flow_at(flow, cell.first + cell.below), d = flow_at(flow, cell.first + cell.below + cell.right);
  return {between(between(a.x, b.x, cell.fx), between(c.x, d.x, cell.fx), cell.fy),
          between(between(a.y, b.y, cell.fx), between(c.y, d.y, cell.fx), cell.fy)};
}

// Bilinear flow at a position, the border repeated outside.
template <typename Value>
S2D_HOST_DEVICE Vector lookup(const Value* flow, const Bounds& bounds, Vector p) {
  return interpolated(flow, cell_of(bounds, p));
}

// |f + b|^2 <= 0.01 (|f|^2 + |b|^2) + 0.5; false where one of them is not finite.
S2D_HOST_DEVICE bool agree(Vector f, Vector b) {
  constexpr float kLargest = 3.40282347e38f;
  const float x = f.x + b.x, y = f.y + b.y;
  const float bound = 0.01f * ((f.x * f.x + f.y * f.y) + (b.x * b.x + b.y * b.y)) + 0.5f;
  return x * x + y * y <= (bound < kLargest ? bound : kLargest);
}

}  // namespace s2d
