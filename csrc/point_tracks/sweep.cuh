// A scene's flow as one way through time sees it, and a step of a point.
#pragma once

#include "../common/launch.cuh"
#include "launchers.h"

namespace s2d::point_tracks {

template <typename Value>
struct Scene {
  const Value *forward, *backward;
  int64_t field;  // values of one
  int32_t length;
};

// One way through the frames: step s is its s-th frame.
struct Way {
  int32_t length;
  bool up;

  __device__ int32_t frame_of(int32_t step) const { return up ? step : length - 1 - step; }
  __device__ int32_t step_of(int32_t frame) const { return frame_of(frame); }
};

// One way along the flow.
template <typename Value>
struct Sweep : Way {
  const Value *onward, *back;  // on the grid of step 0: what leads to the step after, and what leads to the one before
  int64_t stride;              // to the next step's

  __device__ Sweep(const Scene<Value>& scene, bool up)
      : Way{scene.length, up},
        onward(up ? scene.forward : scene.backward + scene.field * (scene.length - 2)),
        back(up ? scene.backward - scene.field : scene.forward + scene.field * (scene.length - 1)),
        stride(up ? scene.field : -scene.field) {}

  // A point of this step's frame, and whether it lies in the frame.
  __device__ bool start(Traveller& point, const Bounds& bounds, int32_t step) const {
    if (step + 1 < length) point.onward = lookup(onward + stride * step, bounds, point.place);
    return bounds.hold(point.place);
  }

  // Carries a point to this step, or leaves it where it is and says that it was lost.
  __device__ bool carry(Traveller& point, const Bounds& bounds, int32_t step) const {
    const Vector there{point.place.x + point.onward.x, point.place.y + point.onward.y};
    const Cell cell = cell_of(bounds, there);
    // The last frame's points go nowhere and read something else: a branch would hold up the other loads.
    const Vector next = interpolated(onward + stride * min(step, length - 2), cell);
    const bool seen = bounds.hold(there) & agree(point.onward, interpolated(back + stride * step, cell));
    if (seen) point = {there, next};
    return seen;
  }
};

template <typename Value>
Scene<Value> scene_of(const Flows& flows) {
  return {static_cast<const Value*>(flows.forward), static_cast<const Value*>(flows.backward),
          flows.height * flows.width * 2, static_cast<int32_t>(flows.length)};
}

}  // namespace s2d::point_tracks
