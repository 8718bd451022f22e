// A block of 64 x 64 bits, transposed in place: bit x of word y goes to bit y of word x.
//
// Six rounds swap ever smaller squares across the diagonal: of two rows that lie `step` apart, the upper one's right
// half goes to the lower one's left half and back. With eight rows a vector, three rounds work between vectors and
// three within them.
#pragma once

#include <cstdint>

#include "bits.h"
#include "simd.h"

#if defined(S2D_X86)
#include <immintrin.h>

// GCC 12 takes the undefined operands inside its own intrinsics for a mistake of the caller (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

namespace s2d {

S2D_HOST_DEVICE void transpose_block_portable(uint64_t* block) {
  uint64_t right = 0xffffffff00000000ull;
  for (int step = 32; step > 0; step >>= 1, right ^= right >> step) {
    for (int first = 0; first < 64; first += 2 * step) {
      for (int row = first; row < first + step; ++row) {
        const uint64_t swapped = (block[row] ^ (block[row + step] << step)) & right;
        block[row] ^= swapped;
        block[row + step] ^= swapped >> step;
      }
    }
  }
}

#if defined(S2D_X86)
// The columns whose index has the bit `step`.
constexpr uint64_t right_columns(int step) {
  uint64_t columns = 0;
  for (int x = 0; x < 64; ++x) columns |= static_cast<uint64_t>(x & step ? 1 : 0) << x;
  return columns;
}

template <int step>
S2D_TARGET_AVX512 static inline void swap_between(__m512i* rows) {
  const __m512i right = _mm512_set1_epi64(static_cast<int64_t>(right_columns(step)));
  constexpr int apart = step / 8;
  for (int first = 0; first < 8; first += 2 * apart) {
    for (int i = first; i < first + apart; ++i) {
      const __m512i upper = rows[i], lower = rows[i + apart];
      // 0xca: where the first operand is set the second, elsewhere the third.
      rows[i] = _mm512_ternarylogic_epi64(right, _mm512_slli_epi64(lower, step), upper, 0xca);
      rows[i + apart] = _mm512_ternarylogic_epi64(right, lower, _mm512_srli_epi64(upper, step), 0xca);
    }
  }
}

template <int step>
S2D_TARGET_AVX512 static inline void swap_within(__m512i* rows) {
  const uint64_t right = right_columns(step);
  uint64_t taken[8], turn[8];
  for (int row = 0; row < 8; ++row) {
    taken[row] = row & step ? ~right : right;
    turn[row] = static_cast<uint64_t>(row & step ? 64 - step : step);
  }
  const __m512i from_other = _mm512_loadu_si512(taken), turns = _mm512_loadu_si512(turn);
  for (int i = 0; i < 8; ++i) {
    __m512i other;
    if constexpr (step == 4) {
      other = _mm512_shuffle_i64x2(rows[i], rows[i], 0x4e);
    } else if constexpr (step == 2) {
      other = _mm512_permutex_epi64(rows[i], 0x4e);
    } else {
      other = _mm512_permutex_epi64(rows[i], 0xb1);
    }
    rows[i] = _mm512_ternarylogic_epi64(from_other, _mm512_rolv_epi64(other, turns), rows[i], 0xca);
  }
}

S2D_TARGET_AVX512 static inline void transpose_block_avx512(uint64_t* block) {
  __m512i rows[8];
  for (int i = 0; i < 8; ++i) rows[i] = _mm512_loadu_si512(block + 8 * i);
  swap_between<32>(rows);
  swap_between<16>(rows);
  swap_between<8>(rows);
  swap_within<4>(rows);
  swap_within<2>(rows);
  swap_within<1>(rows);
  for (int i = 0; i < 8; ++i) _mm512_storeu_si512(block + 8 * i, rows[i]);
}

S2D_TARGET_AVX2 static inline void transpose_block_avx2(uint64_t* block) { transpose_block_portable(block); }
#endif

inline void transpose_block(uint64_t* block) {
#if defined(S2D_X86)
  if (isa() == Isa::avx512) return transpose_block_avx512(block);
  if (isa() == Isa::avx2) return transpose_block_avx2(block);
#endif
  transpose_block_portable(block);
}

}  // namespace s2d
