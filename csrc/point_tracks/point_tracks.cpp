// point_tracks on the CPU: schemas of the room and its CPU kernels.
//
// Time is the outer loop, so that all points of a step read the same two flow fields (6.6 MB at 480p in float32, where
// a scene has hundreds); a float16 scene is widened one field at a time. A step of a point is eight loads of eight
// bytes at random places: it is bound by their latency, which independent points of one loop hide. A thread owns points
// (or masks) for all frames, so threads never wait for each other; they share nothing but the flow.
//
// Coverage keeps the live points of a mask in one compact stretch. What a frame's masks cover stands in one 64-bit word
// a pixel (as many words as it takes beyond 64 masks), so that one load tells all masks a point landed in.

#include "point_tracks.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "../common/check.h"
#include "../common/flow_avx512.h"
#include "../common/parallel.h"
#include "../common/simd.h"

namespace s2d::point_tracks {
namespace {

// ---- one step of many points ----

S2D_LOOP void advance_all_loop(const float* flow, const float* reverse, const Bounds& bounds, float* x, float* y,
                               uint8_t* seen, int64_t number) {
  for (int64_t i = 0; i < number; ++i) {
    const Step step = advance(flow, reverse, bounds, {x[i], y[i]});
    x[i] = step.position.x;
    y[i] = step.position.y;
    seen[i] = step.seen;
  }
}

void advance_all_portable(const float* flow, const float* reverse, const Bounds& bounds, float* x, float* y,
                          uint8_t* seen, int64_t number) {
  advance_all_loop(flow, reverse, bounds, x, y, seen, number);
}

#if defined(S2D_X86)
S2D_TARGET_AVX512 void advance_all_avx512(const float* flow, const float* reverse, const Bounds& bounds, float* x,
                                          float* y, uint8_t* seen, int64_t number) {
  for (int64_t i = 0; i < number; i += 16) {
    const __mmask16 here = number - i < 16 ? (1u << (number - i)) - 1 : 0xffff;
    const Vectors p{_mm512_maskz_loadu_ps(here, x + i), _mm512_maskz_loadu_ps(here, y + i)};
    Vectors there;
    const __mmask16 good = consistent16(reverse, bounds, p, lookup16(flow, bounds, p), there);
    _mm512_mask_storeu_ps(x + i, here, there.x);
    _mm512_mask_storeu_ps(y + i, here, there.y);
    _mm_mask_storeu_epi8(seen + i, here, _mm_maskz_set1_epi8(good, 1));
  }
}
#endif

using AdvanceAll = void (*)(const float*, const float*, const Bounds&, float*, float*, uint8_t*, int64_t);

AdvanceAll advance_all() {
#if defined(S2D_X86)
  if (isa() == Isa::avx512) return advance_all_avx512;
#endif
  return advance_all_portable;
}

// ---- flow fields of a scene ----

S2D_LOOP void widen_loop(const _Float16* in, float* out, int64_t number) {
  for (int64_t i = 0; i < number; ++i) out[i] = static_cast<float>(in[i]);
}
S2D_MULTIVERSION(void, widen, (const _Float16* in, float* out, int64_t number), (in, out, number))

// Hands out the fields one at a time as float32.
class Scene {
 public:
  Scene(const Tensor& fields)
      : fields_(torch::stable::contiguous(fields)),
        values_(product_of(fields_, 1, 4)),
        half_(fields_.scalar_type() == ScalarType::Half) {
    if (half_) buffer_.resize(values_);
  }

  const float* field(int64_t t) {
    if (!half_) return static_cast<const float*>(fields_.const_data_ptr()) + t * values_;
    const auto* in = static_cast<const _Float16*>(fields_.const_data_ptr()) + t * values_;
    widen(in, buffer_.data(), values_);
    return buffer_.data();
  }

