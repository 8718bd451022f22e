// Detections and ground truth in groups: what belongs to one category of one image or video.
#pragma once

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace s2d::host {

namespace py = pybind11;

template <typename Number>
using Array = py::array_t<Number, py::array::c_style>;

// Group k owns the detections [dt[k], dt[k + 1]), the ground truth [gt[k], gt[k + 1]), and IoU [d][g] from iou[k] on.
struct Groups {
  Groups(const Array<int64_t>& dt_offsets, const Array<int64_t>& gt_offsets)
      : dt(dt_offsets.data()), gt(gt_offsets.data()), number(dt_offsets.size() - 1), iou(number + 1) {
    for (int64_t k = 0; k < number; ++k) iou[k + 1] = iou[k] + detections(k) * truths(k);
  }
  int64_t detections(int64_t k) const { return dt[k + 1] - dt[k]; }
  int64_t truths(int64_t k) const { return gt[k + 1] - gt[k]; }

  const int64_t *dt, *gt;
  int64_t number;
  std::vector<int64_t> iou;
};

}  // namespace s2d::host
