// What a block knows of a mask's points in one frame, in shared memory: how many are visible, where they are, which
// pixels they are in, and which of the frame's masks those lie in.
#pragma once

#include "points.cuh"

namespace s2d::point_tracks {

constexpr int kWarps = kThreads / kWarp;
constexpr int32_t kWindow = 1 << 17;  // pixels whose first visitors are told from the others at once
constexpr int kColumns = kThreads;    // masks of a frame that are counted at once

// Visible points, and the box of the pixels that carried points are in.
struct Tally {
  int visible;
  int left, top, right, bottom;

  __device__ void add(int y, int x) {
    left = min(left, x);
    top = min(top, y);
    right = max(right, x);
    bottom = max(bottom, y);
  }

  __device__ bool meets(const Plan& mask) const {
    return mask.left <= right && mask.right >= left && mask.top <= bottom && mask.bottom >= top;
  }
};

__device__ __forceinline__ Tally no_points() { return {0, 0x7fffffff, 0x7fffffff, -1, -1}; }

// Masks of a frame, in the order of a sweep.
struct Columns {
  const Plan* plans;
  const uint64_t* masks;
  int32_t begin, end, done, words, words_per_row;
  bool up;

  __device__ int32_t number() const { return min(kColumns, end - begin - done); }
  __device__ int32_t at(int32_t k) const { return up ? begin + done + k : end - 1 - done - k; }
  __device__ const uint64_t* mask(int32_t k) const { return masks + static_cast<int64_t>(at(k)) * words; }
};

struct Board {
  Tally tally;
  int distinct;           // pixels
  int hits[kColumns];     // of them, in each mask of the frame
  uint32_t near[kWarps];  // which of the masks the points' box meets
  alignas(16) uint32_t bitmap[kWindow / 32];

  __device__ void clear_bitmap() {
    for (int i = threadIdx.x; i < kWindow / 128; i += kThreads) {
      reinterpret_cast<uint4*>(bitmap)[i] = make_uint4(0, 0, 0, 0);
    }
  }

  // Everyone's tallies as one. A barrier has to follow before the next.
  __device__ Tally sum(const Tally& mine) {
    const int visible = __reduce_add_sync(kAll, mine.visible);
    const int left = __reduce_min_sync(kAll, mine.left), top = __reduce_min_sync(kAll, mine.top);
    const int right = __reduce_max_sync(kAll, mine.right), bottom = __reduce_max_sync(kAll, mine.bottom);
    if (threadIdx.x % kWarp == 0) {
      atomicAdd(&tally.visible, visible);
      atomicMin(&tally.left, left);
      atomicMin(&tally.top, top);
      atomicMax(&tally.right, right);
      atomicMax(&tally.bottom, bottom);
    }
    __syncthreads();
    const Tally total = tally;
    __syncthreads();
    if (threadIdx.x == 0) tally = no_points();
    return total;
  }

  // Counts the distinct ones of the pixels [first, number), and those of them in each mask of the frame. Pixels of a
  // window leave a bit each, and the first to do so counts. Masks whose box the points miss are not read.
  __device__ void count(const Tally& tally, const int32_t* pixels, int32_t first, int32_t number, int32_t width,
                        const Columns& columns) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    hits[threadIdx.x] = 0;
    if (threadIdx.x == 0) distinct = 0;
    const bool candidate = static_cast<int32_t>(threadIdx.x) < columns.number();
    const uint32_t ballot = __ballot_sync(kAll, candidate && tally.meets(columns.plans[columns.at(threadIdx.x)]));
    if (lane == 0) near[warp] = ballot;
    __syncthreads();
    for (int32_t window = tally.top * width; window < (tally.bottom + 1) * width; window += kWindow) {
      if (window > tally.top * width) __syncthreads();  // until the bitmap is clear
      for (int32_t base = first + warp * kWarp; base < number; base += kThreads) {
        const int32_t pixel = base + lane < number ? pixels[base + lane] : kOutside;
        bool counts = pixel >= window && pixel - window < kWindow;
        if (counts) {
          const uint32_t bit = 1u << ((pixel - window) % 32);
          counts = !(atomicOr(&bitmap[(pixel - window) / 32], bit) & bit);
        }
        const int fresh = __popc(__ballot_sync(kAll, counts));
        if (lane == 0 && fresh) atomicAdd(&distinct, fresh);
        const int32_t y = max(pixel, 0) / width, x = max(pixel, 0) % width;
        for (int w = 0; w < kWarps; ++w) {
          for (uint32_t rest = near[w]; rest; rest &= rest - 1) {
            const int k = w * kWarp + lowest_bit(rest);
            const bool hit = counts && bit_of(columns.mask(k), columns.words_per_row, y, x);
            const int lanes = __popc(__ballot_sync(kAll, hit));
            if (lane == 0 && lanes) atomicAdd(&hits[k], lanes);
          }
        }
      }
      __syncthreads();
      clear_bitmap();
    }
  }

  // The first warp puts the pairs above the threshold into the pool; `found` is how many the row has so far.
  __device__ void put_pairs(const Coverage& all, int32_t row, const Columns& columns, int& found) const {
    const int lane = threadIdx.x % kWarp;
    for (int base = 0; base < columns.number(); base += kWarp) {
      const int k = base + lane;
      float share = 0.0f;
      if (k < columns.number()) share = static_cast<float>(static_cast<double>(hits[k]) / distinct);
      const bool kept = k < columns.number() && share > all.threshold;
      const uint32_t pairs = __ballot_sync(kAll, kept);
      unsigned long long slot = 0;
      if (lane == 0 && pairs) slot = atomicAdd(&all.totals->pairs, static_cast<unsigned long long>(__popc(pairs)));
      const int rank = __popc(pairs & ((1u << lane) - 1));
      slot = __shfl_sync(kAll, slot, 0) + rank;
      const int position = found + rank;
      if (kept && slot < static_cast<unsigned long long>(all.pairs)) {
        all.pool[slot] = {row, columns.up ? position : -1 - position, columns.at(k), share};
      }
      found += __popc(pairs);
    }
  }
};

}  // namespace s2d::point_tracks
