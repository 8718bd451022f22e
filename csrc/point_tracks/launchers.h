// point_tracks: what the CUDA launchers take. Device pointers and a cudaStream_t; definitions in point_tracks.cu.
#pragma once

#include <cstdint>

#include "point_tracks.h"

namespace s2d::point_tracks {

// Flow both ways [T - 1, H, W, 2], float32 or float16 (`half`), beginning at a multiple of eight bytes.
struct Flows {
  const void *forward, *backward;
  bool half;
  int64_t length, height, width;  // length is T
};

// points [G, 2], frames [G], tracks [T, G, 2], visible [T, G].
void launch_tracks(const float* points, const int64_t* frames, const Flows& flows, float* tracks, uint8_t* visible,
                   int64_t number, void* stream);

// What is known of a mask before its points set out.
struct Plan {
  int32_t left, top, right, bottom;  // of its pixels; left > right where it has none
  int32_t lines[2], points[2];       // of its grids, for visibility and for coverage
  int64_t first;                     // of its slots for points
};

// A point on its way: its place, and the flow there that leads on.
struct alignas(16) Traveller {
  Vector place, onward;
};

// A pair that was found, in no order: the `position`-th of its row, counted from the row's own frame.
struct alignas(16) Found {
  int32_t row, position, column;
  float value;
};

// Whether a run's pairs are all there: their number, or one of these.
enum Status : int64_t { kBadFrames = -1, kTooSmall = -2 };

// What a run counts, zero before.
struct Totals {
  int64_t status;
  unsigned long long points, pairs;  // slots that it takes, whether they are there or not
  int64_t bad;                       // the first mask whose frame is out of order or out of the scene, or N
};

// Masks words [N, H, ceil(W/64)] with frames [N], N > 0, and the memory of a run: begins [T + 1], plans [N], memory and
// pixels [2, slots], pool [pairs], counts [2, N]. A slot of memory is a Traveller, or the int32 of a given track.
struct Coverage {
  const uint64_t* masks;
  const int64_t* frames;
  int64_t number;
  float threshold;
  int64_t slots, pairs;
  Totals* totals;
  int32_t* begins;
  Plan* plans;
  void* memory;
  int32_t* pixels;
  Found* pool;
  int32_t* counts;
};

// places [T, G, 2] and visible [T, G]: tracks of G points.
struct Tracks {
  const float* places;
  const uint8_t* visible;
  int64_t length, number, height, width;
};

// visibility [N, T], offsets [N + 1]. Totals say how it went.
void launch_coverage(const Coverage& coverage, const Flows& flows, const Grids& grids, float* visibility,
                     int64_t* offsets, void* stream);
void launch_coverage(const Coverage& coverage, const Tracks& tracks, float* visibility, int64_t* offsets, void* stream);
// columns and values [pairs], of a run that found so many.
void launch_place(const char* op, const Coverage& coverage, const int64_t* offsets, int64_t pairs, int64_t* columns,
                  float* values, void* stream);

}  // namespace s2d::point_tracks
