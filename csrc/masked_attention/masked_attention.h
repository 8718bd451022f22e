// masked_attention: which logits attend, where a resized pixel reads, and which keys a query attends to.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../common/bits.h"

namespace s2d::masked_attention {

// sigmoid(x) < 0.5 forbids, with the sigmoid rounded to x's type: small negative logits still attend, and so does NaN.
struct Float32Rule {
  S2D_HOST_DEVICE static bool attends(float x) { return !(x <= -0x1.7ffffep-23f); }
};
struct Float64Rule {
  S2D_HOST_DEVICE static bool attends(double x) { return !(x <= -0x1.8p-52); }
};
struct Float16Rule {
  S2D_HOST_DEVICE static bool attends(float x) { return !(x < -0x1p-11f); }
};
struct BFloat16Rule {
  S2D_HOST_DEVICE static bool attends(float x) { return !(x < -0x1p-8f); }
};

// The two pixels that a pixel of a resized axis lies between, and the share of the second (align_corners=False).
template <typename T>
struct Between {
  int64_t first, second;
  T share;
};

template <typename T>
Between<T> between(int64_t place, int64_t from, int64_t to) {
  const T scale = static_cast<T>(from) / static_cast<T>(to);
  const T at = std::max(T(0), scale * (static_cast<T>(place) + T(0.5)) - T(0.5));
  const int64_t first = std::min(static_cast<int64_t>(at), from - 1);
  const T share = std::min(std::max(at - static_cast<T>(first), T(0)), T(1));
  return {first, first + (first < from - 1), share};
}

struct Sizes {
  int64_t clips, heads, queries, keys, channels, frames;

  int64_t words() const { return words_for(keys); }
};

// Words of the keys in kept frames, [B, words]: what a query without a key of its own falls back to.
inline std::vector<uint64_t> kept_keys(const Sizes& sizes, const bool* frame_keep) {
  std::vector<uint64_t> kept(sizes.clips * sizes.words());
  const int64_t per_frame = sizes.frames ? sizes.keys / sizes.frames : 0;
  for (int64_t clip = 0; clip < sizes.clips; ++clip) {
    uint64_t* words = kept.data() + clip * sizes.words();
    for (int64_t key = 0; key < sizes.keys; ++key) {
      const uint64_t bit = !frame_keep || frame_keep[clip * sizes.frames + key / per_frame];
      words[key / kWordBits] |= bit << key % kWordBits;
    }
  }
  return kept;
}

}  // namespace s2d::masked_attention
