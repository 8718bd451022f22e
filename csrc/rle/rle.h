// rle: runs of a mask in COCO's order (down the columns, unset first), and what can be read off them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/bits.h"

namespace s2d::rle {

constexpr int64_t kMaxPixels = (int64_t{1} << 31) - 1;

// The lowest `number` bits; number is 0 to 64.
S2D_HOST_DEVICE uint64_t low_bits(int64_t number) { return number >= 64 ? ~0ull : (1ull << number) - 1; }

// x, y, width and height of the set pixels of some runs; zeros where there is none.
struct Box {
  int64_t x = 0, y = 0, width = 0, height = 0;
  bool empty() const { return width == 0; }
  bool meets(const Box& other) const {
    return x < other.x + other.width && other.x < x + width && y < other.y + other.height && other.y < y + height;
  }
};

inline Box box_of(const int32_t* counts, int64_t runs, int64_t height) {
  int64_t left = -1, right = 0, top = height, bottom = -1, position = 0, column = 0, column_begin = 0;
  for (int64_t r = 1; r < runs; r += 2) {
    const int64_t begin = position + counts[r - 1], end = begin + counts[r];
    position = end;
    if (begin == end) continue;
    // A division only where the run is not in the next column.
    if (begin - column_begin >= height) {
      ++column;
      column_begin += height;
      if (begin - column_begin >= height) column = begin / height, column_begin = column * height;
    }
    if (left < 0) left = column;
    const int64_t first = begin - column_begin;
    const bool wraps = end - column_begin > height;
    if (wraps) column = (end - 1) / height, column_begin = column * height;
    right = column;
    // A run that goes on into the next column covers a column's end and another's start.
    top = std::min(top, wraps ? 0 : first);
    bottom = std::max(bottom, wraps ? height - 1 : end - 1 - column_begin);
  }
  return left < 0 ? Box{} : Box{left, top, right - left + 1, bottom - top + 1};
}

inline int64_t area_of(const int32_t* counts, int64_t runs) {
  int64_t total = 0;
  for (int64_t r = 1; r < runs; r += 2) total += counts[r];
  return total;
}

}  // namespace s2d::rle
