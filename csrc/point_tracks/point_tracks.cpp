// point_tracks on the CPU: points carried through a scene.
//
// Time is the outer loop, so that all points of a step read the same two flow fields (6.6 MB at 480p in float32, where
// a scene has hundreds); a float16 scene is widened one field at a time. A step of a point reads four places that only
// the last step told: it is bound by their latency, which independent points of one loop hide. A thread owns points for
// all frames, so threads never wait for each other.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "../common/parallel.h"
#include "checks.h"
#include "steps.h"

namespace s2d::point_tracks {
namespace {

// Points to a thread's turn: their coordinates and flags stay in the L1 cache.
constexpr int64_t kBlock = 1024;

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
  advance_all(flow, reverse, bounds, x, y, ok, count);
  for (int64_t k = 0; k < count; ++k) {
    if (!ok[k]) continue;
    next[moving[k]] = {x[k], y[k]};
    next_seen[moving[k]] = 1;
  }
}

}  // namespace

std::tuple<Tensor, Tensor> track_points(const Tensor& points, const Tensor& frame, const Tensor& forward,
                                        const Tensor& backward) {
  check_points(points, frame, forward, backward);
  const Tensor starts = torch::stable::contiguous(points), origin = torch::stable::contiguous(frame);
  const int64_t number = points.size(0), length = forward.size(0) + 1;
  const Bounds bounds(forward.size(1), forward.size(2));
  Tensor tracks = torch::stable::new_empty(starts, {length, number, 2}, ScalarType::Float);
  Tensor visible = torch::stable::new_empty(starts, {length, number}, ScalarType::Byte);
  const auto* given = static_cast<const Vector*>(starts.const_data_ptr());
  const auto* frames = static_cast<const int64_t*>(origin.const_data_ptr());
  auto* place = static_cast<Vector*>(tracks.mutable_data_ptr());
  auto* seen = static_cast<uint8_t*>(visible.mutable_data_ptr());
  check_frames(frames, number, length, "frame", false, "track_points");

  // Every row starts as the given points, which is right at each point's own frame; the sweeps write the others.
  parallel_over(length, number * 9, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      std::copy(given, given + number, place + t * number);
      for (int64_t g = 0; g < number; ++g) seen[t * number + g] = frames[g] == t && bounds.hold(given[g]);
    }
  });
  parallel_over((number + kBlock - 1) / kBlock, kBlock * kStepBytes * length, [&](int64_t begin, int64_t end) {
    Fields leads(forward), returns(backward);
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

}  // namespace s2d::point_tracks

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def(
      "track_points(Tensor points, Tensor frame, Tensor forward, Tensor backward) -> (Tensor tracks, Tensor visible)");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("track_points", TORCH_BOX(&s2d::point_tracks::track_points));
}
