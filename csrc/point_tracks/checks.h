// point_tracks: what its operators refuse, in the same words on every device.
#pragma once

#include <cstdint>
#include <string>

#include "../common/check.h"
#include "point_tracks.h"

namespace s2d::point_tracks {

inline void check_device(const Tensor& first, const Tensor& other, const char* op, const char* name) {
  S2D_CHECK(first.is_cuda() == other.is_cuda() && first.get_device_index() == other.get_device_index(), op,
            std::string(name) + " on the device of the other arguments",
            other.is_cuda() ? "cuda:" + std::to_string(other.get_device_index()) : "cpu");
}

inline void check_frame_size(int64_t height, int64_t width, const char* op) {
  S2D_CHECK(height < (1 << 22) && width < (1 << 22) && height * width < (1 << 30), op,
            "frames of fewer than 2^30 pixels", height * width);
}

inline void check_scene(const Tensor& forward, const Tensor& backward, const char* op) {
  const auto type = forward.scalar_type();
  S2D_CHECK(forward.dim() == 4 && forward.size(3) == 2 && (type == ScalarType::Float || type == ScalarType::Half), op,
            "forward float32 or float16 [T - 1, H, W, 2]", shape_of(forward));
  S2D_CHECK(backward.scalar_type() == type && backward.dim() == 4 && backward.size(0) == forward.size(0) &&
                backward.size(1) == forward.size(1) && backward.size(2) == forward.size(2) && backward.size(3) == 2,
            op, "backward of the shape and type of forward", shape_of(backward));
  check_frame_size(forward.size(1), forward.size(2), op);
  check_device(forward, backward, op, "backward");
}

inline void check_points(const Tensor& points, const Tensor& frame, const Tensor& forward, const Tensor& backward) {
  check_scene(forward, backward, "track_points");
  S2D_CHECK(points.scalar_type() == ScalarType::Float && points.dim() == 2 && points.size(1) == 2, "track_points",
            "points float32 [G, 2]", shape_of(points));
  S2D_CHECK(frame.scalar_type() == ScalarType::Long && frame.dim() == 1 && frame.size(0) == points.size(0),
            "track_points", "frame int64 [G]", shape_of(frame));
  check_device(forward, points, "track_points", "points");
  check_device(forward, frame, "track_points", "frame");
}

// Masks as words [N, H, ceil(W/64)], each of a frame.
inline void check_masks(const Tensor& words, int64_t width, const Tensor& frames, const char* op) {
  S2D_CHECK(words.scalar_type() == ScalarType::Long && words.dim() == 3 && words.size(2) == words_for(width), op,
            "masks as words [N, H, ceil(W/64)]", shape_of(words));
  S2D_CHECK(frames.scalar_type() == ScalarType::Long && frames.dim() == 1 && frames.size(0) == words.size(0), op,
            "frames int64 [N]", shape_of(frames));
  check_device(words, frames, op, "frames");
}

inline void check_coverage(const Tensor& words, int64_t width, const Tensor& frames, const Tensor& forward,
                           const Tensor& backward, const Grids& grids) {
  check_scene(forward, backward, "track_coverage");
  check_masks(words, width, frames, "track_coverage");
  S2D_CHECK(words.size(1) == forward.size(1) && width == forward.size(2), "track_coverage",
            "masks [N, H, W] of the size of forward", shape_of(words));
  check_device(forward, words, "track_coverage", "masks");
  for (const int64_t count : {grids.visibility, grids.least, grids.most, grids.area_per_line, grids.least_points}) {
    S2D_CHECK(count > 0, "track_coverage", "grids and counts of at least 1", count);
  }
}

// Tracks of a dense set of points, frame by frame: [T, G, 2] and [T, G].
inline void check_given(const Tensor& words, int64_t width, const Tensor& frames, const Tensor& tracks,
                        const Tensor& visible) {
  check_masks(words, width, frames, "coverage_of_tracks");
  check_frame_size(words.size(1), width, "coverage_of_tracks");
  S2D_CHECK(tracks.scalar_type() == ScalarType::Float && tracks.dim() == 3 && tracks.size(2) == 2, "coverage_of_tracks",
            "tracks float32 [T, G, 2]", shape_of(tracks));
  S2D_CHECK(visible.scalar_type() == ScalarType::Byte && visible.dim() == 2 && visible.size(0) == tracks.size(0) &&
                visible.size(1) == tracks.size(1),
            "coverage_of_tracks", "visible as bytes [T, G]", shape_of(visible));
  S2D_CHECK(tracks.size(1) < (int64_t{1} << 31) - 1024, "coverage_of_tracks", "fewer than 2^31 points", tracks.size(1));
  check_device(words, tracks, "coverage_of_tracks", "tracks");
  check_device(words, visible, "coverage_of_tracks", "visible");
}

// Frames of points or masks, on the host.
inline void check_frames(const int64_t* frames, int64_t number, int64_t length, const char* argument, bool ascending,
                         const char* op) {
  for (int64_t i = 0; i < number; ++i) {
    S2D_CHECK(frames[i] >= 0 && frames[i] < length, op,
              std::string(argument) + " in [0, " + std::to_string(length) + ")", frames[i]);
    S2D_CHECK(!ascending || i == 0 || frames[i] >= frames[i - 1], op, std::string(argument) + " ascending", frames[i]);
  }
}

}  // namespace s2d::point_tracks
