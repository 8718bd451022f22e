// Masks as bits: pixel x of a row is bit x % 64 of word x / 64; bits past the width are zero.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define S2D_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define S2D_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace s2d {

constexpr int64_t kWordBits = 64;

S2D_HOST_DEVICE int64_t words_for(int64_t width) { return (width + kWordBits - 1) / kWordBits; }

S2D_HOST_DEVICE int popcount(uint64_t word) {
#if defined(__CUDA_ARCH__)
  return __popcll(word);
#else
  return __builtin_popcountll(word);
#endif
}

// Index of the lowest set bit; the word must not be zero.
S2D_HOST_DEVICE int lowest_bit(uint64_t word) {
#if defined(__CUDA_ARCH__)
  return __ffsll(static_cast<long long>(word)) - 1;
#else
  return __builtin_ctzll(word);
#endif
}

// Index of the highest set bit; the word must not be zero.
S2D_HOST_DEVICE int highest_bit(uint64_t word) {
#if defined(__CUDA_ARCH__)
  return 63 - __clzll(static_cast<long long>(word));
#else
  return 63 - __builtin_clzll(word);
#endif
}

}  // namespace s2d
