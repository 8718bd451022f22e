// Sixteen positions on optical flow at once, digit for digit as flow.h has them.
//
// The two upper corners of a lookup are one load of 16 bytes, as are the two lower ones; four by four they are turned
// into vectors of one corner each. That takes a quarter of the load instructions of gathers, which some processors take
// apart into many.
#pragma once

#include "flow.h"
#include "simd.h"

#if defined(S2D_X86)
#include <immintrin.h>

// GCC 12 takes the undefined operands inside its own intrinsics for a mistake of the caller (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define S2D_AVX512_INLINE S2D_TARGET_AVX512 static inline __attribute__((always_inline))

namespace s2d {

struct Vectors {
  __m512 x, y;
};

// Sixteen neighbouring (dx, dy).
S2D_AVX512_INLINE Vectors split(__m512 low, __m512 high) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return {_mm512_permutex2var_ps(low, even, high), _mm512_permutex2var_ps(low, odd, high)};
}

S2D_AVX512_INLINE Vectors load_vectors(const float* flow) {
  return split(_mm512_loadu_ps(flow), _mm512_loadu_ps(flow + 16));
}

S2D_AVX512_INLINE void store_vectors(float* out, Vectors v) {
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
  _mm512_storeu_ps(out, _mm512_permutex2var_ps(v.x, low, v.y));
  _mm512_storeu_ps(out + 16, _mm512_permutex2var_ps(v.x, high, v.y));
}

// Of four pixels each in its lane: the pixel and the one to its right.
S2D_AVX512_INLINE __m512 load_neighbours(const float* flow, const int32_t* pixels) {
  const __m512 one = _mm512_castps128_ps512(_mm_loadu_ps(flow + 2 * static_cast<int64_t>(pixels[0])));
  const __m512 two = _mm512_insertf32x4(one, _mm_loadu_ps(flow + 2 * static_cast<int64_t>(pixels[4])), 1);
  const __m512 three = _mm512_insertf32x4(two, _mm_loadu_ps(flow + 2 * static_cast<int64_t>(pixels[8])), 2);
  return _mm512_insertf32x4(three, _mm_loadu_ps(flow + 2 * static_cast<int64_t>(pixels[12])), 3);
}

struct Neighbours {
  Vectors left, right;
};

// Sixteen pixels and those to their right.
S2D_AVX512_INLINE Neighbours neighbours16(const float* flow, __m512i pixels) {
  alignas(64) int32_t at[16];
  _mm512_store_si512(at, pixels);
  const __m512 a = load_neighbours(flow, at), b = load_neighbours(flow, at + 1);
  const __m512 c = load_neighbours(flow, at + 2), d = load_neighbours(flow, at + 3);
  const __m512d left = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)), right = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
  const __m512d left2 = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
  const __m512d right2 = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
  return {{_mm512_castpd_ps(_mm512_unpacklo_pd(left, left2)), _mm512_castpd_ps(_mm512_unpackhi_pd(left, left2))},
          {_mm512_castpd_ps(_mm512_unpacklo_pd(right, right2)), _mm512_castpd_ps(_mm512_unpackhi_pd(right, right2))}};
}

// Positions of sixteen pixels of a row from column x on.
S2D_AVX512_INLINE Vectors pixel_positions(int64_t x, int64_t y) {
  const __m512 step = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return {_mm512_add_ps(_mm512_set1_ps(static_cast<float>(x)), step), _mm512_set1_ps(static_cast<float>(y))};
}

S2D_AVX512_INLINE Vectors sum(Vectors a, Vectors b) { return {_mm512_add_ps(a.x, b.x), _mm512_add_ps(a.y, b.y)}; }

S2D_AVX512_INLINE __mmask16 held(const Bounds& bounds, Vectors p) {
  const __m512 least = _mm512_set1_ps(-0.5f);
  __mmask16 inside = _mm512_cmp_ps_mask(p.x, least, _CMP_GE_OQ);
  inside = _mm512_mask_cmp_ps_mask(inside, p.x, _mm512_set1_ps(bounds.right), _CMP_LE_OQ);
  inside = _mm512_mask_cmp_ps_mask(inside, p.y, least, _CMP_GE_OQ);
  return _mm512_mask_cmp_ps_mask(inside, p.y, _mm512_set1_ps(bounds.bottom), _CMP_LE_OQ);
}

