// temporal_drop_loss: which points are the most uncertain, those whose logits are nearest to 0.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "../common/simd.h"

#if defined(S2D_X86)
#include <immintrin.h>
#endif

namespace s2d::temporal_drop_loss {

template <typename T>
using Key = std::conditional_t<std::is_same_v<T, float>, uint32_t, uint64_t>;

// Grows with |x|; NaN comes before everything, so that a diverged prediction shows in the loss.
template <typename T>
S2D_LOOP Key<T> key_of(T x) {
  Key<T> bits;
  std::memcpy(&bits, &x, sizeof(x));
  bits &= ~Key<T>{0} >> 1;
  return x == x ? bits + 1 : 0;
}

constexpr int64_t kSpare = 16;  // a register may be written past the last index

struct Found {
  int64_t below = 0, inside = 0;
};

// How many keys are below `low`, and the indices of those from `low` to `high`, ascending.
template <typename T>
S2D_LOOP void find(const T* values, int64_t begin, int64_t end, Key<T> low, Key<T> high, int32_t* indices,
                   Found& found) {
  for (int64_t i = begin; i < end; ++i) {
    const Key<T> key = key_of(values[i]);
    indices[found.inside] = static_cast<int32_t>(i);
    found.inside += key >= low && key <= high;
    found.below += key < low;
  }
}

#if defined(S2D_X86)
S2D_TARGET_AVX512 inline Found find_avx512(const float* values, int64_t number, uint32_t low, uint32_t high,
                                           int32_t* indices) {
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF), one = _mm512_set1_epi32(1), step = _mm512_set1_epi32(16);
  const __m512i least = _mm512_set1_epi32(static_cast<int32_t>(low));
  const __m512i most = _mm512_set1_epi32(static_cast<int32_t>(high));
  __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  Found found;
  int64_t i = 0;
  for (; i + 16 <= number; i += 16) {
    const __m512 x = _mm512_loadu_ps(values + i);
    const __mmask16 is_number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
    const __m512i key = _mm512_maskz_add_epi32(is_number, _mm512_and_si512(_mm512_castps_si512(x), magnitude), one);
    const __mmask16 below = _mm512_cmplt_epu32_mask(key, least), to = _mm512_cmple_epu32_mask(key, most);
    const auto inside = static_cast<__mmask16>(to & ~below);
    // To memory by way of a register: compressing into memory is slow on some machines.
    _mm512_storeu_si512(indices + found.inside, _mm512_maskz_compress_epi32(inside, index));
    found.inside += __builtin_popcount(inside);
    found.below += __builtin_popcount(below);
    index = _mm512_add_epi32(index, step);
  }
  find(values, i, number, low, high, indices, found);
  return found;
}
#endif

template <typename T>
Found find(const std::vector<T>& values, Key<T> low, Key<T> high, int32_t* indices) {
  const auto number = static_cast<int64_t>(values.size());
#if defined(S2D_X86)
  if constexpr (std::is_same_v<T, float>) {
    if (isa() == Isa::avx512) return find_avx512(values.data(), number, low, high, indices);
  }
#endif
  Found found;
  find(values.data(), 0, number, low, high, indices, found);
  return found;
}

// Two keys between which the one of rank `chosen` lies, most likely: those of a sample, four standard deviations apart.
template <typename T>
std::pair<Key<T>, Key<T>> bracket(const std::vector<T>& values, int64_t chosen, std::vector<Key<T>>& sample) {
  constexpr size_t kEvery = 32, kLeast = 4096;
  Key<T> low = 0, high = std::numeric_limits<Key<T>>::max();
  if (values.size() < kLeast) return {low, high};
  sample.clear();
  for (size_t i = kEvery / 2; i < values.size(); i += kEvery) sample.push_back(key_of(values[i]));
  const auto number = static_cast<double>(sample.size());
  const double share = static_cast<double>(chosen) / static_cast<double>(values.size());
  const double spread = 4 * std::sqrt(share * (1 - share) / number);
  const double first = std::min(std::floor((share - spread) * number), number - 1);
  const double last = std::ceil((share + spread) * number);
  auto from = sample.begin();
  if (first >= 0) {
    from += static_cast<int64_t>(first);
    std::nth_element(sample.begin(), from, sample.end());
    low = *from;
  }
  if (last < number) {
    const auto to = sample.begin() + static_cast<int64_t>(last);
    std::nth_element(from, to, sample.end());
    high = *to;
  }
  return {low, high};
}

// The indices of the `chosen` smallest values by key, of equal ones the first, ascending: indices[chosen], which has
// room for all values and kSpare more.
template <typename T>
void choose(const std::vector<T>& values, int64_t chosen, int32_t* indices, std::vector<Key<T>>& keys) {
  const auto [low, high] = bracket(values, chosen, keys);
  Found found = find(values, low, high, indices);
  if (chosen <= found.below || chosen > found.below + found.inside)
    found = find(values, Key<T>{0}, std::numeric_limits<Key<T>>::max(), indices);
  keys.resize(found.inside);
  for (int64_t i = 0; i < found.inside; ++i) keys[i] = key_of(values[indices[i]]);
  const auto nth = keys.begin() + (chosen - found.below - 1);
  std::nth_element(keys.begin(), nth, keys.end());
  const Key<T> threshold = *nth;
  int64_t ties = chosen - found.below;
  for (const Key<T> key : keys) ties -= key < threshold;

  const int64_t all = find(values, Key<T>{0}, threshold, indices).inside;
  if (all == chosen) return;
  int64_t held = 0;
  for (int64_t i = 0; held < chosen; ++i) {
    const bool tie = key_of(values[indices[i]]) == threshold;
    indices[held] = indices[i];
    held += !tie || ties > 0;
    ties -= tie;
  }
}

}  // namespace s2d::temporal_drop_loss
