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

S2D_LOOP void advance_all_loop(const float* flow, const float* reverse, const Bounds& bounds, float* x, float* y,
                               uint8_t* seen, int64_t number) {
  for (int64_t i = 0; i < number; ++i) {
    const Step step = advance(flow, reverse, bounds, {x[i], y[i]});
    x[i] = step.position.x;
    y[i] = step.position.y;
    seen[i] = step.seen;
  }
}

void advance_all_portable(const float* flow, const float* reverse, const Bounds& bounds, float* x, float* y,
                          uint8_t* seen, int64_t number) {
  advance_all_loop(flow, reverse, bounds, x, y, seen, number);
}

#if defined(S2D_X86)
S2D_TARGET_AVX512 void advance_all_avx512(const float* flow, const float* reverse, const Bounds& bounds, float* x,
                                          float* y, uint8_t* seen, int64_t number) {
  for (int64_t i = 0; i < number; i += 16) {
    const __mmask16 here = number - i < 16 ? (1u << (number - i)) - 1 : 0xffff;
    const Vectors p{_mm512_maskz_loadu_ps(here, x + i), _mm512_maskz_loadu_ps(here, y + i)};
    Vectors there;
    const __mmask16 good = consistent16(reverse, bounds, p, lookup16(flow, bounds, p), there);
    _mm512_mask_storeu_ps(x + i, here, there.x);
    _mm512_mask_storeu_ps(y + i, here, there.y);
    _mm_mask_storeu_epi8(seen + i, here, _mm_maskz_set1_epi8(good, 1));
  }
}
#endif

using AdvanceAll = void (*)(const float*, const float*, const Bounds&, float*, float*, uint8_t*, int64_t);

AdvanceAll advance_all() {
#if defined(S2D_X86)
  if (isa() == Isa::avx512) return advance_all_avx512;
#endif
  return advance_all_portable;
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
