// What the bindings of CUDA launchers share: the data of tensors as typed pointers, the device guard, the stream.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "stream.h"

namespace s2d {

using torch::stable::accelerator::DeviceGuard;

template <typename T>
const T* in_of(const torch::stable::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* out_of(torch::stable::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Contiguous, and beginning where `bytes` can be loaded at once, such as (dx, dy): a slice of a buffer may begin in the
// middle of one.
inline torch::stable::Tensor as_vectors(const torch::stable::Tensor& values, uintptr_t bytes = 8) {
  const torch::stable::Tensor result = torch::stable::contiguous(values);
  return reinterpret_cast<uintptr_t>(result.const_data_ptr()) % bytes ? torch::stable::clone(result) : result;
}

}  // namespace s2d
