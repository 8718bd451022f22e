// Bits in rows to runs.
//
// Rows and columns meet in blocks of 64 x 64 pixels: transposing a block turns 64 words of rows into 64 words of
// columns. A strip is 64 columns wide; its blocks lie one below the other. Most strips of an image are all unset or all
// set and end no run: they cost one look at each word.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/pack.h"
#include "../common/simd.h"
#include "../common/transpose.h"
#include "rle.h"

namespace s2d::rle {

// Where pixels differ from the one before them, in blocks of 64 rows: changes[b * 64 + x], and bit b % 64 of
// any[b / 64 * 64 + x] where that is not zero. `before[x]` is the pixel above the first of column x.
S2D_LOOP void find_changes_loop(const uint64_t* pixels, int64_t blocks, const uint64_t* before, uint64_t last_rows,
                                uint64_t* changes, uint64_t* any) {
  for (int64_t b = 0; b < blocks; ++b) {
    const uint64_t* block = pixels + b * 64;
    const uint64_t rows = b + 1 < blocks ? ~0ull : last_rows;
    uint64_t* out = changes + b * 64;
    uint64_t* flags = any + b / 64 * 64;
    for (int x = 0; x < 64; ++x) {
      const uint64_t carry = b ? block[x - 64] >> 63 : before[x];
      out[x] = (block[x] ^ (block[x] << 1 | carry)) & rows;
      flags[x] |= static_cast<uint64_t>(out[x] != 0) << (b % 64);
    }
  }
}
S2D_MULTIVERSION(void, find_changes,
                 (const uint64_t* pixels, int64_t blocks, const uint64_t* before, uint64_t last_rows, uint64_t* changes,
                  uint64_t* any),
                 (pixels, blocks, before, last_rows, changes, any))

// Turns masks of one size into runs; keeps its memory from mask to mask.
class Encoder {
 public:
  Encoder(int64_t height, int64_t width)
      : height_(height),
        width_(width),
        blocks_((height + 63) / 64),
        pixels_(blocks_ * 64),
        changes_(blocks_ * 64),
        any_((blocks_ + 63) / 64 * 64) {}

  // Append the runs of one mask, words [H, ceil(W / 64)].
  void encode(const uint64_t* words, std::vector<int32_t>& counts) {
    const int64_t stride = words_for(width_);
    int64_t run_start = 0;
    bool last = false;
    for (int64_t w = 0; height_ && w < stride; ++w) {
      const int64_t columns = std::min(kWordBits, width_ - w * kWordBits);
      if (!read(words + w, stride, columns, last)) continue;
      last = write_runs(w * kWordBits * height_, columns, last, run_start, counts);
    }
    counts.push_back(static_cast<int32_t>(height_ * width_ - run_start));
  }

  // The same of pixels [H, W], any non-zero is set: packed to words that stay in the cache.
  void encode(const uint8_t* pixels, std::vector<int32_t>& counts) {
    const int64_t stride = words_for(width_);
    packed_.resize(height_ * stride);
    const PackRow pack = pack_row();
    for (int64_t y = 0; y < height_; ++y) pack(pixels + y * width_, packed_.data() + y * stride, width_);
    encode(packed_.data(), counts);
  }

 private:
  // The strip's columns; false where all its pixels are `last`, as most of an image is.
  bool read(const uint64_t* words, int64_t stride, int64_t columns, bool last) {
    const uint64_t full = low_bits(columns), uniform = last ? full : 0;
    bool changed = false;
    for (int64_t b = 0; b < blocks_; ++b) {
      const int64_t rows = std::min<int64_t>(64, height_ - b * 64);
      uint64_t* block = pixels_.data() + b * 64;
      uint64_t any = 0, all = ~0ull;
      for (int64_t y = 0; y < rows; ++y) {
        block[y] = words[(b * 64 + y) * stride];
        any |= block[y];
        all &= block[y];
      }
      changed |= any != uniform || all != uniform;
      if (any == 0 || all == full) {
        std::fill_n(block, 64, any ? low_bits(rows) : 0);
      } else {
        std::fill(block + rows, block + 64, 0);
        transpose_block(block);
      }
    }
    return changed;
  }

  // Append the runs that end in the strip; the strip's last pixel.
  bool write_runs(int64_t position, int64_t columns, bool last, int64_t& run_start, std::vector<int32_t>& counts) {
    const int64_t last_rows = height_ - (blocks_ - 1) * 64;
    const uint64_t* bottom = pixels_.data() + (blocks_ - 1) * 64;
    uint64_t before[64];
    before[0] = last;
    for (int x = 1; x < 64; ++x) before[x] = bottom[x - 1] >> (last_rows - 1) & 1;
    std::fill(any_.begin(), any_.end(), 0);
    find_changes(pixels_.data(), blocks_, before, low_bits(last_rows), changes_.data(), any_.data());
    for (int64_t x = 0; x < columns; ++x, position += height_) {
      for (int64_t group = 0; group < blocks_; group += 64) {
        for (uint64_t flags = any_[group + x]; flags; flags &= flags - 1) {
          const int64_t b = group + lowest_bit(flags), start = position + b * 64;
          uint64_t changes = changes_[b * 64 + x];
          const size_t size = counts.size();
          counts.resize(size + popcount(changes));
          for (int32_t* out = counts.data() + size; changes; changes &= changes - 1) {
            const int64_t run = start + lowest_bit(changes);
            *out++ = static_cast<int32_t>(run - run_start);
            run_start = run;
          }
        }
      }
    }
    return bottom[columns - 1] >> (last_rows - 1) & 1;
  }

  int64_t height_, width_, blocks_;
  std::vector<uint64_t> pixels_, changes_, any_, packed_;
};

}  // namespace s2d::rle
