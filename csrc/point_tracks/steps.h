// point_tracks on the CPU: many points carried one step along the flow of a scene.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <vector>

#include "../common/check.h"
#include "../common/flow_avx512.h"
#include "../common/simd.h"
#include "point_tracks.h"

namespace s2d::point_tracks {
namespace {

// A step costs about as much as moving this many bytes.
constexpr int64_t kStepBytes = 256;

void advance_all_portable(const float* flow, const float* reverse, const Bounds& bounds, float* x, float* y,
                          uint8_t* seen, int64_t number) {
  for (int64_t i = 0; i < number; ++i) {
    const Step step = advance(flow, reverse, bounds, {x[i], y[i]});
    x[i] = step.position.x;
    y[i] = step.position.y;
    seen[i] = step.seen;
  }
}

#if defined(S2D_X86)
// Points whose flow is on its way while a step is computed: enough to wait for memory, few enough for the L1 cache.
constexpr int64_t kAhead = 128;

// Asks for the flow around sixteen points, both fields': where a step leads is near, mostly in the same cache line.
S2D_AVX512_INLINE void prefetch16(const float* flow, const float* reverse, const Bounds& bounds, Vectors p) {
  const __m512 zero = _mm512_setzero_ps();
  const __m512 last_x = _mm512_set1_ps(static_cast<float>(bounds.width - 1));
  const __m512 last_y = _mm512_set1_ps(static_cast<float>(bounds.height - 1));
  const __m512i x = _mm512_cvttps_epi32(_mm512_min_ps(_mm512_max_ps(p.x, zero), last_x));
  const __m512i y = _mm512_cvttps_epi32(_mm512_min_ps(_mm512_max_ps(p.y, zero), last_y));
  alignas(64) int32_t at[16];
  _mm512_store_si512(at, _mm512_add_epi32(_mm512_mullo_epi32(y, _mm512_set1_epi32(bounds.width)), x));
  const int64_t row = 2 * static_cast<int64_t>(bounds.width);
  for (const int32_t pixel : at) {
    const int64_t place = 2 * static_cast<int64_t>(pixel);
    _mm_prefetch(reinterpret_cast<const char*>(flow + place), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(flow + place + row), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(reverse + place), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(reverse + place + row), _MM_HINT_T0);
  }
}

S2D_TARGET_AVX512 void advance_all_avx512(const float* flow, const float* reverse, const Bounds& bounds, float* x,
                                          float* y, uint8_t* seen, int64_t number) {
  for (int64_t i = 0; i < number; i += 16) {
    const __mmask16 here = number - i < 16 ? (1u << (number - i)) - 1 : 0xffff;
    const Vectors p{_mm512_maskz_loadu_ps(here, x + i), _mm512_maskz_loadu_ps(here, y + i)};
    if (i + kAhead + 16 <= number) {
      prefetch16(flow, reverse, bounds, {_mm512_loadu_ps(x + i + kAhead), _mm512_loadu_ps(y + i + kAhead)});
    }
    Vectors there;
    const __mmask16 good = consistent16(reverse, bounds, p, lookup16(flow, bounds, p), there);
    _mm512_mask_storeu_ps(x + i, here, there.x);
    _mm512_mask_storeu_ps(y + i, here, there.y);
    _mm_mask_storeu_epi8(seen + i, here, _mm_maskz_set1_epi8(good, 1));
  }
}
#endif

// One step of many points: where they are then, and which of them are still seen.
void advance_all(const float* flow, const float* reverse, const Bounds& bounds, float* x, float* y, uint8_t* seen,
                 int64_t number) {
#if defined(S2D_X86)
  if (isa() == Isa::avx512 && bounds.width > 1) {
    return advance_all_avx512(flow, reverse, bounds, x, y, seen, number);
  }
#endif
  advance_all_portable(flow, reverse, bounds, x, y, seen, number);
}

S2D_LOOP void widen_loop(const _Float16* in, float* out, int64_t number) {
  for (int64_t i = 0; i < number; ++i) out[i] = static_cast<float>(in[i]);
}
S2D_MULTIVERSION(void, widen, (const _Float16* in, float* out, int64_t number), (in, out, number))

// Hands out the fields one at a time as float32.
class Fields {
 public:
  explicit Fields(const Tensor& fields)
      : fields_(torch::stable::contiguous(fields)),
        values_(product_of(fields_, 1, 4)),
        half_(fields_.scalar_type() == ScalarType::Half) {
    if (half_) buffer_.resize(values_);
  }

  const float* field(int64_t t) {
    if (!half_) return static_cast<const float*>(fields_.const_data_ptr()) + t * values_;
    const auto* in = static_cast<const _Float16*>(fields_.const_data_ptr()) + t * values_;
    widen(in, buffer_.data(), values_);
    return buffer_.data();
  }

 private:
  Tensor fields_;
  int64_t values_;
  bool half_;
  std::vector<float> buffer_;
};

}  // namespace
}  // namespace s2d::point_tracks
