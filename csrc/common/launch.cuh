// Launch arithmetic and error checks shared by all .cu files. No torch header: launchers get raw pointers and a stream.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace s2d {

constexpr int kWarp = 32;

inline int64_t ceil_div(int64_t total, int64_t size) { return (total + size - 1) / size; }

// A launch reports a bad configuration at once; an error of the kernel itself surfaces at torch's next check.
inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("s2d: launching ") + kernel + " failed: " + cudaGetErrorString(error));
  }
}

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  return value;
}

}  // namespace s2d
