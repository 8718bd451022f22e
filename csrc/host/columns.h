// Masks as numpy has them for COCO, a byte a pixel down the columns, to runs and back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../common/pack.h"
#include "../rle/encoder.h"

namespace s2d::host {

// Pixels that are packed to bits at a time.
constexpr int64_t kPacked = 4096;

// Append the runs of a mask; any non-zero is set.
inline void append_runs(const uint8_t* pixels, int64_t number, std::vector<int32_t>& counts) {
  const PackRow pack = pack_row();
  uint64_t words[kPacked / kWordBits];
  uint64_t last = 0;
  rle::Runs runs{counts};
  for (int64_t begin = 0; begin < number; begin += kPacked) {
    const int64_t size = std::min(kPacked, number - begin);
    pack(pixels + begin, words, size);
    for (int64_t w = 0; w < words_for(size); ++w) {
      const uint64_t changes = (words[w] ^ (words[w] << 1 | last)) & rle::low_bits(size - w * kWordBits);
      last = words[w] >> 63;
      if (changes) runs.append(changes, begin + w * kWordBits);
    }
  }
  runs.finish(number);
}

// Most set runs are short: 16 bytes are written at once, of which the first `run` are ones and the rest, unset still,
// stay zero.
constexpr int64_t kShort = 16;

struct ShortRuns {
  ShortRuns() { std::fill_n(bytes, kShort, uint8_t{1}); }
  const uint8_t* of(int64_t run) const { return bytes + kShort - run; }
  uint8_t bytes[2 * kShort] = {};
};

// Set the pixels of a mask that is unset everywhere; `end` is the end of the memory that is.
inline void draw_runs(const int32_t* counts, int64_t runs, uint8_t* pixels, const uint8_t* end) {
  const ShortRuns ones;
  for (int64_t r = 1; r < runs; r += 2) {
    const int64_t run = counts[r];
    pixels += counts[r - 1];
    if (run <= kShort && end - pixels >= kShort) {
      std::memcpy(pixels, ones.of(run), kShort);
    } else {
      std::memset(pixels, 1, run);
    }
    pixels += run;
  }
}

}  // namespace s2d::host
