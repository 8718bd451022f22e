// flow_warp_iou: what its operators refuse, in the same words on every device.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "../common/check.h"
#include "flow_warp_iou.h"

namespace s2d::flow_warp_iou {

inline const uint64_t* words_of(const Tensor& tensor) { return static_cast<const uint64_t*>(tensor.const_data_ptr()); }

inline const float* floats_of(const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); }

inline void check_flow(const Tensor& flow, const char* op, const char* name) {
  S2D_CHECK(flow.scalar_type() == ScalarType::Float && flow.dim() == 4 && flow.size(3) == 2, op,
            std::string(name) + " float32 [P, H, W, 2]", shape_of(flow));
  S2D_CHECK(flow.size(1) < (1 << 22) && flow.size(2) < (1 << 22) && flow.size(1) * flow.size(2) < (1 << 30), op,
            "frames of fewer than 2^30 pixels", shape_of(flow));
}

inline void check_device(const Tensor& first, const Tensor& other, const char* op, const char* name) {
  S2D_CHECK(first.is_cuda() == other.is_cuda() && first.get_device_index() == other.get_device_index(), op,
            std::string(name) + " on the device of the other arguments",
            other.is_cuda() ? "cuda:" + std::to_string(other.get_device_index()) : "cpu");
}

inline void check_same(const Tensor& a, const Tensor& b, const char* op, const char* name) {
  check_flow(b, op, name);
  S2D_CHECK(a.size(0) == b.size(0) && a.size(1) == b.size(1) && a.size(2) == b.size(2), op,
            std::string(name) + " of the shape of the other flow", shape_of(b));
  check_device(a, b, op, name);
}

inline void check_masks(const Tensor& words, const Tensor& flow, const char* name) {
  S2D_CHECK(words.scalar_type() == ScalarType::Long && words.dim() == 4 && words.size(0) == flow.size(0) &&
                words.size(2) == flow.size(1) && words.size(3) == words_for(flow.size(2)),
            "flow_warp_iou", std::string(name) + " words [P, masks, H, ceil(W/64)] of the size of flow",
            shape_of(words));
  check_device(flow, words, "flow_warp_iou", name);
}

inline void check_counts(const Tensor& source, const Tensor& target, int64_t width, const Tensor& flow,
                         const std::optional<Tensor>& visible, const std::optional<Tensor>& reverse, int64_t mode) {
  check_flow(flow, "flow_warp_iou", "flow");
  S2D_CHECK(width == flow.size(2), "flow_warp_iou", "masks of the width of flow", width);
  check_masks(source, flow, "source");
  check_masks(target, flow, "target");
  S2D_CHECK(mode == kNearest || mode == kBilinear, "flow_warp_iou", "mode 0 or 1", mode);
  if (visible) {
    S2D_CHECK(visible->scalar_type() == ScalarType::Long && visible->dim() == 3 && visible->size(0) == flow.size(0) &&
                  visible->size(1) == flow.size(1) && visible->size(2) == words_for(width),
              "flow_warp_iou", "visible words [P, H, ceil(W/64)]", shape_of(*visible));
    check_device(flow, *visible, "flow_warp_iou", "visible");
  }
  if (reverse) check_same(flow, *reverse, "flow_warp_iou", "reverse");
}

}  // namespace s2d::flow_warp_iou
