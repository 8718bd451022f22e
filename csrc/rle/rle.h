// rle: runs of a mask in COCO's order (down the columns, unset first), from and to bits in rows.
//
// Rows and columns meet in blocks of 64 x 64 pixels: transposing a block turns 64 words of rows into 64 words of
// columns. What runs through a whole strip of 64 columns is then a stream of words, in which a run starts wherever a
// bit differs from the one before it.
#pragma once

#include <cstdint>

#include "../common/bits.h"

namespace s2d::rle {

// Transpose 64 x 64 bits in place: bit x of word y goes to bit y of word x.
S2D_HOST_DEVICE void transpose_block(uint64_t* block) {
  uint64_t mask = 0x00000000ffffffffull;
  for (int step = 32; step > 0; step >>= 1, mask ^= mask << step) {
    for (int row = 0; row < 64; row = (row + step + 1) & ~step) {
      const uint64_t swapped = ((block[row] >> step) ^ block[row + step]) & mask;
      block[row] ^= swapped << step;
      block[row + step] ^= swapped;
    }
  }
}

// The lowest `number` bits; number is 0 to 64.
S2D_HOST_DEVICE uint64_t low_bits(int64_t number) { return number >= 64 ? ~0ull : (1ull << number) - 1; }

}  // namespace s2d::rle
