// The masks that queries attend by, on the CPU: from mask logits, and from their factors.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/check.h"
#include "../common/parallel.h"
#include "masked_attention.h"

namespace s2d::masked_attention {
namespace {

// Calls body(rule, T) with the rule of a dtype and the type it is computed in.
template <typename Body>
void with_rule(const Tensor& values, const char* op, const Body& body) {
  switch (values.scalar_type()) {
    case ScalarType::Float:
      return body(Float32Rule{}, float{});
    case ScalarType::Double:
      return body(Float64Rule{}, double{});
    case ScalarType::Half:
      return body(Float16Rule{}, float{});
    case ScalarType::BFloat16:
      return body(BFloat16Rule{}, float{});
    default:
      S2D_CHECK(false, op, "float16, bfloat16, float32 or float64", "another dtype");
  }
}

ScalarType wide(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Bits of [rows, keys] values.
template <typename T, typename Rule>
void pack(const T* values, int64_t rows, int64_t keys, uint64_t* words) {
  parallel_over(rows, keys * 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      uint64_t* out = words + row * words_for(keys);
      std::fill(out, out + words_for(keys), 0);
      for (int64_t key = 0; key < keys; ++key) {
        out[key / kWordBits] |= static_cast<uint64_t>(Rule::attends(values[row * keys + key])) << key % kWordBits;
      }
    }
  });
}

Tensor packed(const Tensor& values, int64_t clips, int64_t queries, int64_t keys, const char* op) {
  Tensor words = torch::stable::new_empty(values, {clips, queries, words_for(keys)}, ScalarType::Long);
  with_rule(values, op, [&](auto rule, auto zero) {
    using T = decltype(zero);
    const Tensor held = torch::stable::contiguous(torch::stable::to(values, wide(values)));
    pack<T, decltype(rule)>(static_cast<const T*>(held.const_data_ptr()), clips * queries, keys,
                            static_cast<uint64_t*>(words.mutable_data_ptr()));
  });
  return words;
}

}  // namespace

Tensor attention_mask(const Tensor& logits, int64_t height, int64_t width) {
  constexpr const char* op = "attention_mask";
  S2D_CHECK(logits.dim() == 5, op, "mask_logits [B, Q, T, h, w]", shape_of(logits));
  const int64_t from_h = logits.size(3), from_w = logits.size(4), maps = product_of(logits, 0, 3);
  S2D_CHECK(from_h > 0 && from_w > 0 && height > 0 && width > 0, op, "mask_logits and a size that are not empty",
            shape_of(logits));
  Tensor resized = torch::stable::new_empty(logits, {maps, height, width}, wide(logits));
  with_rule(logits, op, [&](auto, auto zero) {
    using T = decltype(zero);
    const Tensor held = torch::stable::contiguous(torch::stable::to(logits, wide(logits)));
    const T* from = static_cast<const T*>(held.const_data_ptr());
    T* to = static_cast<T*>(resized.mutable_data_ptr());
    parallel_over(maps, height * width * 32, [&](int64_t begin, int64_t end) {
      for (int64_t map = begin; map < end; ++map) {
        for (int64_t y = 0; y < height; ++y) {
          const Between<T> rows = between<T>(y, from_h, height);
          const T *a = from + (map * from_h + rows.first) * from_w, *b = from + (map * from_h + rows.second) * from_w;
          for (int64_t x = 0; x < width; ++x) {
            const Between<T> at = between<T>(x, from_w, width);
            const T upper = a[at.first] * (1 - at.share) + a[at.second] * at.share;
            const T lower = b[at.first] * (1 - at.share) + b[at.second] * at.share;
            to[(map * height + y) * width + x] = upper * (1 - rows.share) + lower * rows.share;
          }
        }
      }
    });
  });
  return packed(torch::stable::to(resized, logits.scalar_type()), logits.size(0), logits.size(1),
                logits.size(2) * height * width, op);
}

Tensor attention_mask_from_features(const Tensor& embed, const Tensor& features) {
  constexpr const char* op = "attention_mask_from_features";
  S2D_CHECK(embed.dim() == 3 && features.dim() == 5 && embed.size(0) == features.size(0) &&
                embed.size(2) == features.size(2) && embed.scalar_type() == features.scalar_type(),
            op, "embed [B, Q, C] and features [B, T, C, h, w]", shape_of(embed) + " and " + shape_of(features));
  const int64_t area = features.size(3) * features.size(4), frames = features.size(1), keys = frames * area;
  const Tensor flat =
      torch::stable::reshape(torch::stable::transpose(features, 1, 2), {embed.size(0), embed.size(2), keys});
  return packed(torch::stable::matmul(embed, flat), embed.size(0), embed.size(1), keys, op);
}

}  // namespace s2d::masked_attention

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def("attention_mask(Tensor mask_logits, SymInt height, SymInt width) -> Tensor");
  library.def("attention_mask_from_features(Tensor embed, Tensor features) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("attention_mask", TORCH_BOX(&s2d::masked_attention::attention_mask));
  library.impl("attention_mask_from_features", TORCH_BOX(&s2d::masked_attention::attention_mask_from_features));
}
