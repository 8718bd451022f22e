// flow_warp_iou on the CPU: schemas of the room and its CPU kernels.
//
// The masks of the source are turned into one 64-bit word a pixel, so that one gather reads 64 masks where the flow
// leads. 64 target pixels are a block: their gathered words are turned back into one word a mask, for those masks only
// on which the pixels differ (most blocks are all inside or all outside), and popcounts of a few pairs of words finish
// it. A pixel moves 8 bytes of flow, 8 bytes gathered, (N + M) / 8 bytes of masks, and 40 bytes more with the check,
// whose four gathers are the hard part. No warped mask is stored; counts are integers, so threads change nothing.

#include "flow_warp_iou.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/flow_avx512.h"
#include "../common/pages.h"
#include "../common/parallel.h"
#include "../common/simd.h"
#include "checks.h"

namespace s2d::flow_warp_iou {
namespace {

// ---- masks to pixel words ----

S2D_LOOP void transpose_row_loop(const uint64_t* masks, int64_t stride, int64_t number, int64_t width, uint64_t* out) {
  for (int64_t x = 0; x < width; x += kWordBits) {
    const int64_t count = std::min(kWordBits, width - x);
    std::fill(out + x, out + x + count, 0);
    for (int64_t n = 0; n < number; ++n) {
      const uint64_t word = masks[n * stride + x / kWordBits];
      if (!word) continue;
      for (int64_t k = 0; k < count; ++k) out[x + k] |= (word >> k & 1) << n;
    }
  }
}
S2D_MULTIVERSION(void, transpose_row,
                 (const uint64_t* masks, int64_t stride, int64_t number, int64_t width, uint64_t* out),
                 (masks, stride, number, width, out))

// ---- one row of target pixels ----

// One pair of frames. `pixels` has a word of zeros after the last pixel: what lies outside.
struct Pair {
  const uint64_t* pixels;
  const uint64_t* target;
  const float* flow;
  const float* reverse;
  const uint64_t* visible;
  Bounds bounds;
  int64_t targets;
  Mode mode;
};

// Counts of one thread: intersection [64, M], warped [64], target [M], and room for a block's target words.
struct Tally {
  std::vector<int64_t> intersection, warped, target;
  std::vector<int64_t> ids;
  std::vector<uint64_t> words;

