// What the CUDA kernels of rle share: sums over a block, and a block's walk over the runs of a mask.
#pragma once

#include "../common/launch.cuh"
#include "launchers.h"

namespace s2d::rle {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x / kWarp); }

// The sum of a warp's values up to and with this lane's.
template <typename T>
__device__ __forceinline__ T warp_scan(T value) {
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const T below = __shfl_up_sync(kAll, value, offset);
    if (lane_id() >= offset) value += below;
  }
  return value;
}

// The sum of a block's values before this thread's, and of all. `sums` is shared, one for each of the block's warps.
template <int kBlockWarps, typename T>
__device__ __forceinline__ T block_scan(T value, T* sums, T& total) {
  const T upto = warp_scan(value);
  if (lane_id() == kWarp - 1) sums[warp_id()] = upto;
  __syncthreads();
  T before = upto - value;
  total = 0;
#pragma unroll
  for (int w = 0; w < kBlockWarps; ++w) {
    if (w < warp_id()) before += sums[w];
    total += sums[w];
  }
  __syncthreads();
  return before;
}

constexpr int kRunsPerThread = 4;

// The runs of one mask, within the bounds of the batch even where offsets are broken.
struct Runs {
  __device__ Runs(const DeviceCodes& codes, int64_t mask)
      : begin(min(max(codes.offsets[mask], int64_t{0}), codes.runs)),
        end(min(max(codes.offsets[mask + 1], begin), codes.runs)),
        counts(codes.counts) {}

  // A block walks over all runs: visit(index, start, length), each thread for runs of its own. Stops early once
  // all that follow start at `stop` or later. Unsigned, so that broken runs wrap around and stay harmless.
  template <typename Visit>
  __device__ __forceinline__ void walk(uint32_t stop, uint32_t* sums, const Visit& visit) const {
    uint32_t carry = 0;
    for (int64_t chunk = begin; chunk < end && carry < stop; chunk += kThreads * kRunsPerThread) {
      const int64_t first = chunk + threadIdx.x * kRunsPerThread;
      uint32_t lengths[kRunsPerThread], sum = 0, total;
#pragma unroll
      for (int k = 0; k < kRunsPerThread; ++k) {
        lengths[k] = first + k < end ? static_cast<uint32_t>(counts[first + k]) : 0;
        sum += lengths[k];
      }
      uint32_t start = carry + block_scan<kWarps>(sum, sums, total);
#pragma unroll
      for (int k = 0; k < kRunsPerThread; ++k) {
        if (first + k < end) visit(first + k - begin, start, lengths[k]);
        start += lengths[k];
      }
      carry += total;
    }
  }

  int64_t begin, end;
  const int32_t* counts;
};

}  // namespace
}  // namespace s2d::rle
