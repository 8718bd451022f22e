// The bits within a mask's box, for counting what two masks share.
//
// Columns stay columns, so that drawing a run is setting bits in a word or two: a band is 64 rows of the image, a word
// is one column of a band, and the words of a band lie one after another. What two masks share is then one stretch of
// words in each band. Bands begin and end at multiples of eight columns, so that vectors of eight words are aligned.
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
  Box box;                          // holds all set pixels
  const uint64_t* words = nullptr;  // [bands, columns], or null where runs are to be walked

  int64_t first_band() const { return box.y / 64; }
  int64_t end_band() const { return (box.y + box.height + 63) / 64; }
  int64_t first_column() const { return box.x / 8 * 8; }
  int64_t end_column() const { return (box.x + box.width + 7) / 8 * 8; }
  int64_t columns() const { return end_column() - first_column(); }
  int64_t size() const { return (end_band() - first_band()) * columns(); }
  // Whether counting bits is less work than walking runs. Bits take at most 8 kWordsPerRun bytes a run.
  bool wants_words() const { return size() <= std::max(kFewWords, kWordsPerRun * runs); }
};

// Runs in a column, from which on a mask is taken to be noise from top to bottom.
constexpr int64_t kNoisyRuns = 4;

inline Patch patch_of(const int32_t* counts, int64_t runs, int64_t height, int64_t width) {
  Patch patch{counts, runs, height, width, area_of(counts, runs), {}, nullptr};
  if (runs < kNoisyRuns * width || patch.area == 0) {
    patch.box = box_of(counts, runs, height);
    return patch;
  }
  // The box need not be tight, and looking for a tight one takes as long as drawing.
  const int64_t left = counts[0] / height;
  const int64_t end = height * width - (runs % 2 ? counts[runs - 1] : 0);
  patch.box = {left, 0, (end - 1) / height + 1 - left, height};
  return patch;
}

// Set the pixels of some runs of a mask in `words` [bands, stride], which begin at a band and a column.
S2D_LOOP void draw_loop(const int32_t* counts, int64_t runs, int64_t height, int64_t first_band, int64_t first_column,
                        int64_t stride, uint64_t* words) {
  uint64_t* bands = words - first_band * stride - first_column;
  Cursor cursor{height};
  int64_t end = 0;
  for (int64_t run = 1; run < runs; run += 2) {
    const int64_t begin = end + counts[run - 1];
    end = begin + counts[run];
    if (begin == end) continue;
    cursor.move_to(begin);
    // Unsigned, so that dividing is shifting.
    uint64_t y = begin - cursor.begin, last = end - cursor.begin;
    if (last <= static_cast<uint64_t>(height) && y / 64 == (last - 1) / 64) {
      bands[y / 64 * stride + cursor.column] |= ~0ull >> (64 - (last - y)) << (y % 64);
      continue;
    }
    for (;;) {
      const uint64_t stop = std::min<uint64_t>(last, height);
      for (uint64_t* word = bands + y / 64 * stride + cursor.column; y < stop; word += stride) {
        const uint64_t length = std::min(stop - y, 64 - y % 64);
        *word |= ~0ull >> (64 - length) << (y % 64);
        y += length;
      }
      if (last <= static_cast<uint64_t>(height)) break;
      cursor.move_to(cursor.begin + height);
      y = 0;
      last = end - cursor.begin;
    }
  }
}
S2D_MULTIVERSION(void, draw,
                 (const int32_t* counts, int64_t runs, int64_t height, int64_t first_band, int64_t first_column,
                  int64_t stride, uint64_t* words),
                 (counts, runs, height, first_band, first_column, stride, words))

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

// Pixels set in both, in the bands [begin, end).
S2D_LOOP int64_t shared_bits(const Patch& a, const Patch& b, int64_t begin, int64_t end) {
  const int64_t left = std::max(a.first_column(), b.first_column());
  const int64_t columns = std::min(a.end_column(), b.end_column()) - left;
  const int64_t first = std::max(begin, b.first_band()), stop = std::min(end, b.end_band());
  int64_t total = 0;
  for (int64_t band = first; band < stop; ++band) {
    const uint64_t* of_a = a.words + (band - a.first_band()) * a.columns() + left - a.first_column();
    const uint64_t* of_b = b.words + (band - b.first_band()) * b.columns() + left - b.first_column();
    for (int64_t x = 0; x < columns; ++x) total += popcount(of_a[x] & of_b[x]);
  }
  return total;
}

// Words of a mask that stay in the first-level cache while other masks pass over them.
constexpr int64_t kHeldWords = 2048;

// shared[m] += pixels set in `a` and b[m], for masks of one size.
S2D_LOOP void add_shared_loop(const Patch& a, const Patch* b, int64_t number, int64_t* shared) {
  const int64_t step = std::max<int64_t>(1, kHeldWords / std::max<int64_t>(1, a.box.width));
  for (int64_t begin = a.first_band(); begin < a.end_band(); begin += step) {
    const int64_t end = std::min(begin + step, a.end_band());
    for (int64_t m = 0; m < number; ++m) {
      if (!a.box.meets(b[m].box)) continue;
      if (a.words && b[m].words) {
        shared[m] += shared_bits(a, b[m], begin, end);
      } else if (begin == a.first_band()) {
        shared[m] += shared_runs(a, b[m]);
      }
    }
  }
}
S2D_MULTIVERSION(void, add_shared, (const Patch& a, const Patch* b, int64_t number, int64_t* shared),
                 (a, b, number, shared))

}  // namespace s2d::rle
