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

inline void unpack_row_portable(const uint64_t* words, uint8_t* pixels, int64_t width) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(words);
  for (int64_t byte = 0; byte < width / 8; ++byte) {
    const uint64_t eight = spread_byte(bytes[byte]);
    std::memcpy(pixels + byte * 8, &eight, 8);
  }
  for (int64_t x = width & ~int64_t{7}; x < width; ++x) pixels[x] = words[x / kWordBits] >> (x % kWordBits) & 1;
}

#if defined(S2D_X86)
S2D_TARGET_AVX2 inline void unpack_row_avx2(const uint64_t* words, uint8_t* pixels, int64_t width) {
  // Byte k of 32 takes byte k / 8 of the bits, and of that bit k % 8.
  const __m256i place = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ull));
  const auto* bytes = reinterpret_cast<const uint8_t*>(words);
  int64_t x = 0;
  for (; x + 32 <= width; x += 32) {
    int32_t bits;
    std::memcpy(&bits, bytes + x / 8, 4);
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), place);
    const __m256i set = _mm256_min_epu8(_mm256_and_si256(spread, bit), _mm256_set1_epi8(1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(pixels + x), set);
  }
  for (; x < width; ++x) pixels[x] = words[x / kWordBits] >> (x % kWordBits) & 1;
}

S2D_TARGET_AVX512 inline void unpack_row_avx512(const uint64_t* words, uint8_t* pixels, int64_t width) {
  const __m512i one = _mm512_set1_epi8(1);
  const int64_t full = width / kWordBits;
  for (int64_t w = 0; w < full; ++w) {
    _mm512_storeu_si512(pixels + w * kWordBits, _mm512_maskz_mov_epi8(words[w], one));
  }
  if (const int64_t rest = width % kWordBits) {
    _mm512_mask_storeu_epi8(pixels + full * kWordBits, (1ull << rest) - 1, _mm512_maskz_mov_epi8(words[full], one));
  }
}
#endif

using UnpackRow = void (*)(const uint64_t*, uint8_t*, int64_t);

inline UnpackRow unpack_row() {
#if defined(S2D_X86)
  if (isa() == Isa::avx512) return unpack_row_avx512;
  if (isa() == Isa::avx2) return unpack_row_avx2;
#endif
  return unpack_row_portable;
}

}  // namespace s2d
