// bitmask: the arithmetic that the CPU and the CUDA kernels share, and the launchers of the latter.
#pragma once

#include <cstdint>

#include "../common/bits.h"

namespace s2d::bitmask {

// IoU of two counts; 0 where the union is empty.
S2D_HOST_DEVICE float iou_of(int64_t intersection, int64_t area_a, int64_t area_b) {
  const int64_t union_area = area_a + area_b - intersection;
  return union_area > 0 ? static_cast<float>(static_cast<double>(intersection) / static_cast<double>(union_area))
                        : 0.0f;
}

// Launchers: device pointers and a cudaStream_t. Definitions in bitmask.cu.
void launch_pack(const uint8_t* masks, uint64_t* words, int64_t rows, int64_t width, void* stream);
void launch_unpack(const uint64_t* words, uint8_t* masks, int64_t rows, int64_t width, void* stream);
// area: zeroed.
void launch_area(const uint64_t* words, int64_t* area, int64_t masks, int64_t words_per_mask, void* stream);
void launch_bbox(const uint64_t* words, int64_t* boxes, int64_t masks, int64_t height, int64_t words_per_row,
                 void* stream);
// counts [n, m], zeroed: bits that pairs share; where a == b only those on the diagonal and above are counted for sure.
void launch_intersections(const char* op, const uint64_t* a, const uint64_t* b, int64_t* counts, int64_t n, int64_t m,
                          int64_t words_per_mask, void* stream);
// counts: zeroed int64 [n, m] scratch; area_a, area_b: from launch_area, or nullptr where a == b.
void launch_iou(const uint64_t* a, const uint64_t* b, const int64_t* area_a, const int64_t* area_b, int64_t* counts,
                float* iou, int64_t n, int64_t m, int64_t words_per_mask, void* stream);
// keep[i]: whether the i-th mask in order survives.
void launch_nms(const float* iou, const int64_t* order, uint8_t* keep, int64_t n, double threshold, void* stream);

}  // namespace s2d::bitmask
