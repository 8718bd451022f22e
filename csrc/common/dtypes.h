// Floating point tensors: which there are, and what they are computed in. Half precision is widened, and results are
// rounded to it once.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <string>

#include "check.h"

namespace s2d {

inline bool is_half(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Half || tensor.scalar_type() == ScalarType::BFloat16;
}

inline void check_floating(const Tensor& tensor, const char* op, const char* name) {
  const ScalarType type = tensor.scalar_type();
  S2D_CHECK(is_half(tensor) || type == ScalarType::Float || type == ScalarType::Double, op,
            std::string(name) + " float16, bfloat16, float32 or float64", "another dtype");
}

inline bool is_double(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Double; }

// What a tensor is computed in.
inline ScalarType wide(const Tensor& tensor) { return is_double(tensor) ? ScalarType::Double : ScalarType::Float; }

inline Tensor widened(const Tensor& tensor) { return torch::stable::to(tensor, wide(tensor)); }

inline Tensor rounded(const Tensor& result, const Tensor& like) {
  return torch::stable::to(result, like.scalar_type());
}

}  // namespace s2d
