// bitmask: binds the CUDA launchers to torch's CUDA dispatch key.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "../common/binding.h"
#include "../common/check.h"
#include "bitmask.h"

namespace s2d::bitmask {
namespace {

std::vector<int64_t> leading_sizes(const Tensor& tensor, int64_t dropped) {
  std::vector<int64_t> sizes;
  for (int64_t dim = 0; dim < tensor.dim() - dropped; ++dim) sizes.push_back(tensor.size(dim));
  return sizes;
}

Tensor pack_masks(const Tensor& masks) {
  const DeviceGuard guard(masks.get_device_index());
  const Tensor source = torch::stable::contiguous(masks);
  const int64_t width = source.size(source.dim() - 1);
  std::vector<int64_t> shape = leading_sizes(source, 1);
  shape.push_back(words_for(width));
  Tensor result = torch::stable::new_empty(source, shape, ScalarType::Long);
  launch_pack(in_of<uint8_t>(source), out_of<uint64_t>(result), product_of(source, 0, source.dim() - 1), width,
              current_stream(source));
  return result;
}

Tensor unpack_masks(const Tensor& words, int64_t width) {
  const DeviceGuard guard(words.get_device_index());
  const Tensor source = torch::stable::contiguous(words);
  std::vector<int64_t> shape = leading_sizes(source, 1);
  shape.push_back(width);
  Tensor result = torch::stable::new_empty(source, shape, ScalarType::Byte);
  launch_unpack(in_of<uint64_t>(source), out_of<uint8_t>(result), product_of(source, 0, source.dim() - 1), width,
                current_stream(source));
  return result;
}

// Areas of masks whose last `dims` dimensions are one mask.
Tensor area_of(const Tensor& words, int64_t dims) {
  Tensor result = torch::stable::new_zeros(words, leading_sizes(words, dims), ScalarType::Long);
  launch_area(in_of<uint64_t>(words), out_of<int64_t>(result), product_of(words, 0, words.dim() - dims),
              product_of(words, words.dim() - dims, words.dim()), current_stream(words));
  return result;
}

Tensor mask_area(const Tensor& words) {
  const DeviceGuard guard(words.get_device_index());
  return area_of(torch::stable::contiguous(words), 2);
}

Tensor mask_bbox(const Tensor& words) {
  const DeviceGuard guard(words.get_device_index());
  const Tensor source = torch::stable::contiguous(words);
  std::vector<int64_t> shape = leading_sizes(source, 2);
  shape.push_back(4);
  Tensor result = torch::stable::new_empty(source, shape, ScalarType::Long);
  launch_bbox(in_of<uint64_t>(source), out_of<int64_t>(result), product_of(source, 0, source.dim() - 2),
              source.size(source.dim() - 2), source.size(source.dim() - 1), current_stream(source));
  return result;
}

Tensor mask_iou(const Tensor& a, const Tensor& b) {
  const DeviceGuard guard(a.get_device_index());
  const Tensor left = torch::stable::contiguous(a), right = torch::stable::contiguous(b);
  const int64_t n = left.size(0), m = right.size(0);
  Tensor counts = torch::stable::new_zeros(left, {n, m}, ScalarType::Long);
  Tensor result = torch::stable::new_empty(left, {n, m}, ScalarType::Float);
  std::optional<Tensor> area_a, area_b;
  if (in_of<uint64_t>(left) != in_of<uint64_t>(right) || n != m) {
    area_a = area_of(left, left.dim() - 1);
    area_b = area_of(right, right.dim() - 1);
  }
  const auto areas_of = [](const std::optional<Tensor>& area) {
    return area ? static_cast<const int64_t*>(area->const_data_ptr()) : nullptr;
  };
  launch_iou(in_of<uint64_t>(left), in_of<uint64_t>(right), areas_of(area_a), areas_of(area_b), out_of<int64_t>(counts),
             out_of<float>(result), n, m, product_of(left, 1, left.dim()), current_stream(left));
  return result;
}

Tensor mask_nms(const Tensor& words, const Tensor& order, double threshold) {
  const DeviceGuard guard(words.get_device_index());
  const Tensor overlaps = mask_iou(words, words), visits = torch::stable::contiguous(order);
  Tensor result = torch::stable::new_empty(words, {words.size(0)}, ScalarType::Byte);
  launch_nms(in_of<float>(overlaps), in_of<int64_t>(visits), out_of<uint8_t>(result), words.size(0), threshold,
             current_stream(words));
  return result;
}

}  // namespace
}  // namespace s2d::bitmask

STABLE_TORCH_LIBRARY_IMPL(s2d, CUDA, library) {
  library.impl("pack_masks", TORCH_BOX(&s2d::bitmask::pack_masks));
  library.impl("unpack_masks", TORCH_BOX(&s2d::bitmask::unpack_masks));
  library.impl("mask_area", TORCH_BOX(&s2d::bitmask::mask_area));
  library.impl("mask_bbox", TORCH_BOX(&s2d::bitmask::mask_bbox));
  library.impl("mask_iou", TORCH_BOX(&s2d::bitmask::mask_iou));
  library.impl("mask_nms", TORCH_BOX(&s2d::bitmask::mask_nms));
}
