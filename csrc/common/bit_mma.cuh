// The tensor cores' product of bits: dot products of rows and columns of 256 bits, counted in integers.
#pragma once

#include "bits.h"
#include "launch.cuh"

namespace s2d {

// c += bits that rows of A and columns of B share: a 16 x 8 tile for a warp, over 256 bits. With g = lane / 4 and
// q = lane % 4, a lane hands in words q of rows g and g + 8 of A and word q of column g of B, and holds the counts of
//   c[0]: row g,     column 2 q      c[1]: row g,     column 2 q + 1
//   c[2]: row g + 8, column 2 q      c[3]: row g + 8, column 2 q + 1
// Which bit of a word meets which place of the instruction's 256 does not matter, as it is the same for A and B.
__device__ __forceinline__ void add_shared_bits(int (&c)[4], uint64_t upper, uint64_t lower, uint64_t column) {
#if defined(__CUDACC__)
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(static_cast<uint32_t>(upper)), "r"(static_cast<uint32_t>(lower)), "r"(static_cast<uint32_t>(upper >> 32)),
        "r"(static_cast<uint32_t>(lower >> 32)), "r"(static_cast<uint32_t>(column)),
        "r"(static_cast<uint32_t>(column >> 32)));
#else
  const int lane = threadIdx.x % kWarp, g = lane / 4, q = lane % 4;
  for (int word = 0; word < 4; ++word) {
    const uint64_t rows[2] = {__shfl_sync(~0u, upper, g * 4 + word), __shfl_sync(~0u, lower, g * 4 + word)};
    for (int i = 0; i < 4; ++i) c[i] += popcount(rows[i / 2] & __shfl_sync(~0u, column, (2 * q + i % 2) * 4 + word));
  }
#endif
}

}  // namespace s2d
