// point_tracks: binds the CUDA launchers to torch's CUDA dispatch key.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <tuple>

#include "../common/binding.h"
#include "checks.h"
#include "launchers.h"

namespace s2d::point_tracks {
namespace {

// What a run has room for at first. A run that needed more is done again with what it needs.
constexpr int64_t kPointsPerMask = 512, kPairsPerMaskAndFrame = 2;

Flows flows_of(const Tensor& forward, const Tensor& backward) {
  return {forward.const_data_ptr(), backward.const_data_ptr(), forward.scalar_type() == ScalarType::Half,
          forward.size(0) + 1,      forward.size(1),           forward.size(2)};
}

std::tuple<Tensor, Tensor> track_points(const Tensor& points, const Tensor& frame, const Tensor& forward,
                                        const Tensor& backward) {
  check_points(points, frame, forward, backward);
  const DeviceGuard guard(forward.get_device_index());
  const Tensor starts = as_vectors(points), origin = torch::stable::contiguous(frame);
  const Tensor ahead = as_vectors(forward), back = as_vectors(backward);
  const int64_t number = points.size(0), length = forward.size(0) + 1;
  S2D_CHECK(number < (int64_t{1} << 31) - 1024, "track_points", "fewer than 2^31 points", number);
  Tensor tracks = torch::stable::new_empty(starts, {length, number, 2}, ScalarType::Float);
  Tensor visible = torch::stable::new_empty(starts, {length, number}, ScalarType::Byte);
  launch_tracks(in_of<float>(starts), in_of<int64_t>(origin), flows_of(ahead, back), out_of<float>(tracks),
                out_of<uint8_t>(visible), number, current_stream(starts));
  return {tracks, visible};
}

// Waits for the device.
int64_t value_of(Tensor tensor, int64_t index) {
  int64_t value = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_item_int64(torch::stable::narrow(tensor, 0, index, 1).get(), &value));
  return value;
}

// The memory of a run.
struct Scratch {
  Tensor totals, begins, plans, memory, pixels, pool, counts;

  Scratch(const Tensor& like, int64_t masks, int64_t length, int64_t slots, int64_t slot_bytes, int64_t pairs)
      : totals(torch::stable::new_zeros(like, {sizeof(Totals) / 8}, ScalarType::Long)),
        begins(torch::stable::new_empty(like, {length + 1}, ScalarType::Int)),
        plans(bytes(like, masks * sizeof(Plan))),
        memory(bytes(like, 2 * slots * slot_bytes)),
        pixels(torch::stable::new_empty(like, {2 * slots}, ScalarType::Int)),
        pool(bytes(like, pairs * sizeof(Found))),
        counts(torch::stable::new_empty(like, {2 * masks}, ScalarType::Int)) {}

  int64_t total(size_t offset) const { return value_of(totals, offset / 8); }

