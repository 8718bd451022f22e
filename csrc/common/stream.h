// The current CUDA stream of a tensor's device, through torch's C interface: no CUDA header of torch is needed.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace s2d {

inline void* current_stream(const torch::stable::Tensor& tensor) {
  void* stream = nullptr;
  const auto error = aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream);
  STD_TORCH_CHECK(error == 0, "s2d: torch gave no CUDA stream for device ",
                  static_cast<int>(tensor.get_device_index()));
  return stream;
}

}  // namespace s2d
