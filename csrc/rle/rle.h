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

// The column of positions that ascend.
struct Cursor {
  int64_t height, column = 0, begin = 0;
  S2D_HOST_DEVICE void move_to(int64_t position) {
    if (position - begin < height) return;
    ++column;
    begin += height;
    // A division only where it is not the next column.
    if (position - begin < height) return;
    column = position / height;
    begin = column * height;
  }
};

inline Box box_of(const int32_t* counts, int64_t runs, int64_t height) {
  int64_t left = -1, right = 0, top = height, bottom = -1, end = 0;
  Cursor cursor{height};
  for (int64_t r = 1; r < runs; r += 2) {
    const int64_t begin = end + counts[r - 1];
    end = begin + counts[r];
    if (begin == end) continue;
    cursor.move_to(begin);
    if (left < 0) left = cursor.column;
    int64_t first = begin - cursor.begin, last = end - 1 - cursor.begin;
    if (last >= height) {
      // A run that goes on into the next column covers a column's end and another's start.
      first = 0;
      last = height - 1;
      cursor.move_to(end - 1);
    }
    top = std::min(top, first);
    bottom = std::max(bottom, last);
    right = cursor.column;
  }
  return left < 0 ? Box{} : Box{left, top, right - left + 1, bottom - top + 1};
}

inline int64_t area_of(const int32_t* counts, int64_t runs) {
  int64_t total = 0;
  for (int64_t r = 1; r < runs; r += 2) total += counts[r];
  return total;
}

}  // namespace s2d::rle
