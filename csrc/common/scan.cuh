// Sums over the threads of a warp and of a block, in their order.
#pragma once

#include "launch.cuh"

namespace s2d {

// The sum of a warp's values up to and with this lane's.
template <typename T>
__device__ __forceinline__ T warp_scan(T value) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const T below = __shfl_up_sync(kAll, value, offset);
    if (lane >= offset) value += below;
  }
  return value;
}

// The sum of the values of a block's threads before this one, and of all; every thread of the block takes part.
template <int kBlockThreads, typename T>
__device__ __forceinline__ T sum_before(T value, T& total) {
  __shared__ T of_warp[kBlockThreads / kWarp];
  const int lane = static_cast<int>(threadIdx.x % kWarp), warp = static_cast<int>(threadIdx.x / kWarp);
  const T upto = warp_scan(value);
  __syncthreads();  // a sum before may still be read
  if (lane == kWarp - 1) of_warp[warp] = upto;
  __syncthreads();
  T before = 0;
  total = 0;
#pragma unroll
  for (int w = 0; w < kBlockThreads / kWarp; ++w) {
    if (w < warp) before += of_warp[w];
    total += of_warp[w];
  }
  return before + upto - value;
}

}  // namespace s2d
