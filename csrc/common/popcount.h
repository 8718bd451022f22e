// Counting bits of masks and of their intersections, on the widest instructions the machine has.
#pragma once

#include <algorithm>
#include <cstdint>

#include "bits.h"
#include "simd.h"

namespace s2d {
namespace {

S2D_LOOP int64_t count_loop(const uint64_t* words, int64_t number) {
  int64_t total = 0;
  for (int64_t w = 0; w < number; ++w) total += popcount(words[w]);
  return total;
}
S2D_MULTIVERSION(int64_t, count, (const uint64_t* words, int64_t number), (words, number))

S2D_LOOP void count_shared_by_four_loop(const uint64_t* a, const uint64_t* const* b, int64_t number, int64_t* totals) {
  const uint64_t *b0 = b[0], *b1 = b[1], *b2 = b[2], *b3 = b[3];
  int64_t t0 = 0, t1 = 0, t2 = 0, t3 = 0;
  for (int64_t w = 0; w < number; ++w) {
    t0 += popcount(a[w] & b0[w]);
    t1 += popcount(a[w] & b1[w]);
    t2 += popcount(a[w] & b2[w]);
    t3 += popcount(a[w] & b3[w]);
  }
  totals[0] += t0;
  totals[1] += t1;
  totals[2] += t2;
  totals[3] += t3;
}
S2D_MULTIVERSION(void, count_shared_by_four,
                 (const uint64_t* a, const uint64_t* const* b, int64_t number, int64_t* totals), (a, b, number, totals))

// Words of a mask visited before the next chunk's turn: 4 kB of each column stay in the second-level cache while every
// row of the thread passes over them.
constexpr int64_t kChunkWords = 512;

// totals[i, j] += bits that row i and column j share.
void add_intersections(const uint64_t* rows, int64_t n, const uint64_t* columns, int64_t m, int64_t words,
                       int64_t* totals) {
  for (int64_t begin = 0; begin < words; begin += kChunkWords) {
    const int64_t number = std::min(kChunkWords, words - begin);
    for (int64_t j = 0; j < m; j += 4) {
      const uint64_t* four[4];
      for (int64_t k = 0; k < 4; ++k) four[k] = columns + std::min(j + k, m - 1) * words + begin;
      for (int64_t i = 0; i < n; ++i) {
        int64_t shared[4] = {0, 0, 0, 0};
        count_shared_by_four(rows + i * words + begin, four, number, shared);
        for (int64_t k = 0; k < std::min<int64_t>(4, m - j); ++k) totals[i * m + j + k] += shared[k];
      }
    }
  }
}

}  // namespace
}  // namespace s2d
