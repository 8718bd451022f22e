// point_tracks on CUDA. A step of a point is two lookups of four gathers, each at a place that only the last step
// tells, so what counts is the chain of waits. It is halved: two fields lie on a frame's grid, the one that leads on
// and the one that leads back, so a point that arrives reads both at once, and checks the step it came by while the
// next one is already there. float16 is gathered as it is, four bytes at a time.
//
// Both ways in time are threads of their own. In the order of its sweep a thread sees frames 0 .. T - 1, whichever way.

#include <algorithm>

#include "../common/launch.cuh"
#include "launchers.h"

namespace s2d::point_tracks {
namespace {

constexpr int kThreads = 256;
constexpr uint32_t kAll = 0xffffffffu;

template <typename Value>
struct Scene {
  const Value *forward, *backward;
  int64_t field;  // values of one
  int32_t length;
};

// One way through a scene: step s is its s-th frame.
template <typename Value>
struct Sweep {
  const Value *onward, *back;  // on the grid of step 0: what leads to the step after, and what leads to the one before
  int64_t stride;              // to the next step's
  int32_t length;
  bool up;

  __device__ Sweep(const Scene<Value>& scene, bool up)
      : onward(up ? scene.forward : scene.backward + scene.field * (scene.length - 2)),
        back(up ? scene.backward - scene.field : scene.forward + scene.field * (scene.length - 1)),
        stride(up ? scene.field : -scene.field),
        length(scene.length),
        up(up) {}

  __device__ int32_t frame_of(int32_t step) const { return up ? step : length - 1 - step; }
  __device__ int32_t step_of(int32_t frame) const { return frame_of(frame); }

  // A point of this step's frame, and whether it lies in the frame.
  __device__ bool start(Traveller& point, const Bounds& bounds, int32_t step) const {
    if (step + 1 < length) point.onward = lookup(onward + stride * step, bounds, point.place);
    return bounds.hold(point.place);
  }

  // Carries a point to this step, or leaves it where it is and says that it was lost.
  __device__ bool carry(Traveller& point, const Bounds& bounds, int32_t step) const {
    const Vector there{point.place.x + point.onward.x, point.place.y + point.onward.y};
    const Cell cell = cell_of(bounds, there);
    // The last frame's points go nowhere and read something else: a branch would hold up the other loads.
    const Vector next = interpolated(onward + stride * min(step, length - 2), cell);
    const bool seen = bounds.hold(there) & agree(point.onward, interpolated(back + stride * step, cell));
    if (seen) point = {there, next};
    return seen;
  }
};

// ---- points ----

constexpr int kPointThreads = 128;

// A thread carries a point one way (blockIdx.y) and writes the frames of that way, its own among those upwards: 9 bytes
// a frame, beside its neighbours'. Points of a warp walk through time together, so that they read the same fields.
template <typename Value>
__global__ void __launch_bounds__(kPointThreads, 8)
    track_kernel(const float2* points, const int64_t* frames, Scene<Value> scene, float2* tracks, uint8_t* visible,
                 int32_t number, Bounds bounds) {
  const int32_t g = static_cast<int32_t>(blockIdx.x) * kPointThreads + static_cast<int32_t>(threadIdx.x);
  const Sweep<Value> sweep(scene, blockIdx.y == 0);
  const int32_t length = sweep.length;
  int32_t starts = length, writes = length;
  Traveller point{{0.0f, 0.0f}, {0.0f, 0.0f}};
  if (g < number) {
    const float2 given = points[g];
    point.place = {given.x, given.y};
    const int64_t frame = frames[g];
    // A point of no frame of the scene is seen in none.
    const auto own = static_cast<int32_t>(max(int64_t{0}, min(frame, int64_t{length})));
    if (own == frame && own < length) starts = sweep.step_of(own);
    writes = sweep.up ? own : length - own;
  }
  bool seen = false;
  for (int32_t step = __reduce_min_sync(kAll, min(starts, writes)); step < length; ++step) {
    if (step == starts) {
      seen = sweep.start(point, bounds, step);
    } else if (seen) {
      seen = sweep.carry(point, bounds, step);
    }
    if (step >= writes) {
      const int64_t place = static_cast<int64_t>(sweep.frame_of(step)) * number + g;
      tracks[place] = make_float2(point.place.x, point.place.y);
      visible[place] = seen;
    }
  }
}

// ---- the frames and grids of masks ----

// One block. begins[t] is the first mask of frame t or of one after it.
__global__ void frames_kernel(const int64_t* frames, int32_t number, int32_t length, int32_t* begins, Totals* totals) {
  __shared__ int bad;
  if (threadIdx.x == 0) bad = number;
  __syncthreads();
  for (int32_t i = threadIdx.x; i < number; i += kThreads) {
    if (frames[i] < (i > 0 ? frames[i - 1] : 0) || frames[i] >= length) atomicMin(&bad, i);
  }
  __syncthreads();
  if (threadIdx.x == 0) totals->bad = bad;
  if (bad < number) return;
  for (int32_t i = threadIdx.x; i <= number; i += kThreads) {
    const int64_t last = i < number ? frames[i] : length;
    for (int64_t t = i > 0 ? frames[i - 1] + 1 : 0; t <= last; ++t) begins[t] = i;
  }
}

__device__ __forceinline__ bool bit_of(const uint64_t* mask, int32_t words_per_row, int32_t row, int32_t column) {
  return mask[row * words_per_row + column / kWordBits] >> (column % kWordBits) & 1;
}

// A grid over the frame, as the points of a block's threads.
struct Grid {
  int32_t rows, columns;

