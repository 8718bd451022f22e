// Masks from mask logits, on the CPU.
//
// A task owns the masks of a query. Where a pixel of the level reads is worked out once for all of them: four logits,
// whose attending is a byte of 0 or 1; a row of bytes becomes bits 64 at a time.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../common/pack.h"
#include "../common/parallel.h"
#include "masked_attention.h"

namespace s2d::masked_attention {
namespace {

// The two pixels that each pixel of a resized axis lies between, and their shares (align_corners=False).
template <typename T>
struct Axis {
  std::vector<int32_t> first, second;
  std::vector<T> near, far;

  Axis(int64_t from, int64_t to) : first(to), second(to), near(to), far(to) {
    const T scale = static_cast<T>(from) / static_cast<T>(to);
    for (int64_t place = 0; place < to; ++place) {
      const T at = std::max(T(0), scale * (static_cast<T>(place) + T(0.5)) - T(0.5));
      first[place] = static_cast<int32_t>(std::min(static_cast<int64_t>(at), from - 1));
      second[place] = std::min(first[place] + 1, static_cast<int32_t>(from) - 1);
      far[place] = std::min(std::max(at - static_cast<T>(first[place]), T(0)), T(1));
      near[place] = 1 - far[place];
    }
  }
};

template <typename T>
struct Resize {
  Axis<T> rows, columns;
  int64_t width;  // of a map
  T threshold;
};

// One row of a level, a byte a pixel. Rounded as torch rounds: along rows, then across them.
template <typename T>
S2D_LOOP void resize_row(const Resize<T>& r, const T* map, int64_t y, uint8_t* __restrict out) {
  const T *a = map + r.rows.first[y] * r.width, *b = map + r.rows.second[y] * r.width;
  const int32_t *first = r.columns.first.data(), *second = r.columns.second.data();
  const T *near = r.columns.near.data(), *far = r.columns.far.data();
  const T upper = r.rows.near[y], lower = r.rows.far[y];
  const auto width = static_cast<int64_t>(r.columns.first.size());
  // Of a coarse level: it leaves rows out, which the hardware does not foresee.
  if (y + 1 < static_cast<int64_t>(r.rows.first.size())) {
    const T *next = map + r.rows.first[y + 1] * r.width, *last = map + r.rows.second[y + 1] * r.width + r.width;
    for (; next < last; next += 64 / sizeof(T)) __builtin_prefetch(next);
  }
  for (int64_t x = 0; x < width; ++x) {
    const T above = a[first[x]] * near[x] + a[second[x]] * far[x];
    const T below = b[first[x]] * near[x] + b[second[x]] * far[x];
    out[x] = attends(above * upper + below * lower, r.threshold);
  }
}
S2D_LOOP void resize_float_loop(const Resize<float>& r, const float* map, int64_t y, uint8_t* out) {
  resize_row(r, map, y, out);
}
S2D_MULTIVERSION(void, resize_float, (const Resize<float>& r, const float* map, int64_t y, uint8_t* out),
                 (r, map, y, out))

void resize(const Resize<float>& r, const float* map, int64_t y, uint8_t* out) { resize_float(r, map, y, out); }
void resize(const Resize<double>& r, const double* map, int64_t y, uint8_t* out) { resize_row(r, map, y, out); }

template <typename T>
void mask_of(const Tensor& logits, int64_t height, int64_t width, double threshold, uint64_t* words) {
  const int64_t from_height = logits.size(3), from_width = logits.size(4), frames = logits.size(2);
  const Resize<T> r{{from_height, height}, {from_width, width}, from_width, static_cast<T>(threshold)};
  const T* maps = static_cast<const T*>(logits.const_data_ptr());
  const int64_t keys = frames * height * width;
  const PackRow pack = pack_row();
  parallel_over(logits.size(0) * logits.size(1), keys * 32, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> bytes(keys);
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t frame = 0; frame < frames; ++frame) {
        const T* map = maps + (row * frames + frame) * from_height * from_width;
        for (int64_t y = 0; y < height; ++y) resize(r, map, y, bytes.data() + (frame * height + y) * width);
      }
      pack(bytes.data(), words + row * words_for(keys), keys);
    }
  });
}

}  // namespace

Tensor attention_mask(const Tensor& logits, int64_t height, int64_t width) {
  constexpr const char* op = "attention_mask";
  check_floating(logits, op, "mask_logits");
  S2D_CHECK(logits.dim() == 5 && logits.size(3) > 0 && logits.size(4) > 0, op,
            "mask_logits [B, Q, T, h, w] with h, w > 0", shape_of(logits));
  S2D_CHECK(height > 0 && width > 0, op, "a size of at least one pixel", std::min(height, width));
  S2D_CHECK(std::max(logits.size(3), logits.size(4)) < (int64_t{1} << 31), op, "h, w under 2^31", shape_of(logits));
  Tensor words = torch::stable::new_empty(
      logits, {logits.size(0), logits.size(1), words_for(logits.size(2) * height * width)}, ScalarType::Long);
  const auto run = is_double(logits) ? mask_of<double> : mask_of<float>;
  run(torch::stable::contiguous(widened(logits)), height, width, threshold_of(logits.scalar_type()),
      static_cast<uint64_t*>(words.mutable_data_ptr()));
  return words;
}

}  // namespace s2d::masked_attention

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("attention_mask", TORCH_BOX(&s2d::masked_attention::attention_mask));
}
