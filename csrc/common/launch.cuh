// Launch arithmetic and error checks shared by all .cu files. No torch header: launchers get raw pointers and a stream.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace s2d {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;  // the lanes of a warp

inline int64_t ceil_div(int64_t total, int64_t size) { return (total + size - 1) / size; }

// Blocks of `size` threads for so many threads.
inline unsigned grid_for(int64_t threads, int64_t size) { return static_cast<unsigned>(ceil_div(threads, size)); }

// kernel<<<blocks, threads, 0, stream>>>(arguments...) as a plain call, which any C++ compiler can read. A bad
// configuration is reported at once; an error of the kernel itself surfaces at torch's next check.
template <typename... Parameters, typename... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), dim3 blocks, int threads, void* stream,
            Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("s2d::") + op + ": the launch failed: " + cudaGetErrorString(error));
  }
}

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_down_sync(kAll, value, offset);
  return value;
}

}  // namespace s2d