 private:
  Tensor fields_;
  int64_t values_;
  bool half_;
  std::vector<float> buffer_;
};

void check_scene(const Tensor& forward, const Tensor& backward, const char* op) {
  const auto type = forward.scalar_type();
  S2D_CHECK(forward.dim() == 4 && forward.size(3) == 2 && (type == ScalarType::Float || type == ScalarType::Half), op,
            "forward float32 or float16 [T - 1, H, W, 2]", shape_of(forward));
  S2D_CHECK(backward.scalar_type() == type && backward.dim() == 4 && backward.size(0) == forward.size(0) &&
                backward.size(1) == forward.size(1) && backward.size(2) == forward.size(2) && backward.size(3) == 2,
            op, "backward of the shape and type of forward", shape_of(backward));
  S2D_CHECK(forward.size(1) < (1 << 22) && forward.size(2) < (1 << 22) && forward.size(1) * forward.size(2) < (1 << 30),
            op, "frames of fewer than 2^30 pixels", shape_of(forward));
}

// Points to a thread's turn: their coordinates and flags stay in the L1 cache.
constexpr int64_t kBlock = 1024;

// A step costs about as much as moving this many bytes.
constexpr int64_t kStepBytes = 256;

// One step of a block of points in rows of their frames: those that have started move on while they are seen, and stay
// where they were last seen. `sign` is +1 as time runs up, -1 as it runs down.
void step_block(const float* flow, const float* reverse, const Bounds& bounds, const int64_t* frames, int64_t from,
                int64_t sign, const Vector* place, const uint8_t* seen, Vector* next, uint8_t* next_seen,
                int64_t number) {
  float x[kBlock], y[kBlock];
  uint8_t ok[kBlock];
  int32_t moving[kBlock];
  int64_t count = 0;
  for (int64_t i = 0; i < number; ++i) {
    if (sign * frames[i] > sign * from) continue;
    next[i] = place[i];
    next_seen[i] = 0;
    moving[count] = static_cast<int32_t>(i);
    x[count] = place[i].x;
    y[count] = place[i].y;
    count += seen[i];
  }
  advance_all()(flow, reverse, bounds, x, y, ok, count);
  for (int64_t k = 0; k < count; ++k) {
    if (!ok[k]) continue;
    next[moving[k]] = {x[k], y[k]};
    next_seen[moving[k]] = 1;
  }
}

// ---- coverage ----

// About as many points as a mask has, for the choice of how many masks a thread takes at once.
constexpr int64_t kPointsPerMask = 256;

struct Pair {
  int64_t column;
  float value;
};

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
    advance_all()(flow, reverse, bounds, x.data(), y.data(), seen.data(), x.size());
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

struct Grids {
  int64_t visibility, least, most, area_per_line, least_points;
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
  int64_t planes() const { return planes_; }
  const uint64_t* at(int32_t pixel) const { return words_.data() + pixel * planes_; }

 private:
  Bounds bounds_;
  int64_t number_ = 0, planes_ = 0;
  std::vector<uint64_t> words_;
};

// Distinct pixels of the points, sorted.
void distinct_pixels(const PointSet& points, const Bounds& bounds, std::vector<int32_t>& pixels) {
  pixels.clear();
  for (size_t i = 0; i < points.x.size(); ++i) pixels.push_back(nearest_pixel(bounds, {points.x[i], points.y[i]}));
  // Grid order is nearly sorted already, and then this costs one pass.
  if (!std::is_sorted(pixels.begin(), pixels.end())) std::sort(pixels.begin(), pixels.end());
  pixels.erase(std::unique(pixels.begin(), pixels.end()), pixels.end());
}

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
  void sweep(bool up, Scene& flow, Scene& reverse) {
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
    const int64_t lines = cover_lines(area, grids_.least, grids_.most, grids_.area_per_line);
    carried_[i - begin_] = grid_points(mask, scene_.bounds, lines, grids_.least_points);
  }