  __device__ Grid(const Bounds& bounds, int64_t lines)
      : rows(static_cast<int32_t>(min(lines, int64_t{bounds.height}))),
        columns(static_cast<int32_t>(min(lines, int64_t{bounds.width}))) {}

  __device__ bool is_finest(const Bounds& bounds) const { return rows == bounds.height && columns == bounds.width; }

  // Calls body(point) for this thread's share of the points that lie in the mask.
  template <typename Body>
  __device__ void each(const uint64_t* mask, const Bounds& bounds, const Body& body) const {
    const auto words_per_row = static_cast<int32_t>(words_for(bounds.width));
    for (int32_t k = threadIdx.x; k < rows * columns; k += kThreads) {
      const Vector point{grid_line(k % columns, columns, bounds.width), grid_line(k / columns, rows, bounds.height)};
      if (bit_of(mask, words_per_row, nearest(point.y), nearest(point.x))) body(point);
    }
  }
};

// A block owns a mask. Reads it once for its box and area, and a bit a point for each grid that is tried.
__global__ void __launch_bounds__(kThreads, 4) plan_kernel(Coverage all, Bounds bounds) {
  __shared__ int left, top, right, bottom, area, found;
  if (threadIdx.x == 0) {
    left = top = 0x7fffffff;
    right = bottom = -1;
    area = found = 0;
  }
  __syncthreads();
  const auto words_per_row = static_cast<int32_t>(words_for(bounds.width)), words = bounds.height * words_per_row;
  const uint64_t* mask = all.masks + static_cast<int64_t>(blockIdx.x) * words;
  int bits = 0;
  for (int32_t w = threadIdx.x; w < words; w += kThreads) {
    const uint64_t word = mask[w];
    if (word == 0) continue;
    const int32_t y = w / words_per_row, x = w % words_per_row * static_cast<int32_t>(kWordBits);
    bits += popcount(word);
    atomicMin(&left, x + lowest_bit(word));
    atomicMax(&right, x + highest_bit(word));
    atomicMin(&top, y);
    atomicMax(&bottom, y);
  }
  bits = warp_sum(bits);
  if (threadIdx.x % kWarp == 0) atomicAdd(&area, bits);
  __syncthreads();

  Plan plan{left, top, right, bottom, {0, 0}, {0, 0}, 0};
  int before = 0;
  for (int set = 0; set < 2 && area > 0; ++set) {
    for (int64_t lines = set ? cover_lines(all.grids, area) : all.grids.visibility;; lines *= 2) {
      const Grid grid(bounds, lines);
      int inside = 0;
      grid.each(mask, bounds, [&](Vector) { ++inside; });
      inside = warp_sum(inside);
      if (threadIdx.x % kWarp == 0) atomicAdd(&found, inside);
      __syncthreads();
      const int now = found;
      __syncthreads();
      plan.lines[set] = max(grid.rows, grid.columns);
      plan.points[set] = now - before;
      before = now;
      if (plan.points[set] >= all.grids.least_points || grid.is_finest(bounds)) break;
    }
  }
  if (threadIdx.x == 0) {
    const auto taken = static_cast<unsigned long long>(plan.points[0]) + static_cast<unsigned>(plan.points[1]);
    plan.first = static_cast<int64_t>(atomicAdd(&all.totals->points, taken));
    all.plans[blockIdx.x] = plan;
  }
}

// ---- coverage ----

constexpr int32_t kLost = -1;
constexpr int32_t kWindow = 1 << 17;  // pixels whose first visitors are told from the others at once
constexpr int kColumns = kThreads;    // masks of a frame that are counted at once
constexpr int kWarps = kThreads / kWarp;

// What a block knows of its points in one frame.
struct Board {
  int visible;
  int left, top, right, bottom;  // of the pixels that carried points are in
  int distinct;                  // of those pixels
  int hits[kColumns];            // of them, in each mask of the frame
  uint32_t near[kWarps];         // which of the masks the box meets
  alignas(16) uint32_t bitmap[kWindow / 32];

