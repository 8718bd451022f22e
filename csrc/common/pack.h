// Rows of pixels, a byte each, to rows of bits and back.
#pragma once

#include <cstdint>
#include <cstring>

#include "bits.h"
#include "simd.h"

#if defined(S2D_X86)
#include <immintrin.h>
#endif

namespace s2d {

// ---- pack: 64 bytes to a word ----

S2D_LOOP uint64_t pack_partial(const uint8_t* pixels, int64_t count) {
  uint64_t word = 0;
  for (int64_t x = 0; x < count; ++x) word |= static_cast<uint64_t>(pixels[x] != 0) << x;
  return word;
}

inline void pack_row_portable(const uint8_t* pixels, uint64_t* words, int64_t width) {
  const int64_t full = width / kWordBits;
  for (int64_t w = 0; w < full; ++w) {
    uint64_t word = 0;
    for (int byte = 0; byte < 8; ++byte) {
      uint64_t eight;
      std::memcpy(&eight, pixels + w * kWordBits + byte * 8, 8);
      // Any non-zero byte becomes 1, then the multiplication gathers the eight lowest bits in the top byte.
      eight |= (eight >> 4) & 0x0f0f0f0f0f0f0f0full;
      eight |= (eight >> 2) & 0x0303030303030303ull;
      eight = (eight | (eight >> 1)) & 0x0101010101010101ull;
      word |= ((eight * 0x0102040810204080ull) >> 56) << (byte * 8);
    }
    words[w] = word;
  }
  if (width % kWordBits) words[full] = pack_partial(pixels + full * kWordBits, width % kWordBits);
}

#if defined(S2D_X86)
S2D_TARGET_AVX2 inline void pack_row_avx2(const uint8_t* pixels, uint64_t* words, int64_t width) {
  const int64_t full = width / kWordBits;
  const __m256i zero = _mm256_setzero_si256();
  for (int64_t w = 0; w < full; ++w) {
    const auto* source = reinterpret_cast<const __m256i*>(pixels + w * kWordBits);
    const uint32_t low = _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_loadu_si256(source), zero));
    const uint32_t high = _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_loadu_si256(source + 1), zero));
    words[w] = ~(static_cast<uint64_t>(high) << 32 | low);
  }
  if (width % kWordBits) words[full] = pack_partial(pixels + full * kWordBits, width % kWordBits);
}

S2D_TARGET_AVX512 inline void pack_row_avx512(const uint8_t* pixels, uint64_t* words, int64_t width) {
  const int64_t full = width / kWordBits;
  for (int64_t w = 0; w < full; ++w) {
    const __m512i row = _mm512_loadu_si512(pixels + w * kWordBits);
    words[w] = _mm512_test_epi8_mask(row, row);
  }
  if (const int64_t rest = width % kWordBits) {
    const __m512i row = _mm512_maskz_loadu_epi8((1ull << rest) - 1, pixels + full * kWordBits);
    words[full] = _mm512_test_epi8_mask(row, row);
  }
}
#endif

using PackRow = void (*)(const uint8_t*, uint64_t*, int64_t);

inline PackRow pack_row() {
#if defined(S2D_X86)
  if (isa() == Isa::avx512) return pack_row_avx512;
  if (isa() == Isa::avx2) return pack_row_avx2;
#endif
  return pack_row_portable;
}

// ---- unpack: a word to 64 bytes ----

// The eight pixels of one byte of bits: bit k becomes byte k, 0 or 1.
S2D_LOOP uint64_t spread_byte(uint64_t byte) {
  const uint64_t selected = (byte * 0x0101010101010101ull) & 0x8040201008040201ull;
  return ((selected + 0x7f7f7f7f7f7f7f7full) >> 7) & 0x0101010101010101ull;
}

S2D_LOOP void unpack_row_loop(const uint64_t* words, uint8_t* pixels, int64_t width) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(words);
  for (int64_t byte = 0; byte < width / 8; ++byte) {
    const uint64_t eight = spread_byte(bytes[byte]);
    std::memcpy(pixels + byte * 8, &eight, 8);
  }
  for (int64_t x = width & ~int64_t{7}; x < width; ++x) pixels[x] = words[x / kWordBits] >> (x % kWordBits) & 1;
}
S2D_MULTIVERSION(void, unpack_row, (const uint64_t* words, uint8_t* pixels, int64_t width), (words, pixels, width))

}  // namespace s2d
