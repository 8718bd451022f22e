// Coverage along flow, on the CPU. A thread owns masks for all frames, so threads never wait for each other; they share
// nothing but the flow. The live points of a mask are kept in one compact stretch.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../common/parallel.h"
#include "checks.h"
#include "covering.h"
#include "steps.h"

namespace s2d::point_tracks {
namespace {

// About as many points as a mask has, for the choice of how many masks a thread takes at once.
constexpr int64_t kPointsPerMask = 256;

// The live points of one mask: both coordinates, and how many there were at first.
struct PointSet {
  std::vector<float> x, y;
  int64_t first = 0;

  void add(float px, float py) {
    x.push_back(px);
    y.push_back(py);
  }

  // One step; points that are lost are taken out, in order.
  void advance(const float* flow, const float* reverse, const Bounds& bounds, std::vector<uint8_t>& seen) {
    seen.resize(x.size());
    advance_all(flow, reverse, bounds, x.data(), y.data(), seen.data(), x.size());
    size_t kept = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      x[kept] = x[i];
      y[kept] = y[i];
      kept += seen[i];
    }
    x.resize(kept);
    y.resize(kept);
  }
};

bool bit_of(const uint64_t* mask, int64_t words, int64_t row, int64_t column) {
  return mask[row * words + column / kWordBits] >> (column % kWordBits) & 1;
}

PointSet grid_points(const uint64_t* mask, const Bounds& bounds, int64_t lines, int64_t least) {
  const int64_t height = bounds.height, width = bounds.width, words = words_for(width);
  PointSet points;
  if (height * width == 0) return points;
  std::vector<float> xs;
  while (true) {
    const int64_t columns = std::min(lines, width), rows = std::min(lines, height);
    xs.resize(columns);
    for (int64_t k = 0; k < columns; ++k) xs[k] = grid_line(k, columns, width);
    points.x.clear();
    points.y.clear();
    for (int64_t r = 0; r < rows; ++r) {
      const float y = grid_line(r, rows, height);
      for (int64_t k = 0; k < columns; ++k) {
        if (bit_of(mask, words, nearest(y), nearest(xs[k]))) points.add(xs[k], y);
      }
    }
    points.first = points.x.size();
    if (points.first >= least || (columns == width && rows == height)) return points;
    lines *= 2;
  }
}

// Carries the two point sets of the masks [begin, end) through the scene and gathers what they see and cover.
class Coverage {
 public:
  Coverage(const SceneMasks& scene, int64_t begin, int64_t end, const Grids& grids, float threshold, float* visibility,
           std::vector<std::vector<Pair>>& pairs)
      : scene_(scene),
        begin_(begin),
        end_(end),
        grids_(grids),
        threshold_(threshold),
        visibility_(visibility),
        pairs_(pairs),
        seen_(end - begin),
        carried_(end - begin),
        words_(scene.bounds) {}

  // One direction of time: `flow` leads on, `reverse` back.
  void sweep(bool up, Fields& flow, Fields& reverse) {
    // The masks that have started: a prefix of ours as time runs up, a suffix as it runs down.
    int64_t first = up ? begin_ : end_, last = first;
    for (int64_t step = 0; step < scene_.length; ++step) {
      const int64_t t = up ? step : scene_.length - 1 - step;
      const int64_t fresh_first = std::clamp(scene_.begins[t], begin_, end_);
      const int64_t fresh_last = std::clamp(scene_.begins[t + 1], begin_, end_);
      if (first < last || fresh_first < fresh_last) {
        words_.fill(scene_.mask(scene_.begins[t]), scene_.begins[t + 1] - scene_.begins[t]);
      }
      if (first < last) {
        const int64_t field = up ? t - 1 : t;
        const float *leads = flow.field(field), *returns = reverse.field(field);
        for (int64_t i = first; i < last; ++i) {
          seen_[i - begin_].advance(leads, returns, scene_.bounds, flags_);
          carried_[i - begin_].advance(leads, returns, scene_.bounds, flags_);
          count(i, t);
        }
      }
      for (int64_t i = fresh_first; i < fresh_last; ++i) {
        start(i);
        if (up) count(i, t);
      }
      first = up ? first : fresh_first;
      last = up ? fresh_last : last;
    }
  }

