// bitmask on CUDA. Everything reads bits (an eighth of a byte a pixel) once, so the memory's copy rate is the floor;
// IoU is bound by popcounts instead, and reuses every loaded word eight times.

#include "../common/launch.cuh"
#include "bitmask.h"

namespace s2d::bitmask {
namespace {

constexpr int kThreads = 256;

// A thread owns one pixel, a warp half a word: the ballot of 32 pixels is stored by lane 0. Reads 1 byte a pixel,
// writes 1/8.
__global__ void pack_kernel(const uint8_t* masks, uint32_t* halves, int64_t rows, int64_t width,
                            int64_t halves_per_row) {
  const int64_t half = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  if (half >= rows * halves_per_row) return;
  const int lane = threadIdx.x % kWarp;
  const int64_t row = half / halves_per_row, x = half % halves_per_row * kWarp + lane;
  const bool set = x < width && masks[row * width + x] != 0;
  const uint32_t bits = __ballot_sync(0xffffffffu, set);
  if (lane == 0) halves[half] = bits;
}

// A thread owns one pixel. Reads 1/8 byte a pixel (shared by the warp through the L1 cache), writes 1.
__global__ void unpack_kernel(const uint64_t* words, uint8_t* masks, int64_t rows, int64_t width,
                              int64_t words_per_row) {
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pixel >= rows * width) return;
  const int64_t row = pixel / width, x = pixel % width;
  masks[pixel] = words[row * words_per_row + x / kWordBits] >> (x % kWordBits) & 1;
}

// A block owns one mask, its threads stride over the words.
__global__ void area_kernel(const uint64_t* words, int64_t* area, int64_t words_per_mask) {
  __shared__ int64_t parts[kThreads / kWarp];
  const uint64_t* mask = words + blockIdx.x * words_per_mask;
  int64_t total = 0;
  for (int64_t w = threadIdx.x; w < words_per_mask; w += kThreads) total += popcount(mask[w]);
  total = warp_sum(total);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = total;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kThreads / kWarp; ++warp) total += parts[warp];
    area[blockIdx.x] = total;
  }
}

// A block owns one mask; each thread keeps the extent of the words it strides over, and shared atomics join them.
__global__ void bbox_kernel(const uint64_t* words, int64_t* boxes, int64_t height, int64_t words_per_row) {
  __shared__ int left, top, right, bottom;
  if (threadIdx.x == 0) {
    left = top = 0x7fffffff;
    right = bottom = -1;
  }
  __syncthreads();
  const uint64_t* mask = words + blockIdx.x * height * words_per_row;
  for (int64_t w = threadIdx.x; w < height * words_per_row; w += kThreads) {
    if (const uint64_t word = mask[w]) {
      const int y = static_cast<int>(w / words_per_row), x = static_cast<int>(w % words_per_row * kWordBits);
      atomicMin(&left, x + lowest_bit(word));
      atomicMax(&right, x + highest_bit(word));
      atomicMin(&top, y);
      atomicMax(&bottom, y);
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    const bool empty = right < 0;
    int64_t* box = boxes + blockIdx.x * 4;
    box[0] = empty ? 0 : left;
    box[1] = empty ? 0 : top;
    box[2] = empty ? 0 : right - left + 1;
    box[3] = empty ? 0 : bottom - top + 1;
  }
}

constexpr int kTile = 8;
constexpr int64_t kWordsPerBlock = 8192;

// A block owns an 8 x 8 tile of pairs and a range of words; a thread holds 64 counters and reuses each loaded word
// eight times. Sums of integers do not depend on their order, so the atomics at the end keep the result deterministic.
__global__ void __launch_bounds__(kThreads)
    intersection_kernel(const uint64_t* a, const uint64_t* b, unsigned long long* counts, int64_t n, int64_t m,
                        int64_t words_per_mask) {
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kTile,
                first_column = static_cast<int64_t>(blockIdx.z) * kTile;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kWordsPerBlock;
  const int64_t end = begin + kWordsPerBlock < words_per_mask ? begin + kWordsPerBlock : words_per_mask;
  int shared_bits[kTile][kTile] = {};
  for (int64_t w = begin + threadIdx.x; w < end; w += kThreads) {
    uint64_t rows[kTile], columns[kTile];
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      rows[k] = first_row + k < n ? a[(first_row + k) * words_per_mask + w] : 0;
      columns[k] = first_column + k < m ? b[(first_column + k) * words_per_mask + w] : 0;
    }
#pragma unroll
    for (int i = 0; i < kTile; ++i) {
#pragma unroll
      for (int j = 0; j < kTile; ++j) shared_bits[i][j] += popcount(rows[i] & columns[j]);
    }
  }
#pragma unroll
  for (int i = 0; i < kTile; ++i) {
#pragma unroll
    for (int j = 0; j < kTile; ++j) {
      const int total = warp_sum(shared_bits[i][j]);
      if (threadIdx.x % kWarp == 0 && total && first_row + i < n && first_column + j < m) {
        atomicAdd(counts + (first_row + i) * m + first_column + j, static_cast<unsigned long long>(total));
      }
    }
  }
}