  void count(int64_t i, int64_t t) {
    const PointSet& seen = seen_[i - begin_];
    if (seen.first > 0) {
      const double share = static_cast<double>(seen.x.size()) / static_cast<double>(seen.first);
      visibility_[i * scene_.length + t] = static_cast<float>(share);
    }
    distinct_pixels(carried_[i - begin_], scene_.bounds, pixels_);
    if (pixels_.empty() || words_.number() == 0) return;
    hits_.assign(words_.number(), 0);
    for (const int32_t pixel : pixels_) {
      const uint64_t* word = words_.at(pixel);
      for (int64_t plane = 0; plane < words_.planes(); ++plane) {
        for (uint64_t rest = word[plane]; rest; rest &= rest - 1) ++hits_[plane * kWordBits + lowest_bit(rest)];
      }
    }
    const auto total = static_cast<double>(pixels_.size());
    for (int64_t j = 0; j < words_.number(); ++j) {
      const auto share = static_cast<float>(static_cast<double>(hits_[j]) / total);
      if (share > threshold_) pairs_[i].push_back({scene_.begins[t] + j, share});
    }
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
  std::vector<int64_t> hits_;
};

void check_frames(const int64_t* frames, int64_t number, int64_t length, bool ascending, const char* op) {
  for (int64_t i = 0; i < number; ++i) {
    S2D_CHECK(frames[i] >= 0 && frames[i] < length, op, "frames in [0, T)", frames[i]);
    S2D_CHECK(!ascending || i == 0 || frames[i] >= frames[i - 1], op, "frames ascending", frames[i]);
  }
}

}  // namespace

std::tuple<Tensor, Tensor> track_points(const Tensor& points, const Tensor& frame, const Tensor& forward,
                                        const Tensor& backward) {
  check_scene(forward, backward, "track_points");
  S2D_CHECK(points.scalar_type() == ScalarType::Float && points.dim() == 2 && points.size(1) == 2, "track_points",
            "points float32 [G, 2]", shape_of(points));
  S2D_CHECK(frame.scalar_type() == ScalarType::Long && frame.dim() == 1 && frame.size(0) == points.size(0),
            "track_points", "frame int64 [G]", shape_of(frame));
  const Tensor starts = torch::stable::contiguous(points), origin = torch::stable::contiguous(frame);
  const int64_t number = points.size(0), length = forward.size(0) + 1;
  const Bounds bounds(forward.size(1), forward.size(2));
  Tensor tracks = torch::stable::new_empty(starts, {length, number, 2}, ScalarType::Float);
  Tensor visible = torch::stable::new_empty(starts, {length, number}, ScalarType::Byte);
  const auto* given = static_cast<const Vector*>(starts.const_data_ptr());
  const auto* frames = static_cast<const int64_t*>(origin.const_data_ptr());
  auto* place = static_cast<Vector*>(tracks.mutable_data_ptr());
  auto* seen = static_cast<uint8_t*>(visible.mutable_data_ptr());
  check_frames(frames, number, length, false, "track_points");

  // Every row starts as the given points, which is right at each point's own frame; the sweeps write the others.
  parallel_over(length, number * 9, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      std::copy(given, given + number, place + t * number);
      for (int64_t g = 0; g < number; ++g) seen[t * number + g] = frames[g] == t && bounds.hold(given[g]);
    }
  });
  parallel_over((number + kBlock - 1) / kBlock, kBlock * kStepBytes * length, [&](int64_t begin, int64_t end) {
    Scene leads(forward), returns(backward);
    for (const bool up : {true, false}) {
      for (int64_t step = 1; step < length; ++step) {
        const int64_t to = up ? step : length - 1 - step, from = up ? to - 1 : to + 1, field = up ? from : to;
        const float *ahead = leads.field(field), *back = returns.field(field);
        for (int64_t g = begin * kBlock; g < std::min(end * kBlock, number); g += kBlock) {
          const int64_t count = std::min(kBlock, number - g);
          step_block(up ? ahead : back, up ? back : ahead, bounds, frames + g, from, up ? 1 : -1,
                     place + from * number + g, seen + from * number + g, place + to * number + g,
                     seen + to * number + g, count);
        }
      }
    }
  });
  return {tracks, visible};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> track_coverage(const Tensor& words, int64_t width, const Tensor& frames,
                                                          const Tensor& forward, const Tensor& backward,
                                                          int64_t visibility_grid, int64_t least_lines,
                                                          int64_t most_lines, int64_t area_per_line,
                                                          int64_t least_points, double threshold) {
  check_scene(forward, backward, "track_coverage");
  const int64_t height = forward.size(1), length = forward.size(0) + 1;
  S2D_CHECK(words.scalar_type() == ScalarType::Long && words.dim() == 3 && words.size(1) == height &&
                width == forward.size(2) && words.size(2) == words_for(width),
            "track_coverage", "masks [N, H, W] of the size of forward", shape_of(words));
  const int64_t number = words.size(0);
  S2D_CHECK(frames.scalar_type() == ScalarType::Long && frames.dim() == 1 && frames.size(0) == number, "track_coverage",
            "frames int64 [N]", shape_of(frames));
  S2D_CHECK(visibility_grid > 0 && least_lines > 0 && most_lines > 0 && area_per_line > 0 && least_points > 0,
            "track_coverage", "grids and counts of at least 1", visibility_grid);
  const Tensor masks = torch::stable::contiguous(words), origin = torch::stable::contiguous(frames);
  const auto* frame = static_cast<const int64_t*>(origin.const_data_ptr());
  check_frames(frame, number, length, true, "track_coverage");
  Tensor visibility = torch::stable::new_zeros(masks, {number, length}, ScalarType::Float);
  const SceneMasks scene(static_cast<const uint64_t*>(masks.const_data_ptr()), frame, number, length,
                         Bounds(height, width));
  const Grids grids{visibility_grid, least_lines, most_lines, area_per_line, least_points};
  auto* seen = static_cast<float*>(visibility.mutable_data_ptr());
  std::vector<std::vector<Pair>> pairs(number);
  parallel_over(number, kPointsPerMask * kStepBytes * length, [&](int64_t begin, int64_t end) {
    Coverage part(scene, begin, end, grids, static_cast<float>(threshold), seen, pairs);
    Scene ahead(forward), back(backward);
    part.sweep(true, ahead, back);
    part.sweep(false, back, ahead);
    part.finish();
  });

  Tensor offsets = torch::stable::new_empty(masks, {number + 1}, ScalarType::Long);
  auto* offset = static_cast<int64_t*>(offsets.mutable_data_ptr());
  offset[0] = 0;
  for (int64_t i = 0; i < number; ++i) offset[i + 1] = offset[i] + static_cast<int64_t>(pairs[i].size());
  Tensor columns = torch::stable::new_empty(masks, {offset[number]}, ScalarType::Long);
  Tensor values = torch::stable::new_empty(masks, {offset[number]}, ScalarType::Float);
  auto* column = static_cast<int64_t*>(columns.mutable_data_ptr());
  auto* value = static_cast<float*>(values.mutable_data_ptr());
  for (const auto& row : pairs) {
    for (const Pair& pair : row) {
      *column++ = pair.column;
      *value++ = pair.value;
    }
  }
  return {visibility, offsets, columns, values};
}

}  // namespace s2d::point_tracks

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def(
      "track_points(Tensor points, Tensor frame, Tensor forward, Tensor backward) -> (Tensor tracks, Tensor visible)");
  library.def(
      "track_coverage(Tensor words, int width, Tensor frames, Tensor forward, Tensor backward, int visibility_grid, "
      "int least_lines, int most_lines, int area_per_line, int least_points, float threshold) -> (Tensor visibility, "
      "Tensor offsets, Tensor columns, Tensor values)");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("track_points", TORCH_BOX(&s2d::point_tracks::track_points));
  library.impl("track_coverage", TORCH_BOX(&s2d::point_tracks::track_coverage));
}