  __device__ void clear_frame() {
    visible = 0;
    left = top = 0x7fffffff;
    right = bottom = -1;
  }

  __device__ void clear_bitmap() {
    for (int i = threadIdx.x; i < kWindow / 128; i += kThreads) {
      reinterpret_cast<uint4*>(bitmap)[i] = make_uint4(0, 0, 0, 0);
    }
  }
};

// A block carries both point sets of a mask one way through the scene. Its points are slots of 20 bytes in memory, each
// one thread's, so that they need no barrier; counts meet in shared memory. A frame's pixels are counted once by
// bits in a window of 2^17 pixels, which holds what most masks reach over, else in several. Masks of the frame whose
// box the points miss are not read. Pairs go to a pool, and place_kernel puts them in order: all counts are integers,
// so threads change nothing.
template <typename Value>
__global__ void __launch_bounds__(kThreads, 4)
    cover_kernel(Coverage all, Scene<Value> scene, Bounds bounds, float* visibility) {
  __shared__ Board board;
  if (all.totals->bad < all.number) return;
  const Sweep<Value> sweep(scene, blockIdx.x % 2);
  const int32_t row = blockIdx.x / 2, length = sweep.length, width = bounds.width;
  const Plan plan = all.plans[row];
  const int32_t number = plan.points[0] + plan.points[1];
  if (plan.first + number > all.slots) return;
  const auto words_per_row = static_cast<int32_t>(words_for(width)), words = bounds.height * words_per_row;
  Traveller* travellers = all.travellers + (sweep.up ? all.slots : 0) + plan.first;
  int32_t* pixels = all.pixels + (sweep.up ? all.slots : 0) + plan.first;
  const int32_t start = sweep.step_of(static_cast<int32_t>(all.frames[row]));
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;

  board.clear_bitmap();
  if (threadIdx.x < 2) board.hits[threadIdx.x] = threadIdx.x ? plan.points[0] : 0;
  if (threadIdx.x == 0) board.clear_frame();
  __syncthreads();
  for (int set = 0; set < 2 && number > 0; ++set) {
    Grid(bounds, plan.lines[set]).each(all.masks + static_cast<int64_t>(row) * words, bounds, [&](Vector place) {
      const int slot = atomicAdd(&board.hits[set], 1);
      Traveller point{place, {0.0f, 0.0f}};
      sweep.start(point, bounds, start);
      travellers[slot] = point;
      pixels[slot] = nearest_pixel(bounds, place);
    });
  }
  __syncthreads();

  int found = 0;  // pairs, as all lanes of the first warp know
  // The sweep upwards has the mask's own frame.
  for (int32_t step = sweep.up ? start : start + 1; step < length; ++step) {
    const int32_t frame = sweep.frame_of(step);
    int visible = 0;
    int left = 0x7fffffff, top = left, right = -1, bottom = -1;
    for (int32_t slot = threadIdx.x; slot < number; slot += kThreads) {
      int32_t pixel = pixels[slot];
      if (pixel == kLost) continue;
      if (step > start) {
        Traveller point = travellers[slot];
        const bool seen = sweep.carry(point, bounds, step);
        if (seen) travellers[slot] = point;
        pixel = seen ? nearest_pixel(bounds, point.place) : kLost;
        pixels[slot] = pixel;
        if (!seen) continue;
      }
      if (slot < plan.points[0]) {
        ++visible;
        continue;
      }
      const int32_t y = pixel / width, x = pixel % width;
      left = min(left, x);
      right = max(right, x);
      top = min(top, y);
      bottom = max(bottom, y);
    }
    visible = __reduce_add_sync(kAll, visible);
    left = __reduce_min_sync(kAll, left);
    top = __reduce_min_sync(kAll, top);
    right = __reduce_max_sync(kAll, right);
    bottom = __reduce_max_sync(kAll, bottom);
    if (lane == 0) {
      atomicAdd(&board.visible, visible);
      atomicMin(&board.left, left);
      atomicMin(&board.top, top);
      atomicMax(&board.right, right);
      atomicMax(&board.bottom, bottom);
    }
    __syncthreads();
    left = board.left;
    top = board.top;
    right = board.right;
    bottom = board.bottom;
    if (threadIdx.x == 0) {
      const double share = plan.points[0] ? static_cast<double>(board.visible) / plan.points[0] : 0.0;
      visibility[static_cast<int64_t>(row) * length + frame] = static_cast<float>(share);
    }
    __syncthreads();
    if (threadIdx.x == 0) board.clear_frame();

    const int32_t begin = all.begins[frame], end = right < 0 ? begin : all.begins[frame + 1];
    for (int32_t done = 0; done < end - begin; done += kColumns) {
      // Columns in the order of the sweep.
      const auto column_of = [&](int32_t k) { return sweep.up ? begin + done + k : end - 1 - done - k; };
      const int32_t columns = min(kColumns, end - begin - done);
      board.hits[threadIdx.x] = 0;
      if (threadIdx.x == 0) board.distinct = 0;
      bool meets = false;
      if (static_cast<int32_t>(threadIdx.x) < columns) {
        const Plan& other = all.plans[column_of(threadIdx.x)];
        meets = other.left <= right && other.right >= left && other.top <= bottom && other.bottom >= top;
      }
      const uint32_t ballot = __ballot_sync(kAll, meets);
      if (lane == 0) board.near[warp] = ballot;
      __syncthreads();

      for (int32_t window = top * width; window < (bottom + 1) * width; window += kWindow) {
        if (window > top * width) __syncthreads();  // until the bitmap is clear
        for (int32_t base = plan.points[0] + warp * kWarp; base < number; base += kThreads) {
          const int32_t pixel = base + lane < number ? pixels[base + lane] : kLost;
          bool first = pixel >= window && pixel - window < kWindow;
          if (first) {
            const uint32_t bit = 1u << ((pixel - window) % 32);
            first = !(atomicOr(&board.bitmap[(pixel - window) / 32], bit) & bit);
          }
          const int distinct = __popc(__ballot_sync(kAll, first));
          if (lane == 0 && distinct) atomicAdd(&board.distinct, distinct);
          const int32_t y = max(pixel, 0) / width, x = max(pixel, 0) % width;
          for (int w = 0; w < kWarps; ++w) {
            for (uint32_t rest = board.near[w]; rest; rest &= rest - 1) {
              const int k = w * kWarp + lowest_bit(rest);
              const uint64_t* mask = all.masks + static_cast<int64_t>(column_of(k)) * words;
              const int hits = __popc(__ballot_sync(kAll, first && bit_of(mask, words_per_row, y, x)));
              if (lane == 0 && hits) atomicAdd(&board.hits[k], hits);
            }
          }
        }
        __syncthreads();
        board.clear_bitmap();
      }

      for (int k = lane; warp == 0 && k - lane < columns; k += kWarp) {
        float share = 0.0f;
        if (k < columns) share = static_cast<float>(static_cast<double>(board.hits[k]) / board.distinct);
        const bool kept = k < columns && share > all.threshold;
        const uint32_t pairs = __ballot_sync(kAll, kept);
        unsigned long long slot = 0;
        if (lane == 0 && pairs) slot = atomicAdd(&all.totals->pairs, static_cast<unsigned long long>(__popc(pairs)));
        const int rank = __popc(pairs & ((1u << lane) - 1));
        slot = __shfl_sync(kAll, slot, 0) + rank;
        const int position = found + rank;
        if (kept && slot < static_cast<unsigned long long>(all.pairs)) {
          all.pool[slot] = {row, sweep.up ? position : -1 - position, column_of(k), share};
        }
        found += __popc(pairs);
      }
      __syncthreads();
    }
    if (begin == end) __syncthreads();
  }
  if (threadIdx.x == 0) all.counts[(sweep.up ? all.number : 0) + row] = found;
}

// One block: adds up the rows' pairs and says how the run went.
__global__ void offsets_kernel(Coverage all, int64_t* offsets) {
  __shared__ int64_t before[kWarps + 1];
  Totals* totals = all.totals;
  const bool bad = totals->bad < all.number;
  const bool small = totals->points > static_cast<unsigned long long>(all.slots) ||
                     totals->pairs > static_cast<unsigned long long>(all.pairs);
  if (threadIdx.x == 0) {
    totals->status = bad ? kBadFrames : small ? kTooSmall : static_cast<int64_t>(totals->pairs);
    offsets[0] = 0;
  }
  if (bad || small) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  int64_t total = 0;
  for (int64_t base = 0; base < all.number; base += kThreads) {
    const int64_t i = base + threadIdx.x;
    int64_t sum = i < all.number ? all.counts[i] + all.counts[all.number + i] : 0;
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int64_t other = __shfl_up_sync(kAll, sum, distance);
      if (lane >= distance) sum += other;
    }
    if (lane == kWarp - 1) before[warp] = sum;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) sum += before[w];
    }
    if (i < all.number) offsets[i + 1] = total + sum;
    if (threadIdx.x == kThreads - 1) before[kWarps] = total + sum;
    __syncthreads();
    total = before[kWarps];
  }
}

