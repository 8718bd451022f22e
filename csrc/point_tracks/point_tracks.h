// point_tracks: one step of a point, shared by the CPU and GPU kernels, and the rule of its grids.
#pragma once

#include <cstdint>

#include "../common/flow.h"

namespace s2d::point_tracks {

struct Step {
  Vector position;
  bool seen;
};

// Where flow carries a point, and whether it is still seen there.
S2D_HOST_DEVICE Step advance(const float* flow, const float* reverse, const Bounds& bounds, Vector p) {
  const Vector f = lookup(flow, bounds, p);
  const Vector there{p.x + f.x, p.y + f.y};
  const bool seen = bounds.hold(there) & agree(f, lookup(reverse, bounds, there));
  return {there, seen};
}

// Centre of a cell of a grid of `lines` over `size` pixels.
S2D_HOST_DEVICE float grid_line(int64_t index, int64_t lines, int64_t size) {
  const float scale = static_cast<float>(static_cast<double>(size) / static_cast<double>(lines));
  return (static_cast<float>(index) + 0.5f) * scale - 0.5f;
}

// Lines of a mask's grid for what it covers.
S2D_HOST_DEVICE int64_t cover_lines(int64_t area, int64_t least, int64_t most, int64_t area_per_line) {
  const int64_t wanted = area / area_per_line < most ? area / area_per_line : most;
  return wanted > least ? wanted : least;
}

}  // namespace s2d::point_tracks