  explicit Tally(int64_t targets)
      : intersection(kWordBits * targets), warped(kWordBits), target(targets), ids(targets), words(targets) {}
};

S2D_LOOP void positions_of(const float* flow, int64_t x, int64_t y, int64_t count, float* px, float* py) {
  for (int64_t k = 0; k < count; ++k) {
    px[k] = static_cast<float>(static_cast<int32_t>(x + k)) + flow[2 * k];
    py[k] = static_cast<float>(static_cast<int32_t>(y)) + flow[2 * k + 1];
  }
}

S2D_LOOP void read_nearest(const Pair& pair, const float* px, const float* py, int64_t count, uint64_t* words) {
  const int32_t none = pair.bounds.height * pair.bounds.width;
  for (int64_t k = 0; k < count; ++k) {
    const Vector p{px[k], py[k]};
    const int32_t pixel = nearest_pixel(pair.bounds, p);
    words[k] = pair.pixels[pair.bounds.hold(p) ? pixel : none];
  }
}

S2D_LOOP void read_bilinear(const Pair& pair, const float* px, const float* py, int64_t count, uint64_t* words) {
  const int32_t none = pair.bounds.height * pair.bounds.width;
  for (int64_t k = 0; k < count; ++k) {
    const Corners at = corners_of(pair.bounds, {px[k], py[k]}, none);
    uint64_t corner[4];
    for (int c = 0; c < 4; ++c) corner[c] = pair.pixels[at.index[c]];
    words[k] = blend_words(corner, at.fx, at.fy);
  }
}

// Bit `bit` of each of 64 words, as one word.
S2D_LOOP uint64_t collect_bit(const uint64_t* words, int bit) {
  uint64_t result = 0;
  for (int k = 0; k < kWordBits; ++k) result |= (words[k] >> bit & 1) << k;
  return result;
}

S2D_LOOP void count_row_loop(const Pair& pair, int64_t y, const uint64_t* consistent, bool with_targets, Tally& tally) {
  const int64_t width = pair.bounds.width, height = pair.bounds.height, words = words_for(width);
  alignas(64) uint64_t read[kWordBits];
  alignas(64) float px[kWordBits], py[kWordBits];
  for (int64_t w = 0; w < words; ++w) {
    const int64_t x = w * kWordBits, count = std::min(kWordBits, width - x);
    const float* flow = pair.flow + 2 * (y * width + x);
    uint64_t kept = count == kWordBits ? ~0ull : (1ull << count) - 1;
    if (pair.visible) kept &= pair.visible[y * words + w];
    if (consistent) kept &= consistent[w];
    if (!kept) continue;

    int64_t present = 0;
    for (int64_t m = 0; m < pair.targets; ++m) {
      const uint64_t word = pair.target[(m * height + y) * words + w] & kept;
      if (!word) continue;
      tally.ids[present] = m;
      tally.words[present++] = word;
      if (with_targets) tally.target[m] += popcount(word);
    }

    positions_of(flow, x, y, count, px, py);
    std::fill(read + count, read + kWordBits, 0);
    if (pair.mode == kNearest) {
      read_nearest(pair, px, py, count, read);
    } else {
      read_bilinear(pair, px, py, count, read);
    }
    uint64_t any = 0, all = ~0ull;
    for (int k = 0; k < kWordBits; ++k) {
      any |= read[k];
      all &= read[k];
    }
    for (uint64_t rest = any; rest; rest &= rest - 1) {
      const int n = lowest_bit(rest);
      const uint64_t word = (all >> n & 1 ? ~0ull : collect_bit(read, n)) & kept;
      tally.warped[n] += popcount(word);
      for (int64_t i = 0; i < present; ++i) {
        tally.intersection[n * pair.targets + tally.ids[i]] += popcount(word & tally.words[i]);
      }
    }
  }
}
S2D_MULTIVERSION(void, count_row,
                 (const Pair& pair, int64_t y, const uint64_t* consistent, bool with_targets, Tally& tally),
                 (pair, y, consistent, with_targets, tally))

// ---- rows of flow ----

void consistent_row_portable(const float* flow, const float* reverse, const Bounds& bounds, int64_t y,
                             uint64_t* words) {
  std::fill(words, words + words_for(bounds.width), 0);
  for (int64_t x = 0; x < bounds.width; ++x) {
    const Vector here{static_cast<float>(x), static_cast<float>(y)};
    const bool good = consistent(reverse, bounds, here, {flow[2 * x], flow[2 * x + 1]});
    words[x / kWordBits] |= static_cast<uint64_t>(good) << (x % kWordBits);
  }
}

void compose_portable(const float* first, const float* second, const Bounds& bounds, int64_t begin, int64_t y,
                      float* out) {
  for (int64_t x = begin; x < bounds.width; ++x) {
    const Vector here{static_cast<float>(x), static_cast<float>(y)};
    const Vector total = composed(second, bounds, here, {first[2 * x], first[2 * x + 1]});
    out[2 * x] = total.x;
    out[2 * x + 1] = total.y;
  }
}

void compose_row_portable(const float* first, const float* second, const Bounds& bounds, int64_t y, float* out) {
  compose_portable(first, second, bounds, 0, y, out);
}

#if defined(S2D_X86)
S2D_TARGET_AVX512 void consistent_row_avx512(const float* flow, const float* reverse, const Bounds& bounds, int64_t y,
                                             uint64_t* words) {
  const int64_t width = bounds.width;
  std::fill(words, words + words_for(width), 0);
  for (int64_t x = 0; x < width; x += 16) {
    const int64_t count = std::min<int64_t>(16, width - x);
    const uint32_t floats = count < 16 ? (1u << 2 * count) - 1 : ~0u;
    const Vectors f = split(_mm512_maskz_loadu_ps(floats & 0xffff, flow + 2 * x),
                            _mm512_maskz_loadu_ps(floats >> 16, flow + 2 * x + 16));
    Vectors there;
    const __mmask16 good = consistent16(reverse, bounds, pixel_positions(x, y), f, there);
    const uint64_t wanted = good & ((1u << count) - 1);
    words[x / kWordBits] |= wanted << (x % kWordBits);
  }
}

S2D_TARGET_AVX512 void compose_row_avx512(const float* first, const float* second, const Bounds& bounds, int64_t y,
                                          float* out) {
  int64_t x = 0;
  for (; x + 16 <= bounds.width; x += 16) {
    const Vectors step = load_vectors(first + 2 * x), there = sum(pixel_positions(x, y), step);
    const Vectors total = sum(step, lookup16(second, bounds, there));
    const __m512 none = _mm512_set1_ps(NAN);
    const __mmask16 inside = held(bounds, there);
    store_vectors(out + 2 * x, {_mm512_mask_mov_ps(none, inside, total.x), _mm512_mask_mov_ps(none, inside, total.y)});
  }
  compose_portable(first, second, bounds, x, y, out);
}
#endif

void consistent_row(const float* flow, const float* reverse, const Bounds& bounds, int64_t y, uint64_t* words) {
#if defined(S2D_X86)
  if (isa() == Isa::avx512 && bounds.width > 1) return consistent_row_avx512(flow, reverse, bounds, y, words);
#endif
  consistent_row_portable(flow, reverse, bounds, y, words);
}

void compose_row(const float* first, const float* second, const Bounds& bounds, int64_t y, float* out) {
#if defined(S2D_X86)
  if (isa() == Isa::avx512) return compose_row_avx512(first, second, bounds, y, out);
#endif
  compose_row_portable(first, second, bounds, y, out);
}

// Rows of all pairs, each on its own.
template <typename Body>
void each_row(const Tensor& flow, const Body& body) {
  const int64_t height = flow.size(1), width = flow.size(2);
  parallel_over(flow.size(0) * height, width * 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row / height, row % height, row * width);
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> flow_warp_counts(const Tensor& source, const Tensor& target, int64_t width,
                                                    const Tensor& flow, std::optional<Tensor> visible,
                                                    std::optional<Tensor> reverse, int64_t mode) {
  check_counts(source, target, width, flow, visible, reverse, mode);
  const int64_t pairs = flow.size(0), height = flow.size(1), words = words_for(width);
  const int64_t sources = source.size(1), targets = target.size(1);
  const Tensor from = torch::stable::contiguous(source), onto = torch::stable::contiguous(target);
  const Tensor there = torch::stable::contiguous(flow);
  std::optional<Tensor> shown, back;
  if (visible) shown = torch::stable::contiguous(*visible);
  if (reverse) back = torch::stable::contiguous(*reverse);
  Tensor intersection = torch::stable::new_zeros(from, {pairs, sources, targets}, ScalarType::Long);
  Tensor warped = torch::stable::new_zeros(from, {pairs, sources}, ScalarType::Long);
  Tensor area = torch::stable::new_zeros(from, {pairs, targets}, ScalarType::Long);
  auto* intersections = static_cast<int64_t*>(intersection.mutable_data_ptr());
  auto* warped_areas = static_cast<int64_t*>(warped.mutable_data_ptr());
  auto* target_areas = static_cast<int64_t*>(area.mutable_data_ptr());

  Scattered<uint64_t> pixels(height * width + 1);
  pixels.data()[height * width] = 0;
  std::mutex adding;
  for (int64_t p = 0; p < pairs; ++p) {
    for (int64_t first = 0; first == 0 || first < sources; first += kWordBits) {
      const int64_t number = std::min(kWordBits, sources - first);
      const uint64_t* masks = words_of(from) + (p * sources + first) * height * words;
      parallel_over(height, width * 16, [&](int64_t begin, int64_t end) {
        for (int64_t y = begin; y < end; ++y) {
          transpose_row(masks + y * words, height * words, number, width, pixels.data() + y * width);
        }
      });
      const Pair pair{pixels.data(),
                      words_of(onto) + p * targets * height * words,
                      floats_of(there) + p * height * width * 2,
                      back ? floats_of(*back) + p * height * width * 2 : nullptr,
                      shown ? words_of(*shown) + p * height * words : nullptr,
                      Bounds(height, width),
                      targets,
                      static_cast<Mode>(mode)};
      parallel_over(height, width * 64, [&](int64_t begin, int64_t end) {
        Tally tally(targets);
        std::vector<uint64_t> good(words);
        for (int64_t y = begin; y < end; ++y) {
          if (back) consistent_row(pair.flow + 2 * y * width, pair.reverse, pair.bounds, y, good.data());
          count_row(pair, y, back ? good.data() : nullptr, first == 0, tally);
        }
        const std::lock_guard<std::mutex> lock(adding);
        for (int64_t n = 0; n < number; ++n) {
          warped_areas[p * sources + first + n] += tally.warped[n];
          for (int64_t m = 0; m < targets; ++m) {
            intersections[(p * sources + first + n) * targets + m] += tally.intersection[n * targets + m];
          }
        }
        for (int64_t m = 0; m < targets; ++m) target_areas[p * targets + m] += tally.target[m];
      });
    }
  }
  return {intersection, warped, area};
}

Tensor flow_consistency(const Tensor& flow, const Tensor& reverse) {
  check_flow(flow, "flow_consistency", "flow");
  check_same(flow, reverse, "flow_consistency", "reverse");
  const Tensor there = torch::stable::contiguous(flow), back = torch::stable::contiguous(reverse);
  Tensor result = torch::stable::new_empty(there, {flow.size(0), flow.size(1), flow.size(2)}, ScalarType::Byte);
  auto* good = static_cast<uint8_t*>(result.mutable_data_ptr());
  const Bounds bounds(flow.size(1), flow.size(2));
  const int64_t pixels = flow.size(1) * flow.size(2);
  const int64_t width = bounds.width;
  each_row(there, [&](int64_t pair, int64_t y, int64_t pixel) {
    std::vector<uint64_t> words(words_for(width));
    consistent_row(floats_of(there) + 2 * pixel, floats_of(back) + 2 * pair * pixels, bounds, y, words.data());
    for (int64_t x = 0; x < width; ++x) good[pixel + x] = words[x / kWordBits] >> (x % kWordBits) & 1;
  });
  return result;
}

Tensor flow_compose(const Tensor& first, const Tensor& second) {
  check_flow(first, "flow_compose", "first");
  check_same(first, second, "flow_compose", "second");
  const Tensor step = torch::stable::contiguous(first), onward = torch::stable::contiguous(second);
  Tensor result = torch::stable::empty_like(step);
  auto* out = static_cast<float*>(result.mutable_data_ptr());
  const Bounds bounds(first.size(1), first.size(2));
  const int64_t pixels = first.size(1) * first.size(2);
  each_row(step, [&](int64_t pair, int64_t y, int64_t pixel) {
    compose_row(floats_of(step) + 2 * pixel, floats_of(onward) + 2 * pair * pixels, bounds, y, out + 2 * pixel);
  });
  return result;
}

}  // namespace s2d::flow_warp_iou

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def(
      "flow_warp_counts(Tensor source, Tensor target, int width, Tensor flow, Tensor? visible, Tensor? reverse, int "
      "mode) -> (Tensor intersection, Tensor warped_area, Tensor target_area)");
  library.def("flow_consistency(Tensor flow, Tensor reverse) -> Tensor");
  library.def("flow_compose(Tensor first, Tensor second) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("flow_warp_counts", TORCH_BOX(&s2d::flow_warp_iou::flow_warp_counts));
  library.impl("flow_consistency", TORCH_BOX(&s2d::flow_warp_iou::flow_consistency));
  library.impl("flow_compose", TORCH_BOX(&s2d::flow_warp_iou::flow_compose));
}