__global__ void iou_kernel(const int64_t* counts, const int64_t* area_a, const int64_t* area_b, float* iou, int64_t n,
                           int64_t m) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pair < n * m) iou[pair] = iou_of(counts[pair], area_a[pair / m], area_b[pair % m]);
}

// One block: masks are visited in order, and the threads share the comparison with those kept so far.
__global__ void nms_kernel(const float* iou, const int64_t* order, uint8_t* keep, int64_t n, double threshold) {
  for (int64_t i = 0; i < n; ++i) {
    bool covered = false;
    for (int64_t j = threadIdx.x; j < i; j += kThreads) {
      covered |= keep[j] && static_cast<double>(iou[order[i] * n + order[j]]) > threshold;
    }
    const int any = __syncthreads_or(covered);
    if (threadIdx.x == 0) keep[i] = !any;
    __syncthreads();
  }
}

unsigned grid_for(int64_t threads) { return static_cast<unsigned>(ceil_div(threads, kThreads)); }

}  // namespace

void launch_pack(const uint8_t* masks, uint64_t* words, int64_t rows, int64_t width, void* stream) {
  const int64_t halves_per_row = words_for(width) * 2;
  if (rows * halves_per_row == 0) return;
  launch("pack_masks", pack_kernel, grid_for(rows * halves_per_row * kWarp), kThreads, stream, masks,
         reinterpret_cast<uint32_t*>(words), rows, width, halves_per_row);
}

void launch_unpack(const uint64_t* words, uint8_t* masks, int64_t rows, int64_t width, void* stream) {
  if (rows * width == 0) return;
  launch("unpack_masks", unpack_kernel, grid_for(rows * width), kThreads, stream, words, masks, rows, width,
         words_for(width));
}

void launch_area(const uint64_t* words, int64_t* area, int64_t masks, int64_t words_per_mask, void* stream) {
  if (masks == 0) return;
  launch("mask_area", area_kernel, static_cast<unsigned>(masks), kThreads, stream, words, area, words_per_mask);
}

void launch_bbox(const uint64_t* words, int64_t* boxes, int64_t masks, int64_t height, int64_t words_per_row,
                 void* stream) {
  if (masks == 0) return;
  launch("mask_bbox", bbox_kernel, static_cast<unsigned>(masks), kThreads, stream, words, boxes, height, words_per_row);
}

void launch_iou(const uint64_t* a, const uint64_t* b, const int64_t* area_a, const int64_t* area_b, int64_t* counts,
                float* iou, int64_t n, int64_t m, int64_t words_per_mask, void* stream) {
  if (n * m == 0) return;
  if (words_per_mask > 0) {
    const dim3 grid(static_cast<unsigned>(ceil_div(words_per_mask, kWordsPerBlock)),
                    static_cast<unsigned>(ceil_div(n, kTile)), static_cast<unsigned>(ceil_div(m, kTile)));
    launch("mask_iou", intersection_kernel, grid, kThreads, stream, a, b, reinterpret_cast<unsigned long long*>(counts),
           n, m, words_per_mask);
  }
  launch("mask_iou", iou_kernel, grid_for(n * m), kThreads, stream, counts, area_a, area_b, iou, n, m);
}

void launch_nms(const float* iou, const int64_t* order, uint8_t* keep, int64_t n, double threshold, void* stream) {
  if (n == 0) return;
  launch("mask_nms", nms_kernel, 1, kThreads, stream, iou, order, keep, n, threshold);
}

}  // namespace s2d::bitmask
