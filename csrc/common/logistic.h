// The two terms of a logit that mask losses are made of, a register of logits at a time.
#pragma once

#include <cmath>

#include "lanes.h"

namespace s2d {

// softplus(x) = max(x, 0) + log1p(e) and sigmoid(x) = (1 or e) / (1 + e) with one exponential e = exp(-|x|). NaN gives
// NaN. The polynomials are minimax fits with errors of 4e-9.
template <int kLanes>
S2D_LOOP void terms_of(const Lanes<float, kLanes>& x, Lanes<float, kLanes>& softplus, Lanes<float, kLanes>& sigmoid) {
  using Values = Lanes<float, kLanes>;
  using Bits = typename Vector<float, kLanes>::Bits;
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  const Values magnitude = reinterpret_cast<Values>(reinterpret_cast<Bits>(x) & 0x7fffffff);
  const Values negative = -(magnitude > 86.0f ? Values{} + 86.0f : magnitude);
  const Values shifted = negative * 1.44269504f + kShift;
  const Values power = shifted - kShift;
  const Values r = (negative - power * 0.693359375f) + power * 2.12194440e-4f;  // ln 2 in two parts
  Values p = r * 1.381432073e-3f + 8.368851068e-3f;
  p = p * r + 4.166840108e-2f;
  p = p * r + 0.1666651952f;
  p = p * r + 0.4999999337f;
  p = (p * r) * r + r + 1.0f;
  const Values e = p * reinterpret_cast<Values>((reinterpret_cast<Bits>(shifted) << 23) + 0x3f800000);

  // log1p(e) = 2 artanh(s) with s = e / (2 + e), at most 1/3; one division serves it and the sigmoid.
  const Values quotient = 1.0f / ((e + 1.0f) * (e + 2.0f));
  const Values s = e * (e + 1.0f) * quotient, z = s * s;
  Values q = z * 0.1401221097f + 0.1399957477f;
  q = q * z + 0.2001084923f;
  q = q * z + 0.3333320657f;
  softplus = (x < 0.0f ? Values{} : x) + 2.0f * (s + s * (z * q));
  const Values share = (e + 2.0f) * quotient;
  sigmoid = x < 0.0f ? e * share : share;
}

// Double is there to check by: libm's functions.
template <int kLanes>
S2D_LOOP void terms_of(const Lanes<double, kLanes>& x, Lanes<double, kLanes>& softplus,
                       Lanes<double, kLanes>& sigmoid) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const double e = std::exp(-std::abs(x[lane]));
    softplus[lane] = (x[lane] < 0 ? 0 : x[lane]) + std::log1p(e);
    sigmoid[lane] = (x[lane] < 0 ? e : 1) / (1 + e);
  }
}

}  // namespace s2d
