// The bits within a mask's box, for counting what two masks share.
//
// Columns stay columns, so that drawing a run is setting bits in a word or two: a band is 64 rows of the image, a word
// is one column of a band, and the words of a band lie one after another. What two masks share is then one stretch of
// words in each band.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/simd.h"
#include "rle.h"

namespace s2d::rle {

// Words that are counted in the time a walk over runs takes for one.
constexpr int64_t kWordsPerRun = 16;
// Words a mask may have however few its runs are.
constexpr int64_t kFewWords = 512;

struct Patch {
  const int32_t* counts = nullptr;
  int64_t runs = 0;
  int64_t height = 0, width = 0;  // of the mask
  int64_t area = 0;
  Box box;
  const uint64_t* words = nullptr;  // [bands, box.width], or null where runs are to be walked

  int64_t first_band() const { return box.y / 64; }
  int64_t end_band() const { return (box.y + box.height + 63) / 64; }
  int64_t size() const { return (end_band() - first_band()) * box.width; }
  // Whether counting bits is less work than walking runs. Bits take at most 8 kWordsPerRun bytes a run.
  bool wants_words() const { return size() <= std::max(kFewWords, kWordsPerRun * runs); }
};

inline Patch patch_of(const int32_t* counts, int64_t runs, int64_t height, int64_t width) {
  return {counts, runs, height, width, area_of(counts, runs), box_of(counts, runs, height), nullptr};
}

// Set the pixels of some runs of masks of one height in `words` [bands, stride], which begin at a band and a column.
inline void draw(const int32_t* counts, int64_t runs, int64_t height, int64_t first_band, int64_t first_column,
                 int64_t stride, uint64_t* words) {
  uint64_t* bands = words - first_band * stride - first_column;
  int64_t end = 0, column = 0, column_begin = 0;
  for (int64_t run = 1; run < runs; run += 2) {
    int64_t begin = end + counts[run - 1];
    end = begin + counts[run];
    while (begin < end) {
      if (begin - column_begin >= height) {
        ++column;
        column_begin += height;
        if (begin - column_begin >= height) column = begin / height, column_begin = column * height;
      }
      int64_t y = begin - column_begin;
      const int64_t last = std::min(end - column_begin, height);
      begin = column_begin + last;
      while (y < last) {
        const int64_t bit = y % 64, length = std::min(last - y, 64 - bit);
        bands[y / 64 * stride + column] |= low_bits(length) << bit;
        y += length;
      }
    }
  }
}

// Number of pixels set in both masks: their runs walked side by side.
inline int64_t shared_runs(const Patch& a, const Patch& b) {
  int64_t shared = 0, i = 0, j = 0, left_a = a.runs ? a.counts[0] : 0, left_b = b.runs ? b.counts[0] : 0;
  while (i < a.runs && j < b.runs) {
    const int64_t step = std::min(left_a, left_b);
    if (i & j & 1) shared += step;
    left_a -= step;
    left_b -= step;
    if (left_a == 0 && ++i < a.runs) left_a = a.counts[i];
    if (left_b == 0 && ++j < b.runs) left_b = b.counts[j];
  }
  return shared;
}

S2D_LOOP int64_t shared_bits(const Patch& a, const Patch& b) {
  const int64_t left = std::max(a.box.x, b.box.x);
  const int64_t columns = std::min(a.box.x + a.box.width, b.box.x + b.box.width) - left;
  const int64_t first = std::max(a.first_band(), b.first_band()), end = std::min(a.end_band(), b.end_band());
  int64_t total = 0;
  for (int64_t band = first; band < end; ++band) {
    const uint64_t* of_a = a.words + (band - a.first_band()) * a.box.width + left - a.box.x;
    const uint64_t* of_b = b.words + (band - b.first_band()) * b.box.width + left - b.box.x;
    for (int64_t x = 0; x < columns; ++x) total += popcount(of_a[x] & of_b[x]);
  }
  return total;
}

// shared[m] += pixels set in `a` and b[m], for masks of one size.
S2D_LOOP void add_shared_loop(const Patch& a, const Patch* b, int64_t number, int64_t* shared) {
  for (int64_t m = 0; m < number; ++m) {
    if (!a.box.meets(b[m].box)) continue;
    shared[m] += a.words && b[m].words ? shared_bits(a, b[m]) : shared_runs(a, b[m]);
  }
}
S2D_MULTIVERSION(void, add_shared, (const Patch& a, const Patch* b, int64_t number, int64_t* shared),
                 (a, b, number, shared))

}  // namespace s2d::rle