S2D_AVX512_INLINE __m512 between16(__m512 a, __m512 b, __m512 share) {
  return _mm512_add_ps(a, _mm512_mul_ps(_mm512_sub_ps(b, a), share));
}

S2D_AVX512_INLINE Vectors between16(Vectors a, Vectors b, __m512 share) {
  return {between16(a.x, b.x, share), between16(a.y, b.y, share)};
}

// Rows of flow at the pixels, `share` of the way to their right neighbours; `last` are the right neighbours themselves.
S2D_AVX512_INLINE Vectors row16(const float* flow, __m512i pixels, __m512 share, __mmask16 last) {
  const Neighbours n = neighbours16(flow, pixels);
  const Vectors left{_mm512_mask_mov_ps(n.left.x, last, n.right.x), _mm512_mask_mov_ps(n.left.y, last, n.right.y)};
  return between16(left, n.right, share);
}

// The flow is at least two pixels wide.
S2D_AVX512_INLINE Vectors lookup16(const float* flow, const Bounds& bounds, Vectors p) {
  const __m512i one = _mm512_set1_epi32(1), width = _mm512_set1_epi32(bounds.width);
  // The second operand is what max and min give for NaN.
  const __m512 last_x = _mm512_set1_ps(static_cast<float>(bounds.width - 1));
  const __m512 last_y = _mm512_set1_ps(static_cast<float>(bounds.height - 1));
  const __m512 x = _mm512_min_ps(_mm512_max_ps(p.x, _mm512_setzero_ps()), last_x);
  const __m512 y = _mm512_min_ps(_mm512_max_ps(p.y, _mm512_setzero_ps()), last_y);
  const __m512i left = _mm512_cvttps_epi32(x), top = _mm512_cvttps_epi32(y);
  const __m512 fx = _mm512_sub_ps(x, _mm512_cvtepi32_ps(left)), fy = _mm512_sub_ps(y, _mm512_cvtepi32_ps(top));
  const __mmask16 last = _mm512_cmpge_epi32_mask(_mm512_add_epi32(left, one), width);
  const __mmask16 has_below = _mm512_cmplt_epi32_mask(_mm512_add_epi32(top, one), _mm512_set1_epi32(bounds.height));
  const __m512i first = _mm512_add_epi32(_mm512_mullo_epi32(top, width), left);
  // The last pixel of a row is reached as the neighbour of the one before.
  const __m512i upper = _mm512_mask_sub_epi32(first, last, first, one);
  const __m512i lower = _mm512_mask_add_epi32(upper, has_below, upper, width);
  return between16(row16(flow, upper, fx, last), row16(flow, lower, fx, last), fy);
}

S2D_AVX512_INLINE __m512 squared(Vectors v) { return _mm512_add_ps(_mm512_mul_ps(v.x, v.x), _mm512_mul_ps(v.y, v.y)); }

S2D_AVX512_INLINE __mmask16 agree16(Vectors f, Vectors b) {
  const Vectors s = sum(f, b);
  const __m512 length = _mm512_mul_ps(_mm512_set1_ps(0.01f), _mm512_add_ps(squared(f), squared(b)));
  const __m512 bound = _mm512_add_ps(length, _mm512_set1_ps(0.5f));
  return _mm512_cmp_ps_mask(squared(s), _mm512_min_ps(bound, _mm512_set1_ps(3.40282347e38f)), _CMP_LE_OQ);
}

// Which of sixteen pixels at p with flow f lead into the other frame and are led back; `there` is where they lead.
S2D_AVX512_INLINE __mmask16 consistent16(const float* reverse, const Bounds& bounds, Vectors p, Vectors f,
                                         Vectors& there) {
  there = sum(p, f);
  return held(bounds, there) & agree16(f, lookup16(reverse, bounds, there));
}

}  // namespace s2d
#endif
