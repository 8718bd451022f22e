// connected_components: the arithmetic on bits that its kernels share, and the launchers of the CUDA kernels.
#pragma once

#include <cstdint>

#include "../common/bits.h"

namespace s2d::connected_components {

// Ends of runs are counted in 31 bits, and in the narrowest mask every pixel may be a run.
constexpr int64_t kMostPixels = (int64_t{1} << 30) - 1;

// What is connected, and what is made of it.
enum class Task {
  label,   // the set pixels, to be numbered
  remove,  // the set pixels, small parts to be unset
  fill,    // the unset pixels, closed parts to be set
};

// Of one mask whose rows are whole words.
struct Sizes {
  int64_t height, width, words_per_row;
  bool eight;  // pixels that share only a corner are connected too

  Sizes(int64_t rows, int64_t columns, bool corners)
      : height(rows), width(columns), words_per_row(words_for(columns)), eight(corners) {}

  S2D_HOST_DEVICE int64_t words() const { return height * words_per_row; }
  S2D_HOST_DEVICE int64_t pixels() const { return height * width; }
};

// The pixels of a row's word that the task connects; bits past the width are none of them, whatever they hold.
S2D_HOST_DEVICE uint64_t connected_pixels(uint64_t word, int64_t column, const Sizes& sizes, bool unset) {
  const int64_t rest = sizes.width - column * kWordBits;
  const uint64_t inside = rest < kWordBits ? (uint64_t{1} << rest) - 1 : ~uint64_t{0};
  return (unset ? ~word : word) & inside;
}

// Bits of a word from its first to its last one, both included.
S2D_HOST_DEVICE uint64_t bits_between(int first, int last) {
  return ~uint64_t{0} << first & ~uint64_t{0} >> (kWordBits - 1 - last);
}

// A word of connected pixels and the pixel before it, as bit 0.
struct Window {
  uint64_t word, before;

  // First pixels of the runs that begin in the word.
  S2D_HOST_DEVICE uint64_t starts() const { return word & ~(word << 1 | before); }
  // Pixels under which a run that begins there touches one of these; those of a corner are one more to the right.
  S2D_HOST_DEVICE uint64_t reach(bool eight) const { return eight ? word | word << 1 | before : word; }
};

// Two runs of neighbouring rows touch where the later of their first pixels lies in the reach of the other run: each
// pair has one such bit, and both runs are the last ones of their rows that begin there or before.
S2D_HOST_DEVICE uint64_t touches(const Window& a, const Window& b, bool eight) {
  return (a.starts() & b.reach(eight)) | (b.starts() & a.reach(eight));
}

// How many of the runs that begin in a word do so at the bit or before.
S2D_HOST_DEVICE int starts_until(uint64_t starts, int bit) { return popcount(starts & bits_between(0, bit)); }

// The lowest run of a word's bits, as a word; none of an empty word.
S2D_HOST_DEVICE uint64_t lowest_run(uint64_t word) { return word & ~(word + (word & (~word + 1))); }

// Launchers: device pointers and a cudaStream_t. Definitions in connected_components.cu.

// A mask's words in raster order are cut into tiles, whose parts are found first; a tile's segments are its words'
// runs.
constexpr int64_t kTileWords = 256, kGroupTiles = 64;

inline int64_t tiles_of(const Sizes& sizes) { return (sizes.words() + kTileWords - 1) / kTileWords; }
inline int64_t groups_of(const Sizes& sizes) { return (tiles_of(sizes) + kGroupTiles - 1) / kGroupTiles; }

// Segments that the tiles of a mask can hold.
inline int64_t segments_of(const Sizes& sizes) {
  const int64_t per_word = sizes.width < kWordBits ? (sizes.width + 1) / 2 : kWordBits / 2;
  return tiles_of(sizes) * kTileWords * per_word;
}

// Memory that the kernels hand to each other, fresh. It is sized for noise, of which every second pixel is a segment.
struct Scratch {
  uint16_t* first;     // [masks, words]: how many of the tile's segments lie before the word
  uint16_t* parts;     // [masks, segments]: of a tile's segment, its part among the tile's
  uint32_t* parents;   // [masks, segments]: of a tile's part
  uint32_t* areas;     // [masks, segments]: pixels of a part; the highest bit tells that it touches the border
  uint32_t* numbers;   // [masks, segments]: of a root, how many there are before it in its tile
  uint32_t* in_tiles;  // [masks, tiles]: parts of a tile
  uint32_t* before;    // [masks, tiles]: roots in earlier tiles of the tile's group
  uint32_t* groups;    // [masks, groups]: roots in earlier groups
};

void launch_components(const uint64_t* words, int32_t* labels, int32_t* areas, const Scratch& scratch, int64_t masks,
                       const Sizes& sizes, void* stream);
// remove: parts of fewer pixels than limit; fill: closed parts of at most limit pixels. Sizes say how they connect.
void launch_select(const uint64_t* words, uint64_t* result, Task task, int64_t limit, const Scratch& scratch,
                   int64_t masks, const Sizes& sizes, void* stream);

}  // namespace s2d::connected_components