// A thread puts one pair in its place: a row's pairs of earlier frames were found last frame first.
__global__ void place_kernel(Coverage all, const int64_t* offsets, int64_t pairs, int64_t* columns, float* values) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= pairs) return;
  const Found pair = all.pool[i];
  const int64_t place = offsets[pair.row] + all.counts[pair.row] + pair.position;
  columns[place] = pair.column;
  values[place] = pair.value;
}

template <typename Value>
Scene<Value> scene_of(const Flows& flows) {
  return {static_cast<const Value*>(flows.forward), static_cast<const Value*>(flows.backward),
          flows.height * flows.width * 2, static_cast<int32_t>(flows.length)};
}

}  // namespace

void launch_tracks(const float* points, const int64_t* frames, const Flows& flows, float* tracks, uint8_t* visible,
                   int64_t number, void* stream) {
  if (number == 0) return;
  const dim3 blocks(static_cast<unsigned>(ceil_div(number, kPointThreads)), 2);
  const auto run = [&](auto kernel, auto scene) {
    launch("track_points", kernel, blocks, kPointThreads, stream, reinterpret_cast<const float2*>(points), frames,
           scene, reinterpret_cast<float2*>(tracks), visible, number, Bounds(flows.height, flows.width));
  };
  flows.half ? run(track_kernel<Half>, scene_of<Half>(flows)) : run(track_kernel<float>, scene_of<float>(flows));
}

