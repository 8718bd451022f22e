// The points of a mask, in the slots of a block: those of grids, which flow carries, and those of given tracks.
//
// Both say how many points a mask has (`plan`), put them into slots (`gather`), and then, frame after frame, where the
// point of a slot is and whether it is visible (`at`). A slot is always one thread's.
#pragma once

#include "sweep.cuh"

namespace s2d::point_tracks {

constexpr int kThreads = 256;
constexpr int32_t kOutside = -1;

// Where a point is in a frame: a pixel or kOutside.
struct Sighting {
  int32_t pixel;
  bool visible;
};

__device__ __forceinline__ bool bit_of(const uint64_t* mask, int32_t words_per_row, int32_t row, int32_t column) {
  return mask[row * words_per_row + column / kWordBits] >> (column % kWordBits) & 1;
}

// Sum over the block; `shared` is 0 before and after.
__device__ __forceinline__ int block_sum(int value, int* shared) {
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) atomicAdd(shared, value);
  __syncthreads();
  const int total = *shared;
  __syncthreads();
  if (threadIdx.x == 0) *shared = 0;
  __syncthreads();
  return total;
}

// A grid over the frame, as the points of a block's threads.
struct Grid {
  int32_t rows, columns;

  __device__ Grid(const Bounds& bounds, int64_t lines)
      : rows(static_cast<int32_t>(min(lines, int64_t{bounds.height}))),
        columns(static_cast<int32_t>(min(lines, int64_t{bounds.width}))) {}

  __device__ bool is_finest(const Bounds& bounds) const { return rows == bounds.height && columns == bounds.width; }

  // Calls body(point) for this thread's share of the points that lie in the mask.
  template <typename Body>
  __device__ void each(const uint64_t* mask, const Bounds& bounds, const Body& body) const {
    const auto words_per_row = static_cast<int32_t>(words_for(bounds.width));
    for (int32_t k = threadIdx.x; k < rows * columns; k += kThreads) {
      const Vector point{grid_line(k % columns, columns, bounds.width), grid_line(k / columns, rows, bounds.height)};
      if (bit_of(mask, words_per_row, nearest(point.y), nearest(point.x))) body(point);
    }
  }
};

// Slots [0, points[0]) are of the grid for visibility, those after them of the grid for coverage. A point that is lost
// is outside from then on.
template <typename Value>
struct FlowPoints {
  static constexpr bool kTwoSets = true;
  using Slot = Traveller;

  Scene<Value> scene;
  Grids grids;
  Bounds bounds;

  __device__ int32_t length() const { return scene.length; }

  __device__ void plan(const uint64_t* mask, int area, int64_t, Plan& plan, int* shared) const {
    for (int set = 0; set < 2; ++set) {
      for (int64_t lines = set ? cover_lines(grids, area) : grids.visibility;; lines *= 2) {
        const Grid grid(bounds, lines);
        int inside = 0;
        grid.each(mask, bounds, [&](Vector) { ++inside; });
        plan.lines[set] = max(grid.rows, grid.columns);
        plan.points[set] = block_sum(inside, shared);
        if (plan.points[set] >= grids.least_points || grid.is_finest(bounds)) break;
      }
    }
  }

  // `next` holds the first free slot of each set.
  __device__ void gather(const uint64_t* mask, const Plan& plan, const Sweep<Value>& sweep, int32_t start, Slot* slots,
                         int32_t* pixels, int* next) const {
    for (int set = 0; set < 2; ++set) {
      Grid(bounds, plan.lines[set]).each(mask, bounds, [&](Vector place) {
        const int slot = atomicAdd(&next[set], 1);
        Traveller point{place, {0.0f, 0.0f}};
        sweep.start(point, bounds, start);
        slots[slot] = point;
        pixels[slot] = nearest_pixel(bounds, place);
      });
    }
  }

  __device__ Sighting at(const Sweep<Value>& sweep, int32_t step, int32_t start, Slot& slot, int32_t& pixel) const {
    if (pixel == kOutside || step == start) return {pixel, pixel != kOutside};
    Traveller point = slot;
    const bool seen = sweep.carry(point, bounds, step);
    if (seen) slot = point;
    pixel = seen ? nearest_pixel(bounds, point.place) : kOutside;
    return {pixel, seen};
  }

  __device__ Sweep<Value> sweep(bool up) const { return {scene, up}; }
};

// All slots are of one set: the points of tracks [T, G, 2], visible [T, G], that are visible in the mask. A slot holds
// the number of its point.
struct GivenPoints {
  static constexpr bool kTwoSets = false;
  using Slot = int32_t;

  const float2* tracks;
  const uint8_t* visible;
  int32_t frames, number;
  Bounds bounds;

  __device__ int32_t length() const { return frames; }
  __device__ Way sweep(bool up) const { return {frames, up}; }

  __device__ Sighting sighting(int32_t frame, int32_t g) const {
    const int64_t at = static_cast<int64_t>(frame) * number + g;
    const float2 there = tracks[at];
    const Vector place{there.x, there.y};
    const bool inside = bounds.hold(place);
    return {inside ? nearest_pixel(bounds, place) : kOutside, inside && visible[at]};
  }

  // Calls body(point, pixel) for this thread's share of the points in the mask.
  template <typename Body>
  __device__ void each(const uint64_t* mask, int32_t frame, const Body& body) const {
    const auto words_per_row = static_cast<int32_t>(words_for(bounds.width));
    for (int32_t g = threadIdx.x; g < number; g += kThreads) {
      const Sighting seen = sighting(frame, g);
      if (seen.visible && bit_of(mask, words_per_row, seen.pixel / bounds.width, seen.pixel % bounds.width)) {
        body(g, seen.pixel);
      }
    }
  }

  __device__ void plan(const uint64_t* mask, int, int64_t frame, Plan& plan, int* shared) const {
    int inside = 0;
    each(mask, static_cast<int32_t>(frame), [&](int32_t, int32_t) { ++inside; });
    plan.points[0] = block_sum(inside, shared);
  }

  __device__ void gather(const uint64_t* mask, const Plan&, const Way& way, int32_t start, Slot* slots, int32_t* pixels,
                         int* next) const {
    each(mask, way.frame_of(start), [&](int32_t g, int32_t pixel) {
      const int slot = atomicAdd(&next[0], 1);
      slots[slot] = g;
      pixels[slot] = pixel;
    });
  }

  __device__ Sighting at(const Way& way, int32_t step, int32_t, const Slot& slot, int32_t& pixel) const {
    const Sighting seen = sighting(way.frame_of(step), slot);
    pixel = seen.pixel;
    return seen;
  }
};

}  // namespace s2d::point_tracks
