// Masks from the factors of mask logits, on the CPU.
//
// A task owns 64 keys, whose channels it lays together once, and multiplies them with six queries at a time: the sums
// stay in registers (24 with AVX-512) and end as bits, so that no logit is ever written.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <type_traits>

#include "../common/pack.h"
#include "../common/parallel.h"
#include "keys.h"
#include "masked_attention.h"

namespace s2d::masked_attention {
namespace {

template <typename T>
struct Product {
  int64_t clips, queries, channels, frames, area;
  const T *embed, *features;  // [B, Q, C] and [B, T, C, area]
  T threshold;
  uint64_t* words;

  int64_t keys() const { return frames * area; }
};

constexpr int kTogether = 6;  // queries

// Of kQueries queries and 64 keys side by side: a byte each, whether the product attends.
template <int kLanes, int kQueries, typename T>
S2D_LOOP void sign(const T* embed, const T* keys, int64_t channels, T threshold, uint8_t* bytes) {
  using Bits = typename Vector<T, kLanes>::Bits;
  // As many registers as there are; the keys are read again where these are not enough for all.
  constexpr int kWide = kLanes == 16 ? 4 : 2;
  for (int first = 0; first < kBlocks<kLanes>; first += kWide) {
    Lanes<T, kLanes> sum[kQueries][kWide] = {};
    for (int64_t c = 0; c < channels; ++c) {
      Lanes<T, kLanes> key[kWide];
      for (int k = 0; k < kWide; ++k) key[k] = load<kLanes>(keys + c * kWordBits + (first + k) * kLanes);
      for (int q = 0; q < kQueries; ++q) {
        for (int k = 0; k < kWide; ++k) sum[q][k] += embed[q * channels + c] * key[k];
      }
    }
    for (int q = 0; q < kQueries; ++q) {
      for (int k = 0; k < kWide; ++k) {
        const Bits forbidden = sum[q][k] < threshold;
        uint8_t* out = bytes + q * kWordBits + (first + k) * kLanes;
        for (int lane = 0; lane < kLanes; ++lane) out[lane] = static_cast<uint8_t>(1 + forbidden[lane]);
      }
    }
  }
}

// One word of keys of one clip.
template <int kLanes, typename T>
S2D_LOOP void multiply_word(const Product<T>& p, int64_t task, PackRow pack) {
  const int64_t words = words_for(p.keys()), clip = task / words, word = task % words;
  const int64_t first = word * kWordBits, count = std::min(kWordBits, p.keys() - first);
  Scratch<T> keys(p.channels * kWordBits);
  for (int64_t done = 0; done < count;) {
    const int64_t frame = (first + done) / p.area, pixel = (first + done) % p.area;
    const int64_t run = std::min(count - done, p.area - pixel);
    const T* from = p.features + (clip * p.frames + frame) * p.channels * p.area + pixel;
    for (int64_t c = 0; c < p.channels; ++c) {
      std::copy(from + c * p.area, from + c * p.area + run, keys.data() + c * kWordBits + done);
    }
    done += run;
  }
  alignas(64) uint8_t bytes[kTogether * kWordBits];
  for (int64_t query = 0; query < p.queries; query += kTogether) {
    const int64_t several = std::min<int64_t>(kTogether, p.queries - query), row = clip * p.queries + query;
    if (several == kTogether) {
      sign<kLanes, kTogether>(p.embed + row * p.channels, keys.data(), p.channels, p.threshold, bytes);
    } else {
      for (int64_t q = 0; q < several; ++q) {
        sign<kLanes, 1>(p.embed + (row + q) * p.channels, keys.data(), p.channels, p.threshold, bytes + q * kWordBits);
      }
    }
    for (int64_t q = 0; q < several; ++q) pack(bytes + q * kWordBits, p.words + (row + q) * words + word, count);
  }
}

void multiply_baseline(const Product<float>& p, int64_t task, PackRow pack) { multiply_word<4>(p, task, pack); }
void multiply_double(const Product<double>& p, int64_t task, PackRow pack) { multiply_word<2>(p, task, pack); }
#if defined(S2D_X86)
S2D_TARGET_AVX2 void multiply_avx2(const Product<float>& p, int64_t task, PackRow pack) {
  multiply_word<8>(p, task, pack);
}
S2D_TARGET_AVX512 void multiply_avx512(const Product<float>& p, int64_t task, PackRow pack) {
  multiply_word<16>(p, task, pack);
}
#endif

template <typename T>
auto multiply_kernel() -> void (*)(const Product<T>&, int64_t, PackRow) {
  if constexpr (std::is_same_v<T, double>) {
    return multiply_double;
  } else {
#if defined(S2D_X86)
    if (isa() == Isa::avx512) return multiply_avx512;
    if (isa() == Isa::avx2) return multiply_avx2;
#endif
    return multiply_baseline;
  }
}

template <typename T>
void mask_from(const Tensor& embed, const Tensor& features, double threshold, uint64_t* words) {
  const Product<T> p{embed.size(0),
                     embed.size(1),
                     embed.size(2),
                     features.size(1),
                     features.size(3) * features.size(4),
                     static_cast<const T*>(embed.const_data_ptr()),
                     static_cast<const T*>(features.const_data_ptr()),
                     static_cast<T>(threshold),
                     words};
  const auto kernel = multiply_kernel<T>();
  const PackRow pack = pack_row();
  parallel_over(p.clips * words_for(p.keys()), p.queries * p.channels * 64, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) kernel(p, task, pack);
  });
}

}  // namespace

Tensor attention_mask_from_features(const Tensor& embed, const Tensor& features) {
  constexpr const char* op = "attention_mask_from_features";
  check_floating(embed, op, "embed");
  S2D_CHECK(embed.dim() == 3 && features.dim() == 5 && embed.size(0) == features.size(0) &&
                embed.size(2) == features.size(2) && embed.scalar_type() == features.scalar_type(),
            op, "embed [B, Q, C] and features [B, T, C, h, w] of one dtype",
            shape_of(embed) + " and " + shape_of(features));
  Tensor words = torch::stable::new_empty(
      embed, {embed.size(0), embed.size(1), words_for(product_of(features, 1, 2) * product_of(features, 3, 5))},
      ScalarType::Long);
  const auto run = is_double(embed) ? mask_from<double> : mask_from<float>;
  run(torch::stable::contiguous(widened(embed)), torch::stable::contiguous(widened(features)),
      threshold_of(embed.scalar_type()), static_cast<uint64_t*>(words.mutable_data_ptr()));
  return words;
}

}  // namespace s2d::masked_attention

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("attention_mask_from_features", TORCH_BOX(&s2d::masked_attention::attention_mask_from_features));
}