void launch_coverage(const Coverage& coverage, const Flows& flows, float* visibility, int64_t* offsets, void* stream) {
  const Bounds bounds(flows.height, flows.width);
  const auto masks = static_cast<unsigned>(coverage.number);
  launch("track_coverage", frames_kernel, 1, kThreads, stream, coverage.frames, coverage.number, flows.length,
         coverage.begins, coverage.totals);
  launch("track_coverage", plan_kernel, masks, kThreads, stream, coverage, bounds);
  const auto run = [&](auto kernel, auto scene) {
    launch("track_coverage", kernel, 2 * masks, kThreads, stream, coverage, scene, bounds, visibility);
  };
  flows.half ? run(cover_kernel<Half>, scene_of<Half>(flows)) : run(cover_kernel<float>, scene_of<float>(flows));
  launch("track_coverage", offsets_kernel, 1, kThreads, stream, coverage, offsets);
}

void launch_place(const Coverage& coverage, const int64_t* offsets, int64_t pairs, int64_t* columns, float* values,
                  void* stream) {
  if (pairs == 0) return;
  launch("track_coverage", place_kernel, static_cast<unsigned>(ceil_div(pairs, kThreads)), kThreads, stream, coverage,
         offsets, pairs, columns, values);
}

}  // namespace s2d::point_tracks
