// rle of label maps on CUDA: which labels each frame holds, and the mask of each as bits, which are encoded as any are.
//
// Labels are wide integers in any order, so what a frame holds is the hard part: sorting its pixels would take a
// hundred times as long as reading them. But the pixel of a label that comes first in the order of rows has other
// labels above it and on its left; such corners are few, every label has one, and only they are sorted.

#include <type_traits>

#include "../common/launch.cuh"
#include "launchers.h"

namespace s2d::rle {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// A block owns up to 256 pixels of a row, a thread one. Reads each label once, its neighbours from the caches. Without
// `corners` they are only counted; they are in no order.
template <typename Label>
__global__ void corners_kernel(const Label* labels, int64_t* corners, unsigned long long* number, int height, int width,
                               int blocks_per_row, bool skips, int64_t skipped) {
  const int64_t row = blockIdx.x / static_cast<uint32_t>(blocks_per_row), frame = row / height;
  const int x = static_cast<int>(blockIdx.x - row * blocks_per_row) * kThreads + static_cast<int>(threadIdx.x);
  const Label* pixel = labels + row * width + x;
  bool is_corner = x < width;
  int64_t value = 0;
  if (is_corner) {
    value = static_cast<int64_t>(*pixel);
    is_corner = !(skips && value == skipped) && (x == 0 || pixel[-1] != *pixel) &&
                (row == frame * height || pixel[-width] != *pixel);
  }
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const unsigned lanes = __ballot_sync(kAll, is_corner);
  if (!lanes) return;
  unsigned long long place = 0;
  if (lane == 0) place = atomicAdd(number, static_cast<unsigned long long>(__popc(lanes)));
  place = __shfl_sync(kAll, place, 0) + __popc(lanes & ((1u << lane) - 1));
  if (!corners || !is_corner) return;
  corners[2 * place] = frame;
  corners[2 * place + 1] = value;
}

// Where frame and label stand among ascending ones; -1 where they do not.
__device__ __forceinline__ int64_t find(const int64_t* which, int64_t number, int64_t frame, int64_t label) {
  int64_t first = 0, last = number;
  while (first < last) {
    const int64_t middle = (first + last) / 2, other = which[2 * middle];
    if (other < frame || (other == frame && which[2 * middle + 1] < label)) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return first < number && which[2 * first] == frame && which[2 * first + 1] == label ? first : -1;
}

// A warp owns a row of a frame and goes along it, 64 pixels at a time, each lane with two of them. The labels among the
// 64, mostly one or two, take their word in turn, so that the number of labels in the frame does not matter. Reads each
// label once; writes 8 bytes for each label of 64 pixels.
template <typename Label>
__global__ void select_kernel(const Label* labels, const int64_t* which, uint64_t* words, int64_t rows, Tiling tiling) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int64_t frame = row / tiling.height, y = row - frame * tiling.height;
  const Label* pixels = labels + row * tiling.width;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  int64_t label = 0, mask = find(which, tiling.masks, frame, label);
  for (int strip = 0; strip < tiling.strips; ++strip) {
    const int x = strip * 64 + lane;
    const bool has_left = x < tiling.width, has_right = x + kWarp < tiling.width;
    const int64_t left = has_left ? static_cast<int64_t>(pixels[x]) : 0;
    const int64_t right = has_right ? static_cast<int64_t>(pixels[x + kWarp]) : 0;
    unsigned left_rest = __ballot_sync(kAll, has_left), right_rest = __ballot_sync(kAll, has_right);
    while (left_rest | right_rest) {
      const int64_t next = __shfl_sync(kAll, left_rest ? left : right, lowest_bit(left_rest ? left_rest : right_rest));
      const unsigned low = __ballot_sync(kAll, has_left && left == next);
      const unsigned high = __ballot_sync(kAll, has_right && right == next);
      if (next != label) mask = find(which, tiling.masks, frame, next);
      label = next;
      if (lane == 0 && mask >= 0) {
        words[(mask * tiling.height + y) * tiling.strips + strip] = low | static_cast<uint64_t>(high) << 32;
      }
      left_rest &= ~low;
      right_rest &= ~high;
    }
  }
}

// Calls with(typed pointer) for the type that the labels have.
template <typename With>
void with_type(const Labels& labels, const With& with) {
  switch (labels.bytes * (labels.is_signed ? 1 : -1)) {
    case -1:
      return with(static_cast<const uint8_t*>(labels.data));
    case 1:
      return with(static_cast<const int8_t*>(labels.data));
    case -2:
      return with(static_cast<const uint16_t*>(labels.data));
    case 2:
      return with(static_cast<const int16_t*>(labels.data));
    case 4:
      return with(static_cast<const int32_t*>(labels.data));
    default:
      return with(static_cast<const int64_t*>(labels.data));
  }
}

}  // namespace

void launch_corners(const Labels& labels, int64_t* corners, int64_t* number, bool skips, int64_t skipped,
                    void* stream) {
  const int blocks_per_row = static_cast<int>(ceil_div(labels.width, kThreads));
  const unsigned blocks = static_cast<unsigned>(labels.frames * labels.height * blocks_per_row);
  with_type(labels, [&](const auto* data) {
    launch("rle_from_labels", corners_kernel<std::decay_t<decltype(*data)>>, blocks, kThreads, stream, data, corners,
           reinterpret_cast<unsigned long long*>(number), labels.height, labels.width, blocks_per_row, skips, skipped);
  });
}

void launch_select(const Labels& labels, const int64_t* which, uint64_t* words, const Tiling& tiling, void* stream) {
  const int64_t rows = labels.frames * labels.height;
  with_type(labels, [&](const auto* data) {
    launch("rle_from_labels", select_kernel<std::decay_t<decltype(*data)>>,
           static_cast<unsigned>(ceil_div(rows, kWarps)), kThreads, stream, data, which, words, rows, tiling);
  });
}

}  // namespace s2d::rle
