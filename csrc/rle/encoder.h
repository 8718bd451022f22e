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

// Where pixels differ from the one before them, of columns of bits [blocks, stride]: `changes` [blocks, stride], and
// bit b % 64 of any[b / 64 * stride + x] where word x of block b is not zero. `before[x]` is the pixel above the first
// of column x.
S2D_LOOP void find_changes_loop(const uint64_t* pixels, int64_t blocks, int64_t stride, const uint64_t* before,
                                uint64_t last_rows, uint64_t* changes, uint64_t* any) {
  for (int64_t b = 0; b < blocks; ++b) {
    const uint64_t* block = pixels + b * stride;
    const uint64_t* above = b ? block - stride : before;
    const int from = b ? 63 : 0;
    const uint64_t rows = b + 1 < blocks ? ~0ull : last_rows;
    uint64_t* out = changes + b * stride;
    uint64_t* flags = any + b / 64 * stride;
    for (int64_t x = 0; x < stride; ++x) {
      out[x] = (block[x] ^ (block[x] << 1 | above[x] >> from)) & rows;
      flags[x] |= static_cast<uint64_t>(out[x] != 0) << (b % 64);
    }
  }
}
S2D_MULTIVERSION(void, find_changes,
                 (const uint64_t* pixels, int64_t blocks, int64_t stride, const uint64_t* before, uint64_t last_rows,
                  uint64_t* changes, uint64_t* any),
                 (pixels, blocks, stride, before, last_rows, changes, any))

// Calls put(word, position) for the words of columns of bits that are not zero, down the columns. `any` is as
// find_changes leaves it; `position` is that of the first pixel.
template <typename Put>
void for_each_word(const uint64_t* words, const uint64_t* any, int64_t blocks, int64_t stride, int64_t columns,
                   int64_t height, int64_t position, const Put& put) {
  for (int64_t x = 0; x < columns; ++x, position += height) {
    for (int64_t group = 0; group < blocks; group += 64) {
      for (uint64_t flags = any[group / 64 * stride + x]; flags; flags &= flags - 1) {
        const int64_t b = group + lowest_bit(flags);
        put(words[b * stride + x], position + b * 64);
      }
    }
  }
}

// The runs of a mask, in the making.
struct Runs {
  std::vector<int32_t>& counts;
  int64_t start = 0;  // of the run that has not ended

  // Append the runs that end where `changes`, the pixels from `position` on, is set.
  void append(uint64_t changes, int64_t position) {
    const size_t size = counts.size();
    counts.resize(size + popcount(changes));
    for (int32_t* out = counts.data() + size; changes; changes &= changes - 1) {
      const int64_t next = position + lowest_bit(changes);
      *out++ = static_cast<int32_t>(next - start);
      start = next;
    }
  }

  void finish(int64_t pixels) { counts.push_back(static_cast<int32_t>(pixels - start)); }
};

// Scratch for the runs of columns of bits of one height.
class Changes {
 public:
  explicit Changes(int64_t height) : height_(height), blocks_((height + 63) / 64) {}

  // Append the runs that end in columns of bits [blocks, stride], of which the first pixel is at `position` and the
  // one before it is `last`. Returns their last pixel.
  bool append(const uint64_t* pixels, int64_t stride, int64_t columns, int64_t position, bool last, Runs& runs) {
    changes_.resize(blocks_ * stride);
    any_.assign((blocks_ + 63) / 64 * stride, 0);
    before_.resize(stride);
    const int64_t last_rows = height_ - (blocks_ - 1) * 64;
    const uint64_t* bottom = pixels + (blocks_ - 1) * stride;
    before_[0] = last;
    for (int64_t x = 1; x < stride; ++x) before_[x] = bottom[x - 1] >> (last_rows - 1) & 1;
    find_changes(pixels, blocks_, stride, before_.data(), low_bits(last_rows), changes_.data(), any_.data());
    for_each_word(changes_.data(), any_.data(), blocks_, stride, columns, height_, position,
                  [&](uint64_t word, int64_t at) { runs.append(word, at); });
    return bottom[columns - 1] >> (last_rows - 1) & 1;
  }

 private:
  int64_t height_, blocks_;
  std::vector<uint64_t> changes_, any_, before_;
};

// 64 columns of bits.
class Strip {
 public:
  explicit Strip(int64_t height) : height_(height), blocks_((height + 63) / 64), columns_(blocks_ * 64) {}

  int64_t blocks() const { return blocks_; }
  const uint64_t* columns() const { return columns_.data(); }

  // Take one word of every row, of which `width` bits count; false where all are like `last`.
  bool read(const uint64_t* words, int64_t stride, int64_t width, bool last) {
    const uint64_t full = low_bits(width), uniform = last ? full : 0;
    bool changed = false;
    for (int64_t b = 0; b < blocks_; ++b) {
      const int64_t rows = std::min<int64_t>(64, height_ - b * 64);
      uint64_t* block = columns_.data() + b * 64;
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

 private:
  int64_t height_, blocks_;
  std::vector<uint64_t> columns_;
};

// Turns masks of one size into runs; keeps its memory from mask to mask.
class Encoder {
 public:
  Encoder(int64_t height, int64_t width) : height_(height), width_(width), strip_(height), changes_(height) {}

  // Append the runs of one mask, words [H, ceil(W / 64)].
  void encode(const uint64_t* words, std::vector<int32_t>& counts) {
    const int64_t stride = words_for(width_);
    Runs runs{counts};
    bool last = false;
    for (int64_t w = 0; height_ && w < stride; ++w) {
      const int64_t columns = std::min(kWordBits, width_ - w * kWordBits);
      if (!strip_.read(words + w, stride, columns, last)) continue;
      last = changes_.append(strip_.columns(), 64, columns, w * kWordBits * height_, last, runs);
    }
    runs.finish(height_ * width_);
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
  int64_t height_, width_;
  Strip strip_;
  Changes changes_;
  std::vector<uint64_t> packed_;
};

}  // namespace s2d::rle
