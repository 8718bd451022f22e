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
constexpr unsigned kAll = 0xffffffffu;

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

// A warp owns a row of one mask; each of its lanes keeps one word in 32. Reads the labels of the frame once for each
// mask, from the caches where masks of one frame follow each other, and writes 1/8 byte a pixel.
template <typename Label>
__global__ void __launch_bounds__(kThreads, 8)
    select_kernel(const Label* labels, const int64_t* which, uint64_t* words, Tiling tiling) {
  const int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t mask = task / tiling.height, y = task - mask * tiling.height;
  if (mask >= tiling.masks) return;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const Label* row = labels + (which[2 * mask] * tiling.height + y) * tiling.width;
  const int64_t value = which[2 * mask + 1];
  uint64_t* out = words + task * tiling.strips;
  uint64_t kept = 0;
  for (int strip = 0; strip < tiling.strips; ++strip) {
    const int left = strip * 64 + lane, right = left + kWarp;
    const unsigned low = __ballot_sync(kAll, left < tiling.width && static_cast<int64_t>(row[left]) == value);
    const unsigned high = __ballot_sync(kAll, right < tiling.width && static_cast<int64_t>(row[right]) == value);
    if (lane == strip % kWarp) kept = low | static_cast<uint64_t>(high) << 32;
    const int first = strip - strip % kWarp;
    const bool complete = strip % kWarp == kWarp - 1 || strip == tiling.strips - 1;
    if (complete && first + lane <= strip) out[first + lane] = kept;
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
  const unsigned blocks = static_cast<unsigned>(ceil_div(tiling.masks * tiling.height, kWarps));
  with_type(labels, [&](const auto* data) {
    launch("rle_from_labels", select_kernel<std::decay_t<decltype(*data)>>, blocks, kThreads, stream, data, which,
           words, tiling);
  });
}

}  // namespace s2d::rle
