// ms_deform_attn: what its operators refuse, in the same words on every device.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "../common/dtypes.h"

namespace s2d::ms_deform_attn {

constexpr const char* kOp = "ms_deform_attn";

struct Sizes {
  int64_t batches, places, heads, channels, queries, levels, points;

  int64_t row() const { return heads * channels; }
  int64_t per_head() const { return levels * points; }
};

inline void check_device(const Tensor& value, const Tensor& other, const char* name) {
  S2D_CHECK(value.is_cuda() == other.is_cuda() && value.get_device_index() == other.get_device_index(), kOp,
            std::string(name) + " on the device of value",
            other.is_cuda() ? "cuda:" + std::to_string(other.get_device_index()) : "cpu");
}

inline Sizes sizes_of(const Tensor& value, const Tensor& shapes, const Tensor& locations, const Tensor& weights) {
  S2D_CHECK(value.dim() == 4 && value.size(3) > 0, kOp, "value [N, S, M, D]", shape_of(value));
  S2D_CHECK(value.size(1) < std::numeric_limits<int32_t>::max(), kOp, "fewer than 2^31 - 1 places S", value.size(1));
  S2D_CHECK(locations.dim() == 6 && locations.size(5) == 2 && locations.size(0) == value.size(0) &&
                locations.size(2) == value.size(2),
            kOp, "sampling_locations [N, Lq, M, L, P, 2]", shape_of(locations));
  S2D_CHECK(shapes.scalar_type() == ScalarType::Long && shapes.dim() == 2 && shapes.size(0) == locations.size(3) &&
                shapes.size(1) == 2,
            kOp, "spatial_shapes int64 [L, 2]", shape_of(shapes));
  bool alike = weights.dim() == 5;
  for (int64_t dim = 0; alike && dim < 5; ++dim) alike = weights.size(dim) == locations.size(dim);
  S2D_CHECK(alike, kOp, "attention_weights [N, Lq, M, L, P]", shape_of(weights));
  check_floating(value, kOp, "value");
  const ScalarType type = value.scalar_type(), other = locations.scalar_type();
  S2D_CHECK(weights.scalar_type() == other && (other == type || (is_half(value) && other == ScalarType::Float)), kOp,
            "sampling_locations and attention_weights of the dtype of value, or float32 beside half precision",
            "others");
  check_device(value, locations, "sampling_locations");
  check_device(value, weights, "attention_weights");
  return {value.size(0),     value.size(1),     value.size(2),    value.size(3),
          locations.size(1), locations.size(3), locations.size(4)};
}

inline void check_grad(const Tensor& value, const Tensor& grad, const Sizes& sizes) {
  S2D_CHECK(grad.dim() == 3 && grad.scalar_type() == value.scalar_type() && grad.size(0) == sizes.batches &&
                grad.size(1) == sizes.queries && grad.size(2) == sizes.row(),
            kOp, "grad [N, Lq, M * D] of the dtype of value", shape_of(grad));
  check_device(value, grad, "grad");
}

}  // namespace s2d::ms_deform_attn
