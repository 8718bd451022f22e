// bitmask on CUDA. Everything reads its input once, sixteen bytes a load where it is bytes, so the memory's copy rate
// is the floor; IoU counts the bits that masks share on the tensor cores.

#include "../common/bit_mma.cuh"
#include "../common/launch.cuh"
#include "bitmask.h"

namespace s2d::bitmask {
namespace {

constexpr int kThreads = 256;

// Which of sixteen bytes are not zero, one bit a byte.
__device__ __forceinline__ uint32_t nonzero_bytes(const uint4& bytes) {
  const auto four = [](uint32_t v) {
    const uint32_t set = (((v & 0x7f7f7f7fu) + 0x7f7f7f7fu) | v) >> 7 & 0x01010101u;
    return set * 0x10204080u >> 28;  // the product brings the four bits together, without a carry
  };
  return four(bytes.x) | four(bytes.y) << 4 | four(bytes.z) << 8 | four(bytes.w) << 12;
}

constexpr int kRun = 16;  // pixels of one 16-byte access

// A block owns kThreads consecutive words, whose pixels are one stretch of the input. It turns the stretch into bits
// sixteen aligned bytes at a time; then each thread cuts its word out, wherever in the stretch its row begins. Reads 1
// byte a pixel, writes 1/8.
__global__ void pack_kernel(const uint8_t* masks, uint64_t* words, int64_t rows, int64_t width, int64_t words_per_row) {
  __shared__ uint16_t runs[kThreads * kWordBits / kRun + 6];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads, pixels = rows * width;
  const int64_t last = min(first + kThreads, rows * words_per_row) - 1;
  const auto start_of = [=](int64_t word) { return word / words_per_row * width + word % words_per_row * kWordBits; };
  const int64_t start = start_of(first), end = min(start_of(last) + kWordBits, pixels);
  const int64_t begin = start - static_cast<int64_t>(reinterpret_cast<uintptr_t>(masks + start) % kRun);
  // Five runs are read for the last word, whatever they hold past the end.
  for (int64_t r = threadIdx.x; begin + r * kRun < end + kWordBits + kRun; r += kThreads) {
    const int64_t pixel = begin + r * kRun;
    uint32_t bits = 0;
    if (pixel >= 0 && pixel + kRun <= pixels) {
      bits = nonzero_bytes(*reinterpret_cast<const uint4*>(masks + pixel));
    } else {
      for (int k = 0; k < kRun; ++k) {
        if (pixel + k >= 0 && pixel + k < pixels) bits |= static_cast<uint32_t>(masks[pixel + k] != 0) << k;
      }
    }
    runs[r] = static_cast<uint16_t>(bits);
  }
  __syncthreads();
  const int64_t word = first + threadIdx.x;
  if (word > last) return;
  const int64_t offset = start_of(word) - begin, x = word % words_per_row * kWordBits;
  const uint16_t* run = runs + offset / kRun;
  const int shift = static_cast<int>(offset % kRun);
  uint64_t bits = (run[0] | static_cast<uint64_t>(run[1]) << 16 | static_cast<uint64_t>(run[2]) << 32 |
                   static_cast<uint64_t>(run[3]) << 48) >>
                  shift;
  if (shift) bits |= static_cast<uint64_t>(run[4]) << (kWordBits - shift);
  if (width - x < kWordBits) bits &= (uint64_t{1} << (width - x)) - 1;
  words[word] = bits;
}

// Four bits as four bytes.
__device__ __forceinline__ uint32_t spread(uint32_t bits) { return (bits & 0xfu) * 0x00204081u & 0x01010101u; }

// A thread owns sixteen pixels. Reads 1/8 byte a pixel, writes 1, in one store where they lie in one row.
__global__ void unpack_kernel(const uint64_t* words, uint8_t* masks, int64_t pixels, int64_t width,
                              int64_t words_per_row) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kRun), pixel = first + threadIdx.x * kRun;
  if (pixel >= pixels) return;
  // One wide division a block, a narrow one a thread.
  const uint32_t from = static_cast<uint32_t>(first % width) + threadIdx.x * kRun, wide = static_cast<uint32_t>(width);
  int64_t row = first / width + from / wide;
  int64_t x = from % wide;
  if (x + kRun <= width && pixel + kRun <= pixels) {
    const uint64_t* word = words + row * words_per_row + x / kWordBits;
    const int shift = static_cast<int>(x % kWordBits);
    uint32_t bits = static_cast<uint32_t>(word[0] >> shift);
    if (shift > kWordBits - kRun) bits |= static_cast<uint32_t>(word[1] << (kWordBits - shift));
    *reinterpret_cast<uint4*>(masks + pixel) =
        make_uint4(spread(bits), spread(bits >> 4), spread(bits >> 8), spread(bits >> 12));
    return;
  }
  for (int64_t p = pixel; p < min(pixel + kRun, pixels); ++p) {
    masks[p] = words[row * words_per_row + x / kWordBits] >> (x % kWordBits) & 1;
    if (++x == width) {
      x = 0;
      ++row;
    }
  }
}

