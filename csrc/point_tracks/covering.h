// Coverage on the CPU: the masks of a scene, and what points that are in one frame cover there.
//
// What a frame's masks cover stands in one 64-bit word a pixel (as many words as it takes beyond 64 masks), so that one
// load tells all masks a point landed in.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "../common/bits.h"
#include "../common/check.h"
#include "../common/flow.h"

namespace s2d::point_tracks {
namespace {

// The masks of a scene, frames ascending, and where those of each frame begin.
struct SceneMasks {
  const uint64_t* words;
  const int64_t* frames;
  int64_t number, length;
  Bounds bounds;
  std::vector<int64_t> begins;

  SceneMasks(const uint64_t* words, const int64_t* frames, int64_t number, int64_t length, const Bounds& bounds)
      : words(words), frames(frames), number(number), length(length), bounds(bounds) {
    for (int64_t t = 0; t <= length; ++t) begins.push_back(std::lower_bound(frames, frames + number, t) - frames);
  }

  int64_t mask_words() const { return bounds.height * words_for(bounds.width); }
  const uint64_t* mask(int64_t i) const { return words + i * mask_words(); }
};

// Which masks of one frame cover each pixel.
class FrameWords {
 public:
  FrameWords(const Bounds& bounds) : bounds_(bounds) {}

  void fill(const uint64_t* masks, int64_t number) {
    number_ = number;
    planes_ = words_for(number);
    const int64_t height = bounds_.height, width = bounds_.width, words = words_for(width);
    words_.resize(height * width * planes_);
    std::fill(words_.begin(), words_.end(), 0);
    for (int64_t m = 0; m < number; ++m) {
      const uint64_t bit = 1ull << (m % kWordBits);
      for (int64_t y = 0; y < height; ++y) {
        const uint64_t* row = masks + (m * height + y) * words;
        uint64_t* out = words_.data() + y * width * planes_ + m / kWordBits;
        for (int64_t w = 0; w < words; ++w) {
          for (uint64_t rest = row[w]; rest; rest &= rest - 1) {
            out[(w * kWordBits + lowest_bit(rest)) * planes_] |= bit;
          }
        }
      }
    }
  }

  int64_t number() const { return number_; }

  // Calls body(mask) for each mask, counted in the frame, that covers the pixel.
  template <typename Body>
  void each_mask(int32_t pixel, const Body& body) const {
    const uint64_t* word = words_.data() + pixel * planes_;
    for (int64_t plane = 0; plane < planes_; ++plane) {
      for (uint64_t rest = word[plane]; rest; rest &= rest - 1) body(plane * kWordBits + lowest_bit(rest));
    }
  }

 private:
  Bounds bounds_;
  int64_t number_ = 0, planes_ = 0;
  std::vector<uint64_t> words_;
};

struct Pair {
  int64_t column;
  float value;
};

// Finds the masks of a frame that a set of pixels covers. A thread's own, for its memory.
class Covering {
 public:
  // Pairs (mask `first` + j of the frame, its share of the distinct pixels) above the threshold. Reorders the pixels.
  void add_pairs(std::vector<int32_t>& pixels, const FrameWords& words, int64_t first, float threshold,
                 std::vector<Pair>& pairs) {
    if (pixels.empty() || words.number() == 0) return;
    // Grid order is nearly sorted already, and then this costs one pass.
    if (!std::is_sorted(pixels.begin(), pixels.end())) std::sort(pixels.begin(), pixels.end());
    pixels.erase(std::unique(pixels.begin(), pixels.end()), pixels.end());
    hits_.assign(words.number(), 0);
    for (const int32_t pixel : pixels) {
      words.each_mask(pixel, [&](int64_t mask) { ++hits_[mask]; });
    }
    const auto total = static_cast<double>(pixels.size());
    for (int64_t j = 0; j < words.number(); ++j) {
      const auto share = static_cast<float>(static_cast<double>(hits_[j]) / total);
      if (share > threshold) pairs.push_back({first + j, share});
    }
  }

 private:
  std::vector<int64_t> hits_;
};

inline float share_of(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<float>(static_cast<double>(part) / static_cast<double>(whole)) : 0.0f;
}

// Rows of pairs as offsets [N + 1], columns and values.
std::tuple<Tensor, Tensor, Tensor> compressed(const std::vector<std::vector<Pair>>& rows, const Tensor& like) {
  Tensor offsets = torch::stable::new_empty(like, {static_cast<int64_t>(rows.size()) + 1}, ScalarType::Long);
  auto* offset = static_cast<int64_t*>(offsets.mutable_data_ptr());
  offset[0] = 0;
  for (size_t i = 0; i < rows.size(); ++i) offset[i + 1] = offset[i] + static_cast<int64_t>(rows[i].size());
  Tensor columns = torch::stable::new_empty(like, {offset[rows.size()]}, ScalarType::Long);
  Tensor values = torch::stable::new_empty(like, {offset[rows.size()]}, ScalarType::Float);
  auto* column = static_cast<int64_t*>(columns.mutable_data_ptr());
  auto* value = static_cast<float*>(values.mutable_data_ptr());
  for (const auto& row : rows) {
    for (const Pair& pair : row) {
      *column++ = pair.column;
      *value++ = pair.value;
    }
  }
  return {offsets, columns, values};
}

}  // namespace
}  // namespace s2d::point_tracks
