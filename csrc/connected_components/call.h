// The arguments of an operator of this room, checked, as its CPU and CUDA kernels take them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../common/check.h"
#include "connected_components.h"

namespace s2d::connected_components {

struct Call {
  Tensor words;
  int64_t masks;
  Sizes sizes;  // with the connectivity of what the task connects

  Call(const Tensor& given, int64_t width, int64_t connectivity, const char* op, Task task = Task::label)
      : words(checked(given, width, connectivity, op)),
        masks(product_of(words, 0, words.dim() - 2)),
        // A curve that is closed for pixels connected one way parts those connected the other way.
        sizes(words.size(words.dim() - 2), width, (connectivity == 8) != (task == Task::fill)) {}

  const uint64_t* of(int64_t mask) const {
    return static_cast<const uint64_t*>(words.const_data_ptr()) + mask * sizes.words();
  }

  int64_t pixels() const { return masks * sizes.pixels(); }

  // Fresh int32 [..., H, W].
  Tensor image() const {
    std::vector<int64_t> shape;
    for (int64_t dim = 0; dim < words.dim() - 1; ++dim) shape.push_back(words.size(dim));
    shape.push_back(sizes.width);
    return torch::stable::new_empty(words, shape, ScalarType::Int);
  }

 private:
  static Tensor checked(const Tensor& given, int64_t width, int64_t connectivity, const char* op) {
    S2D_CHECK(given.scalar_type() == ScalarType::Long && given.dim() >= 2, op, "words int64 [..., H, ceil(W/64)]",
              shape_of(given));
    S2D_CHECK(width >= 0 && given.size(given.dim() - 1) == words_for(width), op, "a width that its words hold", width);
    S2D_CHECK(connectivity == 4 || connectivity == 8, op, "connectivity 4 or 8", connectivity);
    S2D_CHECK(width == 0 || given.size(given.dim() - 2) <= kMostPixels / width, op, "masks of fewer than 2^30 pixels",
              shape_of(given));
    return torch::stable::contiguous(given);
  }
};

}  // namespace s2d::connected_components
