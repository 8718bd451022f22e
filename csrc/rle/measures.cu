// rle on CUDA: what can be read off runs, and what several masks have in common.

#include "walk.cuh"

namespace s2d::rle {
namespace {

// A block owns a mask. Reads 4 bytes a run.
__global__ void area_kernel(DeviceCodes codes, int64_t* area) {
  __shared__ unsigned long long total;
  const int64_t mask = blockIdx.x;
  const Runs runs(codes, mask);
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  int64_t sum = 0;
  for (int64_t r = runs.begin + 1 + 2 * threadIdx.x; r < runs.end; r += 2 * kThreads) sum += runs.counts[r];
  sum = warp_sum(sum);
  if (lane_id() == 0) atomicAdd(&total, static_cast<unsigned long long>(sum));
  __syncthreads();
  if (threadIdx.x == 0) area[mask] = static_cast<int64_t>(total);
}

// A block owns a mask; shared atomics join what its warps have seen. Reads 4 bytes a run.
__global__ void bbox_kernel(DeviceCodes codes, const int32_t* sizes, int64_t* boxes) {
  __shared__ int left, top, right, bottom;
  const int64_t mask = blockIdx.x;
  const int height = max(sizes[2 * mask], 1);
  if (threadIdx.x == 0) {
    left = top = 0x7fffffff;
    right = bottom = -1;
  }
  int least_x = 0x7fffffff, least_y = 0x7fffffff, most_x = -1, most_y = -1;
  const Runs runs(codes, mask);
  runs.walk(~0u, [&](int64_t index, uint32_t start, uint32_t length) {
    if (index % 2 == 0 || length == 0) return;
    const uint32_t last = start + length - 1, rows = static_cast<uint32_t>(height);
    const int first_x = static_cast<int>(start / rows), last_x = static_cast<int>(last / rows);
    // A run that goes on into the next column covers a column's end and another's start.
    const bool wraps = first_x != last_x;
    least_x = min(least_x, first_x);
    most_x = max(most_x, last_x);
    least_y = min(least_y, wraps ? 0 : static_cast<int>(start % rows));
    most_y = max(most_y, wraps ? height - 1 : static_cast<int>(last % rows));
  });
  __syncthreads();
  least_x = __reduce_min_sync(kAll, least_x);
  least_y = __reduce_min_sync(kAll, least_y);
  most_x = __reduce_max_sync(kAll, most_x);
  most_y = __reduce_max_sync(kAll, most_y);
  if (lane_id() == 0) {
    atomicMin(&left, least_x);
    atomicMin(&top, least_y);
    atomicMax(&right, most_x);
    atomicMax(&bottom, most_y);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    const bool empty = right < 0;
    int64_t* box = boxes + mask * 4;
    box[0] = empty ? 0 : left;
    box[1] = empty ? 0 : top;
    box[2] = empty ? 0 : right - left + 1;
    box[3] = empty ? 0 : bottom - top + 1;
  }
}

// ---- several masks at once ----

// A thread owns a word of a mask, which it adds to its group's; an OR or an AND does not depend on the order. Reads 1/8
// byte a pixel; words that would change nothing go no further.
__global__ void merge_kernel(const uint64_t* words, const int64_t* groups, const int32_t* sizes,
                             unsigned long long* merged, int32_t* group_sizes, int64_t masks, int64_t number_of_groups,
                             int64_t words_per_mask, bool intersect) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= masks * words_per_mask) return;
  const int64_t mask = at / words_per_mask, place = at - mask * words_per_mask, group = groups[mask];
  if (group < 0 || group >= number_of_groups) return;
  if (place == 0) {
    for (int k = 0; k < 2; ++k) atomicMax(group_sizes + 2 * group + k, sizes[2 * mask + k]);
  }
  const uint64_t word = words[at];
  if (word == (intersect ? ~uint64_t{0} : 0)) return;
  if (intersect) {
    atomicAnd(merged + group * words_per_mask + place, word);
  } else {
    atomicOr(merged + group * words_per_mask + place, word);
  }
}

// A thread owns a pair.
__global__ void ratio_kernel(const int64_t* shared, const int64_t* area_a, const int64_t* area_b, const bool* crowd,
                             double* iou, int64_t n, int64_t m, int64_t frames, bool mirrored) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (pair >= n * m) return;
  const int64_t i = pair / m, j = pair % m;
  const int64_t both = mirrored && i > j ? shared[j * m + i] : shared[pair];
  int64_t whole = 0;
  for (int64_t t = 0; t < frames; ++t) whole += area_a[i * frames + t];
  if (!crowd || !crowd[j]) {
    for (int64_t t = 0; t < frames; ++t) whole += area_b[j * frames + t];
    whole -= both;
  }
  iou[pair] = both ? static_cast<double>(both) / static_cast<double>(whole) : 0.0;
}

}  // namespace

void launch_area(const DeviceCodes& codes, int64_t* area, void* stream) {
  if (codes.masks == 0) return;
  launch("rle_area", area_kernel, static_cast<unsigned>(codes.masks), kThreads, stream, codes, area);
}

void launch_bbox(const DeviceCodes& codes, const int32_t* sizes, int64_t* boxes, void* stream) {
  if (codes.masks == 0) return;
  launch("rle_bbox", bbox_kernel, static_cast<unsigned>(codes.masks), kThreads, stream, codes, sizes, boxes);
}

void launch_merge(const uint64_t* words, const int64_t* groups, const int32_t* sizes, uint64_t* merged,
                  int32_t* group_sizes, int64_t masks, int64_t number_of_groups, int64_t words_per_mask, bool intersect,
                  void* stream) {
  launch("rle_merge", merge_kernel, grid_for(masks * words_per_mask, kThreads), kThreads, stream, words, groups, sizes,
         reinterpret_cast<unsigned long long*>(merged), group_sizes, masks, number_of_groups, words_per_mask,
         intersect);
}

void launch_ratio(const int64_t* shared, const int64_t* area_a, const int64_t* area_b, const bool* crowd, double* iou,
                  int64_t n, int64_t m, int64_t frames, bool mirrored, void* stream) {
  launch("rle_iou", ratio_kernel, grid_for(n * m, kThreads), kThreads, stream, shared, area_a, area_b, crowd, iou, n, m,
         frames, mirrored);
}

}  // namespace s2d::rle
