// ms_deform_attn: binds the CUDA launchers to torch's CUDA dispatch key.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <tuple>

#include "../common/binding.h"
#include "checks.h"
#include "launchers.h"

namespace s2d::ms_deform_attn {
namespace {

constexpr uintptr_t kVectorBytes = 16;

Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Type::kDouble;
    case ScalarType::Half:
      return Type::kHalf;
    case ScalarType::BFloat16:
      return Type::kBfloat;
    default:
      return Type::kFloat;
  }
}

// The operator's tensors, held for as long as the launch takes them.
struct Held {
  Tensor value, shapes, locations, weights;
  Sizes sizes;

  Held(const Tensor& given, const Tensor& levels, const Tensor& points, const Tensor& shares)
      : value(as_vectors(given, kVectorBytes)),
        shapes(torch::stable::contiguous(levels)),
        locations(as_vectors(points, kVectorBytes)),
        weights(torch::stable::contiguous(shares)),
        sizes(sizes_of(given, levels, points, shares)) {
    S2D_CHECK(sizes.levels <= kMostLevels, kOp, "at most 16 levels on a GPU", sizes.levels);
    S2D_CHECK(sizes.places < kMostPlaces, kOp, "fewer than 2^27 places S on a GPU", sizes.places);
    constexpr int64_t most = std::numeric_limits<int32_t>::max();
    S2D_CHECK(
        sizes.batches * sizes.queries * sizes.heads <= most / 32 && sizes.row() <= most && sizes.per_head() <= most,
        kOp, "fewer than 2^26 sums N * Lq * M on a GPU", sizes.batches * sizes.queries * sizes.heads);
    if (shapes.is_cuda()) check_device(value, shapes, "spatial_shapes");
  }

  Inputs inputs() const {
    const auto narrow = [](int64_t size) { return static_cast<int32_t>(size); };
    Inputs result{value.const_data_ptr(),
                  locations.const_data_ptr(),
                  weights.const_data_ptr(),
                  type_of(value),
                  type_of(locations),
                  narrow(sizes.batches),
                  narrow(sizes.places),
                  narrow(sizes.heads),
                  narrow(sizes.channels),
                  narrow(sizes.queries),
                  narrow(sizes.levels),
                  narrow(sizes.points),
                  nullptr,
                  {},
                  {}};
    const auto* shape = in_of<int64_t>(shapes);
    if (shapes.is_cuda()) {
      result.device_sizes = shape;
      return result;
    }
    int64_t places = 0;
    for (int64_t level = 0; level < sizes.levels; ++level) {
      result.height[level] = narrow(shape[2 * level]);
      result.width[level] = narrow(shape[2 * level + 1]);
      places += shape[2 * level] * shape[2 * level + 1];
    }
    S2D_CHECK(places == sizes.places, kOp, "spatial_shapes that add up to S", places);
    return result;
  }
};

Tensor forward(const Tensor& value, const Tensor& shapes, const Tensor& locations, const Tensor& weights) {
  const DeviceGuard guard(value.get_device_index());
  const Held held(value, shapes, locations, weights);
  const Sizes& sizes = held.sizes;
  Tensor out = torch::stable::new_empty(value, {sizes.batches, sizes.queries, sizes.row()}, value.scalar_type());
  launch_forward(held.inputs(), out.mutable_data_ptr(), current_stream(value));
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& value, const Tensor& shapes, const Tensor& locations,
                                            const Tensor& weights, const Tensor& grad) {
  const DeviceGuard guard(value.get_device_index());
  const Held held(value, shapes, locations, weights);
  const Sizes& sizes = held.sizes;
  check_grad(value, grad, sizes);
  const Tensor given = as_vectors(grad, kVectorBytes);
  Tensor grad_value =
      torch::stable::new_zeros(value, {sizes.batches, sizes.places, sizes.heads, sizes.channels}, wide(value));
  Tensor grad_locations = torch::stable::empty_like(held.locations);
  Tensor grad_weights = torch::stable::empty_like(held.weights);
  launch_backward(held.inputs(), given.const_data_ptr(), grad_value.mutable_data_ptr(),
                  grad_locations.mutable_data_ptr(), grad_weights.mutable_data_ptr(), current_stream(value));
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace
}  // namespace s2d::ms_deform_attn

STABLE_TORCH_LIBRARY_IMPL(s2d, CUDA, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&s2d::ms_deform_attn::forward));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&s2d::ms_deform_attn::backward));
}
