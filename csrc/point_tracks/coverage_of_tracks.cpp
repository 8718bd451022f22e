// Coverage of given tracks, on the CPU. Each point of each frame becomes one number, its pixel and whether it is
// visible there: 4 bytes where a track has 9. A thread owns masks: it lists their points frame by frame, looking up all
// masks of a frame at once, and then visits the scene once more with all its lists.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "../common/parallel.h"
#include "checks.h"
#include "covering.h"

namespace s2d::point_tracks {
namespace {

// About as many bytes as a mask's points touch in a frame.
constexpr int64_t kMaskBytes = 4096;

// Where a point is in a frame: at least 0 for the pixel of a visible one.
constexpr int32_t kOutside = -1;

int32_t code_of(const Bounds& bounds, Vector place, bool visible) {
  if (!bounds.hold(place)) return kOutside;
  const int32_t pixel = nearest_pixel(bounds, place);
  return visible ? pixel : -2 - pixel;
}

int32_t pixel_of(int32_t code) { return code >= 0 ? code : -2 - code; }

// codes [T, G].
std::vector<int32_t> codes_of(const Vector* tracks, const uint8_t* visible, int64_t length, int64_t points,
                              const Bounds& bounds) {
  std::vector<int32_t> codes(length * points);
  parallel_over(length, points * 16, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin * points; k < end * points; ++k) codes[k] = code_of(bounds, tracks[k], visible[k]);
  });
  return codes;
}

// What the masks [begin, end) see and cover.
class GivenCoverage {
 public:
  GivenCoverage(const SceneMasks& scene, int64_t begin, int64_t end, const std::vector<int32_t>& codes, int64_t points)
      : scene_(scene), begin_(begin), end_(end), codes_(codes), number_(points), words_(scene.bounds) {
    members_.resize(end - begin);
    for (int64_t t = scene.frames[begin]; t <= scene.frames[end - 1]; ++t) {
      fill(t);
      if (words_.number() == 0) continue;
      for (int64_t g = 0; g < points; ++g) {
        const int32_t code = code_at(t, g);
        if (code < 0) continue;
        words_.each_mask(code, [&](int64_t mask) {
          const int64_t i = scene.begins[t] + mask;
          if (i >= begin && i < end) members_[i - begin].push_back(static_cast<int32_t>(g));
        });
      }
    }
  }

  void visit(float threshold, float* visibility, std::vector<std::vector<Pair>>& pairs) {
    std::vector<int32_t> pixels;
    for (int64_t t = 0; t < scene_.length; ++t) {
      fill(t);
      for (int64_t i = begin_; i < end_; ++i) {
        int64_t visible = 0;
        pixels.clear();
        for (const int32_t g : members_[i - begin_]) {
          const int32_t code = code_at(t, g);
          visible += code >= 0;
          if (code != kOutside) pixels.push_back(pixel_of(code));
        }
        visibility[i * scene_.length + t] = share_of(visible, members_[i - begin_].size());
        covering_.add_pairs(pixels, words_, scene_.begins[t], threshold, pairs[i]);
      }
    }
  }

 private:
  void fill(int64_t t) { words_.fill(scene_.mask(scene_.begins[t]), scene_.begins[t + 1] - scene_.begins[t]); }
  int32_t code_at(int64_t t, int64_t g) const { return codes_[t * number_ + g]; }

  const SceneMasks& scene_;
  int64_t begin_, end_;
  const std::vector<int32_t>& codes_;
  int64_t number_;
  FrameWords words_;
  Covering covering_;
  std::vector<std::vector<int32_t>> members_;
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> coverage_of_tracks(const Tensor& words, int64_t width, const Tensor& frames,
                                                              const Tensor& tracks, const Tensor& visible,
                                                              double threshold) {
  check_given(words, width, frames, tracks, visible);
  const int64_t number = words.size(0), height = words.size(1), length = tracks.size(0), points = tracks.size(1);
  const Tensor masks = torch::stable::contiguous(words), origin = torch::stable::contiguous(frames);
  const Tensor places = torch::stable::contiguous(tracks), flags = torch::stable::contiguous(visible);
  const auto* frame = static_cast<const int64_t*>(origin.const_data_ptr());
  check_frames(frame, number, length, "frames", true, "coverage_of_tracks");
  const Bounds bounds(height, width);
  const SceneMasks scene(static_cast<const uint64_t*>(masks.const_data_ptr()), frame, number, length, bounds);
  Tensor visibility = torch::stable::new_empty(masks, {number, length}, ScalarType::Float);
  auto* seen = static_cast<float*>(visibility.mutable_data_ptr());
  const std::vector<int32_t> codes =
      codes_of(static_cast<const Vector*>(places.const_data_ptr()), static_cast<const uint8_t*>(flags.const_data_ptr()),
               length, points, bounds);
  std::vector<std::vector<Pair>> pairs(number);
  parallel_over(number, kMaskBytes * length, [&](int64_t begin, int64_t end) {
    GivenCoverage(scene, begin, end, codes, points).visit(static_cast<float>(threshold), seen, pairs);
  });
  auto [offsets, columns, values] = compressed(pairs, masks);
  return {visibility, offsets, columns, values};
}

}  // namespace s2d::point_tracks

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def(
      "coverage_of_tracks(Tensor words, int width, Tensor frames, Tensor tracks, Tensor visible, float threshold) -> "
      "(Tensor visibility, Tensor offsets, Tensor columns, Tensor values)");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("coverage_of_tracks", TORCH_BOX(&s2d::point_tracks::coverage_of_tracks));
}
