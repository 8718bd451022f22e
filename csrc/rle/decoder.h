// Runs to bits: set runs are drawn down columns of bits, and transposed to rows block by block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/transpose.h"
#include "rle.h"

namespace s2d::rle {

// Walks the set runs of a mask strip by strip and hands over every block with a set pixel, transposed back to rows.
class Decoder {
 public:
  explicit Decoder(int64_t height) : height_(height), pixels_((height + 63) / 64 * 64), dirty_((height + 63) / 64) {}

  // put(strip, block, rows): 64 words, the pixels of the strip in rows 64 block to 64 block + 63.
  template <typename Put>
  void decode(const int32_t* counts, int64_t runs, int64_t width, const Put& put) {
    const int64_t strips = words_for(width);
    int64_t run = 1, begin = runs ? counts[0] : 0;
    int64_t end = runs > 1 ? begin + counts[1] : begin;
    for (int64_t strip = 0; strip < strips && run < runs; ++strip) {
      const int64_t start = strip * kWordBits * height_;
      const int64_t stop = start + std::min(kWordBits, width - strip * kWordBits) * height_;
      int64_t column = 0, column_begin = start;
      while (run < runs && begin < stop) {
        fill(std::max(begin, start), std::min(end, stop), column, column_begin);
        if (end > stop) break;
        run += 2;
        if (run >= runs) break;
        begin = end + counts[run - 1];
        end = begin + counts[run];
      }
      for (size_t block = 0; block < dirty_.size(); ++block) {
        if (!dirty_[block]) continue;
        uint64_t* rows = pixels_.data() + block * 64;
        transpose_block(rows);
        put(strip, static_cast<int64_t>(block), rows);
        std::fill_n(rows, 64, 0);
        dirty_[block] = 0;
      }
    }
  }

 private:
  // Set the pixels [begin, end), which lie in the strip, at or after the column that the last call has left.
  void fill(int64_t begin, int64_t end, int64_t& column, int64_t& column_begin) {
    while (begin < end) {
      while (begin - column_begin >= height_) {
        ++column;
        column_begin += height_;
      }
      int64_t y = begin - column_begin;
      const int64_t last = std::min(end - column_begin, height_);
      begin += last - y;
      while (y < last) {
        const int64_t block = y / 64, bit = y % 64, length = std::min(last - y, 64 - bit);
        pixels_[block * 64 + column] |= low_bits(length) << bit;
        dirty_[block] = 1;
        y += length;
      }
    }
  }

  int64_t height_;
  std::vector<uint64_t> pixels_;
  std::vector<char> dirty_;
};

}  // namespace s2d::rle
