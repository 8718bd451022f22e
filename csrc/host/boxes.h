// IoU of boxes, to the last bit as COCO computes it.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/simd.h"

namespace s2d::host {

// As C's fmin and fmax: of a number and NaN, the number.
inline double lesser(double a, double b) { return a < b || b != b ? a : b; }
inline double greater(double a, double b) { return a > b || b != b ? a : b; }

// Boxes as columns of numbers.
struct Boxes {
  Boxes(const double* boxes, int64_t number) : left(number), top(number), right(number), bottom(number), area(number) {
    for (int64_t n = 0; n < number; ++n, boxes += 4) {
      left[n] = boxes[0];
      top[n] = boxes[1];
      right[n] = boxes[2] + boxes[0];
      bottom[n] = boxes[3] + boxes[1];
      area[n] = boxes[2] * boxes[3];
    }
  }
  std::vector<double> left, top, right, bottom, area;
};

// out[d * step]: IoU of the boxes [begin, end) with box g of `truth`.
S2D_LOOP void box_iou_loop(const Boxes& dt, int64_t begin, int64_t end, const Boxes& truth, int64_t g, bool crowd,
                           double* out, int64_t step) {
  const double left = truth.left[g], top = truth.top[g], right = truth.right[g], bottom = truth.bottom[g];
  const double area = truth.area[g];
  const double *lefts = dt.left.data(), *tops = dt.top.data(), *rights = dt.right.data(), *bottoms = dt.bottom.data();
  const double* areas = dt.area.data();
  for (int64_t d = begin; d < end; ++d, out += step) {
    const double width = lesser(rights[d], right) - greater(lefts[d], left);
    const double height = lesser(bottoms[d], bottom) - greater(tops[d], top);
    const double both = width * height;
    const double iou = both / (crowd ? areas[d] : areas[d] + area - both);
    // NaN is not below zero: it stays.
    *out = width <= 0 || height <= 0 ? 0 : iou;
  }
}

}  // namespace s2d::host
