// masked_attention: which logits attend, and which keys a query attends to.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/bits.h"
#include "../common/dtypes.h"

namespace s2d::masked_attention {

// The highest logit that is forbidden lies just under this. A key is forbidden where sigmoid(x) < 0.5, the sigmoid
// rounded to x's type, so small negative logits still attend, and so does NaN. In half precision forbidden are
// x < -2^-11 and x < -2^-8 (bfloat16); here x is still in float32, and the second term is what rounds up to these.
inline double threshold_of(ScalarType type) {
  switch (type) {
    case ScalarType::Half:
      return -0x1p-11 - 0x1p-22;
    case ScalarType::BFloat16:
      return -0x1p-8 - 0x1p-16;
    case ScalarType::Float:
      return -0x1.7ffffcp-23;
    default:
      return -0x1.7fffffffffffep-52;
  }
}

// NaN attends.
template <typename T>
S2D_HOST_DEVICE bool attends(T logit, T threshold) {
  return !(logit < threshold);
}

struct Sizes {
  int64_t clips, heads, queries, keys, channels, frames;

  int64_t words() const { return words_for(keys); }
};

// Which keys each query attends to, 64 keys a word.
class Attended {
 public:
  // mask [B, Q, words]; frame_keep [B, T], or null where every frame is kept.
  Attended(const Sizes& sizes, const uint64_t* mask, const bool* frame_keep)
      : words_(sizes.words()),
        queries_(sizes.queries),
        mask_(mask),
        kept_(sizes.clips * words_),
        falls_back_(sizes.clips * sizes.queries) {
    for (int64_t clip = 0; clip < sizes.clips; ++clip) {
      for (int64_t frame = 0; frame < sizes.frames; ++frame) {
        const int64_t first = frame * sizes.keys / sizes.frames, last = (frame + 1) * sizes.keys / sizes.frames;
        if (!frame_keep || frame_keep[clip * sizes.frames + frame]) set(kept_.data() + clip * words_, first, last);
      }
    }
    for (int64_t row = 0; row < sizes.clips * queries_; ++row) {
      const uint64_t* keep = kept_.data() + row / queries_ * words_;
      uint64_t any = 0;
      for (int64_t w = 0; w < words_; ++w) any |= mask[row * words_ + w] & keep[w];
      falls_back_[row] = any == 0;
    }
  }

  // Keys of kept frames.
  uint64_t kept(int64_t clip, int64_t word) const { return kept_[clip * words_ + word]; }

  // A query without a key in the kept frames attends to all of them.
  uint64_t of(int64_t clip, int64_t query, int64_t word) const {
    const int64_t row = clip * queries_ + query;
    return falls_back_[row] ? kept(clip, word) : kept(clip, word) & mask_[row * words_ + word];
  }

  bool any_kept(int64_t clip) const {
    uint64_t any = 0;
    for (int64_t word = 0; word < words_; ++word) any |= kept(clip, word);
    return any != 0;
  }

 private:
  static void set(uint64_t* words, int64_t first, int64_t last) {
    for (int64_t key = first; key < last; ++key) words[key / kWordBits] |= uint64_t{1} << key % kWordBits;
  }

  int64_t words_, queries_;
  const uint64_t* mask_;
  std::vector<uint64_t> kept_;
  std::vector<uint8_t> falls_back_;
};

}  // namespace s2d::masked_attention
