// float16 and bfloat16, which not every compiler of ours has types for: their bits, widened to float and rounded from
// it.
#pragma once

#include <cstdint>

#include "bits.h"

namespace s2d {

struct Half {
  uint16_t bits;
};

struct Bfloat {
  uint16_t bits;
};

// What sums of a type are kept in.
template <typename T>
struct WideOf {
  using Type = T;
};
template <>
struct WideOf<Half> {
  using Type = float;
};
template <>
struct WideOf<Bfloat> {
  using Type = float;
};
template <typename T>
using Wide = typename WideOf<T>::Type;

S2D_HOST_DEVICE float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

S2D_HOST_DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

S2D_HOST_DEVICE float widened(float value) { return value; }
S2D_HOST_DEVICE double widened(double value) { return value; }
S2D_HOST_DEVICE float widened(Bfloat value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }
S2D_HOST_DEVICE float widened(Half half) {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half.bits));
  return value;
#else
  const uint32_t magnitude = half.bits & 0x7fffu, sign = static_cast<uint32_t>(half.bits & 0x8000u) << 16;
  // The difference of the exponents' biases; subnormal numbers become normal.
  const float scaled = float_of(magnitude << 13) * 0x1p112f;
  return float_of(bits_of(scaled) | sign | (magnitude >= 0x7c00u ? 0x7f800000u : 0));
#endif
}

// To the nearest, half to even.
S2D_HOST_DEVICE void narrow(float value, float& result) { result = value; }
S2D_HOST_DEVICE void narrow(double value, double& result) { result = value; }
S2D_HOST_DEVICE void narrow(float value, Bfloat& result) {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__)
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
#else
  const uint32_t bits = bits_of(value);
  result.bits = static_cast<uint16_t>(value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
}
S2D_HOST_DEVICE void narrow(float value, Half& result) {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
#else
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
  uint32_t rounded;
  if (value != value) {
    rounded = 0x7fff;
  } else if (magnitude >= bits_of(65520.0f)) {
    rounded = 0x7c00;
  } else if (magnitude < bits_of(0x1p-14f)) {
    // The last place of numbers from 1/2 to 1 is that of a subnormal float16.
    rounded = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  } else {
    rounded = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  result.bits = static_cast<uint16_t>((bits >> 16 & 0x8000u) | rounded);
#endif
}

}  // namespace s2d
