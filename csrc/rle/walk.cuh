// What the CUDA kernels of rle share: a block's walk over the runs of a mask.
#pragma once

#include "../common/scan.cuh"
#include "launchers.h"

namespace s2d::rle {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x / kWarp); }

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
  __device__ __forceinline__ void walk(uint32_t stop, const Visit& visit) const {
    uint32_t carry = 0;
    for (int64_t chunk = begin; chunk < end && carry < stop; chunk += kThreads * kRunsPerThread) {
      const int64_t first = chunk + threadIdx.x * kRunsPerThread;
      uint32_t lengths[kRunsPerThread], sum = 0, total;
#pragma unroll
      for (int k = 0; k < kRunsPerThread; ++k) {
        lengths[k] = first + k < end ? static_cast<uint32_t>(counts[first + k]) : 0;
        sum += lengths[k];
      }
      uint32_t start = carry + sum_before<kThreads>(sum, total);
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
