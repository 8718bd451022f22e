// ms_deform_attn: what the CUDA launchers take. Device pointers and a cudaStream_t; definitions in ms_deform_attn.cu.
#pragma once

#include <cstdint>

namespace s2d::ms_deform_attn {

enum class Type { kFloat, kDouble, kHalf, kBfloat };

constexpr int64_t kMostLevels = 16;
constexpr int64_t kMostPlaces = int64_t{1} << 27;  // of one batch: a level's width and four bits share a number

// Tensors as the operator takes them, beginning at multiples of 16 bytes. The sizes of levels stand in `height` and
// `width`, or, [L, 2], on the device, where they are read by the kernel, so that nobody waits for them.
struct Inputs {
  const void *value, *locations, *weights;
  Type type, number_type;  // of value; of locations and weights
  int32_t batches, places, heads, channels, queries, levels, points;
  const int64_t* device_sizes;
  int32_t height[kMostLevels], width[kMostLevels];
};

// Sums [N, Lq, M * D] of the type of value.
void launch_forward(const Inputs& inputs, void* out, void* stream);

// Adds to grad_value (zeroed before; float for half precision), writes the other gradients in their inputs' type.
void launch_backward(const Inputs& inputs, const void* grad, void* grad_value, void* grad_locations, void* grad_weights,
                     void* stream);

}  // namespace s2d::ms_deform_attn