  // Pairs of a mask were found by direction: put their columns in order.
  void finish() {
    for (int64_t i = begin_; i < end_; ++i) {
      std::sort(pairs_[i].begin(), pairs_[i].end(), [](Pair a, Pair b) { return a.column < b.column; });
    }
  }

 private:
  void start(int64_t i) {
    const uint64_t* mask = scene_.mask(i);
    int64_t area = 0;
    for (int64_t w = 0; w < scene_.mask_words(); ++w) area += popcount(mask[w]);
    seen_[i - begin_] = grid_points(mask, scene_.bounds, grids_.visibility, grids_.least_points);
    const int64_t lines = cover_lines(grids_, area);
    carried_[i - begin_] = grid_points(mask, scene_.bounds, lines, grids_.least_points);
  }

  void count(int64_t i, int64_t t) {
    const PointSet &seen = seen_[i - begin_], &carried = carried_[i - begin_];
    visibility_[i * scene_.length + t] = share_of(seen.x.size(), seen.first);
    pixels_.clear();
    for (size_t k = 0; k < carried.x.size(); ++k) {
      pixels_.push_back(nearest_pixel(scene_.bounds, {carried.x[k], carried.y[k]}));
    }
    covering_.add_pairs(pixels_, words_, scene_.begins[t], threshold_, pairs_[i]);
  }

  const SceneMasks& scene_;
  int64_t begin_, end_;
  Grids grids_;
  float threshold_;
  float* visibility_;
  std::vector<std::vector<Pair>>& pairs_;
  std::vector<PointSet> seen_, carried_;
  FrameWords words_;
  std::vector<uint8_t> flags_;
  std::vector<int32_t> pixels_;
  Covering covering_;
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> track_coverage(const Tensor& words, int64_t width, const Tensor& frames,
                                                          const Tensor& forward, const Tensor& backward,
                                                          int64_t visibility_grid, int64_t least_lines,
                                                          int64_t most_lines, int64_t area_per_line,
                                                          int64_t least_points, double threshold) {
  const Grids grids{visibility_grid, least_lines, most_lines, area_per_line, least_points};
  check_coverage(words, width, frames, forward, backward, grids);
  const int64_t height = forward.size(1), length = forward.size(0) + 1, number = words.size(0);
  const Tensor masks = torch::stable::contiguous(words), origin = torch::stable::contiguous(frames);
  const auto* frame = static_cast<const int64_t*>(origin.const_data_ptr());
  check_frames(frame, number, length, "frames", true, "track_coverage");
  Tensor visibility = torch::stable::new_zeros(masks, {number, length}, ScalarType::Float);
  const SceneMasks scene(static_cast<const uint64_t*>(masks.const_data_ptr()), frame, number, length,
                         Bounds(height, width));
  auto* seen = static_cast<float*>(visibility.mutable_data_ptr());
  std::vector<std::vector<Pair>> pairs(number);
  parallel_over(number, kPointsPerMask * kStepBytes * length, [&](int64_t begin, int64_t end) {
    Coverage part(scene, begin, end, grids, static_cast<float>(threshold), seen, pairs);
    Fields ahead(forward), back(backward);
    part.sweep(true, ahead, back);
    part.sweep(false, back, ahead);
    part.finish();
  });

  auto [offsets, columns, values] = compressed(pairs, masks);
  return {visibility, offsets, columns, values};
}

}  // namespace s2d::point_tracks

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def(
      "track_coverage(Tensor words, int width, Tensor frames, Tensor forward, Tensor backward, int visibility_grid, "
      "int least_lines, int most_lines, int area_per_line, int least_points, float threshold) -> (Tensor visibility, "
      "Tensor offsets, Tensor columns, Tensor values)");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("track_coverage", TORCH_BOX(&s2d::point_tracks::track_coverage));
}
