// point_tracks: one step of a point and the rule of a mask's grids, shared by the CPU and GPU kernels.
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

// Lines of a mask's two grids, as the operator takes them, and how many points make a grid fine enough.
struct Grids {
  int64_t visibility, least, most, area_per_line, least_points;
};

// Centre of a cell of a grid of `lines` over `size` pixels.
S2D_HOST_DEVICE float grid_line(int64_t index, int64_t lines, int64_t size) {
  const float scale = static_cast<float>(static_cast<double>(size) / static_cast<double>(lines));
  return (static_cast<float>(index) + 0.5f) * scale - 0.5f;
}

// Lines of a mask's grid for what it covers.
S2D_HOST_DEVICE int64_t cover_lines(const Grids& grids, int64_t area) {
  const int64_t wanted = area / grids.area_per_line < grids.most ? area / grids.area_per_line : grids.most;
  return wanted > grids.least ? wanted : grids.least;
}

}  // namespace s2d::point_tracks