constexpr int64_t kWordsPerBlock = 8192;

// A block owns a range of one mask's words. `area` is zeroed before; sums of integers do not depend on their order.
__global__ void area_kernel(const uint64_t* words, unsigned long long* area, int64_t words_per_mask,
                            int64_t blocks_per_mask) {
  const int64_t mask = blockIdx.x / blocks_per_mask, begin = blockIdx.x % blocks_per_mask * kWordsPerBlock;
  const int64_t end = min(begin + kWordsPerBlock, words_per_mask);
  int total = 0;
#pragma unroll 4
  for (int64_t w = begin + threadIdx.x; w < end; w += kThreads) total += popcount(words[mask * words_per_mask + w]);
  total = warp_sum(total);
  if (threadIdx.x % kWarp == 0 && total) atomicAdd(area + mask, static_cast<unsigned long long>(total));
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

constexpr int kTileRows = 64, kTileColumns = 32, kWarps = kThreads / kWarp, kStep = 4;
constexpr int64_t kRangeWords = 1024;

// A block owns a tile of pairs and a range of words, which its warps take in turns of four words: each warp counts the
// whole tile on the tensor cores (64 rows x 32 columns in 16 x 8 products), and the counts are added up in the end. A
// word is read once for 32 or 64 pairs; a popcount for each pair instead would take six times as long as the memory.
__global__ void __launch_bounds__(kThreads, 2)
    intersection_kernel(const uint64_t* a, const uint64_t* b, unsigned long long* counts, int64_t n, int64_t m,
                        int64_t words_per_mask) {
  __shared__ int tile[kTileRows][kTileColumns];
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kTileRows;
  const int64_t first_column = static_cast<int64_t>(blockIdx.z) * kTileColumns;
  // Of masks against themselves, pairs below the diagonal are mirrored.
  if (a == b && first_column + kTileColumns <= first_row) return;
  for (int i = threadIdx.x; i < kTileRows * kTileColumns; i += kThreads) tile[i / kTileColumns][i % kTileColumns] = 0;
  __syncthreads();

  const int lane = threadIdx.x % kWarp, group = lane / 4, quarter = lane % 4;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kRangeWords;
  const int64_t end = min(begin + kRangeWords, words_per_mask);
  int shared_bits[kTileRows / 16][kTileColumns / 8][4] = {};
  for (int64_t step = begin + threadIdx.x / kWarp * kStep; step < end; step += kWarps * kStep) {
    const int64_t word = step + quarter;
    uint64_t rows[kTileRows / 8], columns[kTileColumns / 8];
#pragma unroll
    for (int k = 0; k < kTileRows / 8; ++k) {
      const int64_t row = first_row + k * 8 + group;
      rows[k] = row < n && word < end ? a[row * words_per_mask + word] : 0;
    }
#pragma unroll
    for (int k = 0; k < kTileColumns / 8; ++k) {
      const int64_t column = first_column + k * 8 + group;
      columns[k] = column < m && word < end ? b[column * words_per_mask + word] : 0;
    }
#pragma unroll
    for (int i = 0; i < kTileRows / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kTileColumns / 8; ++j) {
        add_shared_bits(shared_bits[i][j], rows[2 * i], rows[2 * i + 1], columns[j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kTileRows / 16; ++i) {
#pragma unroll
    for (int j = 0; j < kTileColumns / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        atomicAdd(&tile[i * 16 + c / 2 * 8 + group][j * 8 + quarter * 2 + c % 2], shared_bits[i][j][c]);
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTileRows * kTileColumns; i += kThreads) {
    const int64_t row = first_row + i / kTileColumns, column = first_column + i % kTileColumns;
    const int total = tile[i / kTileColumns][i % kTileColumns];
    if (total && row < n && column < m) atomicAdd(counts + row * m + column, static_cast<unsigned long long>(total));
  }
}

// Areas are nullptr for masks against themselves: then they are on the diagonal.
__global__ void iou_kernel(const int64_t* counts, const int64_t* area_a, const int64_t* area_b, float* iou, int64_t n,
                           int64_t m) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pair >= n * m) return;
  const int64_t i = pair / m, j = pair % m;
  iou[pair] = area_a ? iou_of(counts[pair], area_a[i], area_b[j])
                     : iou_of(counts[min(i, j) * m + max(i, j)], counts[i * m + i], counts[j * m + j]);
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

}  // namespace

void launch_pack(const uint8_t* masks, uint64_t* words, int64_t rows, int64_t width, void* stream) {
  const int64_t words_per_row = words_for(width);
  if (rows * width == 0) return;
  launch("pack_masks", pack_kernel, grid_for(rows * words_per_row, kThreads), kThreads, stream, masks, words, rows,
         width, words_per_row);
}

void launch_unpack(const uint64_t* words, uint8_t* masks, int64_t rows, int64_t width, void* stream) {
  if (rows * width == 0) return;
  launch("unpack_masks", unpack_kernel, grid_for(ceil_div(rows * width, kRun), kThreads), kThreads, stream, words,
         masks, rows * width, width, words_for(width));
}

void launch_area(const uint64_t* words, int64_t* area, int64_t masks, int64_t words_per_mask, void* stream) {
  if (masks * words_per_mask == 0) return;
  const int64_t blocks_per_mask = ceil_div(words_per_mask, kWordsPerBlock);
  launch("mask_area", area_kernel, static_cast<unsigned>(masks * blocks_per_mask), kThreads, stream, words,
         reinterpret_cast<unsigned long long*>(area), words_per_mask, blocks_per_mask);
}

void launch_bbox(const uint64_t* words, int64_t* boxes, int64_t masks, int64_t height, int64_t words_per_row,
                 void* stream) {
  if (masks == 0) return;
  launch("mask_bbox", bbox_kernel, static_cast<unsigned>(masks), kThreads, stream, words, boxes, height, words_per_row);
}

void launch_intersections(const char* op, const uint64_t* a, const uint64_t* b, int64_t* counts, int64_t n, int64_t m,
                          int64_t words_per_mask, void* stream) {
  if (n * m * words_per_mask == 0) return;
  const dim3 grid(static_cast<unsigned>(ceil_div(words_per_mask, kRangeWords)),
                  static_cast<unsigned>(ceil_div(n, kTileRows)), static_cast<unsigned>(ceil_div(m, kTileColumns)));
  launch(op, intersection_kernel, grid, kThreads, stream, a, b, reinterpret_cast<unsigned long long*>(counts), n, m,
         words_per_mask);
}

void launch_iou(const uint64_t* a, const uint64_t* b, const int64_t* area_a, const int64_t* area_b, int64_t* counts,
                float* iou, int64_t n, int64_t m, int64_t words_per_mask, void* stream) {
  if (n * m == 0) return;
  launch_intersections("mask_iou", a, b, counts, n, m, words_per_mask, stream);
  launch("mask_iou", iou_kernel, grid_for(n * m, kThreads), kThreads, stream, counts, area_a, area_b, iou, n, m);
}

void launch_nms(const float* iou, const int64_t* order, uint8_t* keep, int64_t n, double threshold, void* stream) {
  if (n == 0) return;
  launch("mask_nms", nms_kernel, 1, kThreads, stream, iou, order, keep, n, threshold);
}

}  // namespace s2d::bitmask
