// Writes the images of labels and areas, 8 bytes a pixel against the 1/8 that was read: for all but noise that is the
// time of connected_components.
//
// AVX-512 takes sixteen pixels at once, whatever is in them: the number of runs that have begun up to a pixel picks its
// value from those of the next runs, one permutation for each image. Elsewhere the images are written run by run.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/simd.h"
#include "connected_components.h"

#if defined(S2D_X86)
#include <immintrin.h>
#endif

namespace s2d::connected_components {
namespace {

constexpr int64_t kStore = 16;  // pixels that are written at once

// What is known of a mask's runs. `labels` and `areas` may be read from one before the first to kStore past the last.
struct RunValues {
  const int32_t *edges, *of_row, *labels, *areas;
};

struct Images {
  int32_t *labels, *areas;
};

S2D_LOOP void store(int32_t* pixels, int32_t value) {
  for (int64_t x = 0; x < kStore; ++x) pixels[x] = value;
}

// Write pixels [begin, end) of both images, and up to kStore more, if there are as many, that the next call writes
// over.
S2D_LOOP void write_run(const Images& images, int64_t begin, int64_t end, int64_t pixels, int32_t label, int32_t area) {
  if (begin >= end) return;
  if (end + kStore > pixels) {
    std::fill(images.labels + begin, images.labels + end, label);
    std::fill(images.areas + begin, images.areas + end, area);
    return;
  }
  for (int64_t x = begin; x < end; x += kStore) {
    store(images.labels + x, label);
    store(images.areas + x, area);
  }
}

S2D_LOOP void write_runs_loop(const RunValues& runs, const Sizes& sizes, const Images& images) {
  const int64_t pixels = sizes.pixels();
  int64_t done = 0;
  for (int64_t y = 0; y < sizes.height; ++y) {
    const int64_t row = y * sizes.width;
    for (int32_t run = runs.of_row[y]; run < runs.of_row[y + 1]; ++run) {
      const int64_t begin = row + runs.edges[2 * run], end = row + runs.edges[2 * run + 1];
      write_run(images, done, begin, pixels, 0, 0);
      write_run(images, begin, end, pixels, runs.labels[run], runs.areas[run]);
      done = end;
    }
  }
  write_run(images, done, pixels, pixels, 0, 0);
}
S2D_MULTIVERSION(void, write_runs, (const RunValues& runs, const Sizes& sizes, const Images& images),
                 (runs, sizes, images))

#if defined(S2D_X86)
S2D_TARGET_AVX512 void write_sixteens(const uint64_t* words, const RunValues& runs, const Sizes& sizes,
                                      const Images& images) {
  // Of each pixel of sixteen: those up to it.
  const __m512i until = _mm512_set_epi32(0xffff, 0x7fff, 0x3fff, 0x1fff, 0xfff, 0x7ff, 0x3ff, 0x1ff, 0xff, 0x7f, 0x3f,
                                         0x1f, 0xf, 0x7, 0x3, 0x1);
  for (int64_t y = 0; y < sizes.height; ++y) {
    const int32_t *label = runs.labels + runs.of_row[y] - 1, *area = runs.areas + runs.of_row[y] - 1;
    Window window{0, 0};
    for (int64_t x = 0; x < sizes.width; x += kStore) {
      const int shift = static_cast<int>(x % kWordBits);
      if (shift == 0) {
        const int64_t w = x / kWordBits;
        window = {connected_pixels(words[y * sizes.words_per_row + w], w, sizes, false),
                  window.word >> (kWordBits - 1)};
      }
      const auto set = static_cast<__mmask16>(window.word >> shift);
      const int starts = static_cast<int>(window.starts() >> shift & 0xffff);
      const __m512i run = _mm512_popcnt_epi32(_mm512_and_si512(_mm512_set1_epi32(starts), until));
      const auto inside = static_cast<__mmask16>(sizes.width - x < kStore ? (1 << (sizes.width - x)) - 1 : 0xffff);
      const int64_t pixel = y * sizes.width + x;
      _mm512_mask_storeu_epi32(images.labels + pixel, inside,
                               _mm512_maskz_permutexvar_epi32(set, run, _mm512_loadu_si512(label)));
      _mm512_mask_storeu_epi32(images.areas + pixel, inside,
                               _mm512_maskz_permutexvar_epi32(set, run, _mm512_loadu_si512(area)));
      label += popcount(starts);
      area += popcount(starts);
    }
  }
}
#endif

void write_images(const uint64_t* words, const RunValues& runs, const Sizes& sizes, const Images& images) {
#if defined(S2D_X86)
  if (isa() == Isa::avx512) return write_sixteens(words, runs, sizes, images);
#endif
  [[maybe_unused]] const uint64_t* unused = words;
  write_runs(runs, sizes, images);
}

}  // namespace
}  // namespace s2d::connected_components