 private:
  static Tensor bytes(const Tensor& like, int64_t number) {
    return torch::stable::new_empty(like, {number}, ScalarType::Byte);
  }
};

// Runs `launch(coverage, visibility, offsets)` until there was room for all that it found.
template <typename Launch>
std::tuple<Tensor, Tensor, Tensor, Tensor> covered(const char* op, const Tensor& masks, const Tensor& frames,
                                                   int64_t length, int64_t slot_bytes, double threshold,
                                                   const Launch& launch) {
  const int64_t number = masks.size(0);
  S2D_CHECK(number < (1 << 30) && length < (1 << 30), op, "fewer than 2^30 masks and frames", number);
  Tensor visibility = torch::stable::new_empty(masks, {number, length}, ScalarType::Float);
  Tensor offsets = torch::stable::new_zeros(masks, {number + 1}, ScalarType::Long);
  const auto empty = [&](int64_t size, ScalarType type) { return torch::stable::new_empty(masks, {size}, type); };
  if (number == 0) return {visibility, offsets, empty(0, ScalarType::Long), empty(0, ScalarType::Float)};

  int64_t slots = kPointsPerMask * number, room = kPairsPerMaskAndFrame * number * length;
  while (true) {
    Scratch scratch(masks, number, length, slots, slot_bytes, room);
    const Coverage coverage{in_of<uint64_t>(masks),
                            in_of<int64_t>(frames),
                            number,
                            static_cast<float>(threshold),
                            slots,
                            room,
                            out_of<Totals>(scratch.totals),
                            out_of<int32_t>(scratch.begins),
                            out_of<Plan>(scratch.plans),
                            out_of<void>(scratch.memory),
                            out_of<int32_t>(scratch.pixels),
                            out_of<Found>(scratch.pool),
                            out_of<int32_t>(scratch.counts)};
    launch(coverage, out_of<float>(visibility), out_of<int64_t>(offsets));
    const int64_t pairs = scratch.total(offsetof(Totals, status));
    if (pairs == kBadFrames) {
      const int64_t frame = value_of(frames, scratch.total(offsetof(Totals, bad)));
      const bool outside = frame < 0 || frame >= length;
      S2D_CHECK(false, op, outside ? "frames in [0, " + std::to_string(length) + ")" : std::string("frames ascending"),
                frame);
    }
    if (pairs == kTooSmall) {
      slots = std::max(slots, scratch.total(offsetof(Totals, points)));
      room = std::max(room, scratch.total(offsetof(Totals, pairs)));
      continue;
    }
    Tensor columns = empty(pairs, ScalarType::Long), values = empty(pairs, ScalarType::Float);
    launch_place(op, coverage, in_of<int64_t>(offsets), pairs, out_of<int64_t>(columns), out_of<float>(values),
                 current_stream(masks));
    return {visibility, offsets, columns, values};
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> track_coverage(const Tensor& words, int64_t width, const Tensor& frames,
                                                          const Tensor& forward, const Tensor& backward,
                                                          int64_t visibility_grid, int64_t least_lines,
                                                          int64_t most_lines, int64_t area_per_line,
                                                          int64_t least_points, double threshold) {
  const Grids grids{visibility_grid, least_lines, most_lines, area_per_line, least_points};
  check_coverage(words, width, frames, forward, backward, grids);
  const DeviceGuard guard(words.get_device_index());
  const Tensor masks = torch::stable::contiguous(words), origin = torch::stable::contiguous(frames);
  const Tensor ahead = as_vectors(forward), back = as_vectors(backward);
  const Flows flows = flows_of(ahead, back);
  const auto launch = [&](const Coverage& coverage, float* visibility, int64_t* offsets) {
    launch_coverage(coverage, flows, grids, visibility, offsets, current_stream(masks));
  };
  return covered("track_coverage", masks, origin, flows.length, sizeof(Traveller), threshold, launch);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> coverage_of_tracks(const Tensor& words, int64_t width, const Tensor& frames,
                                                              const Tensor& tracks, const Tensor& visible,
                                                              double threshold) {
  check_given(words, width, frames, tracks, visible);
  const DeviceGuard guard(words.get_device_index());
  const Tensor masks = torch::stable::contiguous(words), origin = torch::stable::contiguous(frames);
  const Tensor places = as_vectors(tracks), flags = torch::stable::contiguous(visible);
  const Tracks given{in_of<float>(places), in_of<uint8_t>(flags), tracks.size(0), tracks.size(1), words.size(1), width};
  const auto launch = [&](const Coverage& coverage, float* visibility, int64_t* offsets) {
    launch_coverage(coverage, given, visibility, offsets, current_stream(masks));
  };
  return covered("coverage_of_tracks", masks, origin, given.length, sizeof(int32_t), threshold, launch);
}

}  // namespace
}  // namespace s2d::point_tracks

STABLE_TORCH_LIBRARY_IMPL(s2d, CUDA, library) {
  library.impl("track_points", TORCH_BOX(&s2d::point_tracks::track_points));
  library.impl("track_coverage", TORCH_BOX(&s2d::point_tracks::track_coverage));
  library.impl("coverage_of_tracks", TORCH_BOX(&s2d::point_tracks::coverage_of_tracks));
}
