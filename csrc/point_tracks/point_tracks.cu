// point_tracks on CUDA. A step of a point is two lookups of four gathers, each at a place that only the last step
// tells, so what counts is the chain of waits. It is halved: two fields lie on a frame's grid, the one that leads on
// and the one that leads back, so a point that arrives reads both at once, and checks the step it came by while the
// next one is already there. float16 is gathered as it is, four bytes at a time.
//
// Both ways in time are threads of their own, so that neither waits for the other.

#include <algorithm>

#include "../common/launch.cuh"
#include "../common/scan.cuh"
#include "board.cuh"
#include "launchers.h"

namespace s2d::point_tracks {
namespace {

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

// A block owns a mask: reads it once for its box and area, and counts its points.
template <typename Points>
__global__ void __launch_bounds__(kThreads, 4) plan_kernel(Coverage all, Points points) {
  __shared__ int left, top, right, bottom, sum;
  if (all.totals->bad < all.number) return;
  if (threadIdx.x == 0) {
    left = top = 0x7fffffff;
    right = bottom = -1;
    sum = 0;
  }
  __syncthreads();
  const Bounds& bounds = points.bounds;
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
  const int area = block_sum(bits, &sum);
  Plan plan{left, top, right, bottom, {0, 0}, {0, 0}, 0};
  if (area > 0) points.plan(mask, area, all.frames[blockIdx.x], plan, &sum);
  if (threadIdx.x == 0) {
    const auto taken = static_cast<unsigned long long>(plan.points[0]) + static_cast<unsigned>(plan.points[1]);
    plan.first = static_cast<int64_t>(atomicAdd(&all.totals->points, taken));
    all.plans[blockIdx.x] = plan;
  }
}

// A block takes the points of a mask one way through the scene: as many as there are, in slots in memory. Pairs go to a
// pool, and place_kernel puts them in order. All counts are integers, so threads change nothing.
template <typename Points>
__global__ void __launch_bounds__(kThreads, 4) cover_kernel(Coverage all, Points points, float* visibility) {
  __shared__ Board board;
  if (all.totals->bad < all.number) return;
  const int32_t row = blockIdx.x / 2, length = points.length(), width = points.bounds.width;
  const auto sweep = points.sweep(blockIdx.x % 2);
  const Plan plan = all.plans[row];
  const int32_t number = plan.points[0] + plan.points[1], first = Points::kTwoSets ? plan.points[0] : 0;
  if (plan.first + number > all.slots) return;
  const auto words_per_row = static_cast<int32_t>(words_for(width)), words = points.bounds.height * words_per_row;
  const int64_t memory = (sweep.up ? all.slots : 0) + plan.first;
  auto* slots = static_cast<typename Points::Slot*>(all.memory) + memory;
  int32_t* pixels = all.pixels + memory;
  const int32_t start = sweep.step_of(static_cast<int32_t>(all.frames[row]));

  board.clear_bitmap();
  if (threadIdx.x < 2) board.hits[threadIdx.x] = threadIdx.x ? plan.points[0] : 0;
  if (threadIdx.x == 0) board.tally = no_points();
  __syncthreads();
  if (number > 0) {
    points.gather(all.masks + static_cast<int64_t>(row) * words, plan, sweep, start, slots, pixels, board.hits);
  }
  __syncthreads();

  int found = 0;
  // The sweep upwards has the mask's own frame.
  for (int32_t step = sweep.up ? start : start + 1; step < length; ++step) {
    Tally mine = no_points();
    for (int32_t slot = threadIdx.x; slot < number; slot += kThreads) {
      const Sighting point = points.at(sweep, step, start, slots[slot], pixels[slot]);
      if (slot < plan.points[0]) mine.visible += point.visible;
      if (slot >= first && point.pixel != kOutside) mine.add(point.pixel / width, point.pixel % width);
    }
    const Tally tally = board.sum(mine);
    const int32_t frame = sweep.frame_of(step);
    if (threadIdx.x == 0) {
      const double share = plan.points[0] ? static_cast<double>(tally.visible) / plan.points[0] : 0.0;
      visibility[static_cast<int64_t>(row) * length + frame] = static_cast<float>(share);
    }
    Columns columns{all.plans, all.masks, all.begins[frame], all.begins[frame + 1], 0, words, words_per_row, sweep.up};
    if (tally.right < 0) columns.end = columns.begin;
    for (; columns.number() > 0; columns.done += kColumns) {
      board.count(tally, pixels, first, number, width, columns);
      if (threadIdx.x < kWarp) board.put_pairs(all, row, columns, found);
      __syncthreads();
    }
    if (columns.begin == columns.end) __syncthreads();
  }
  if (threadIdx.x == 0) all.counts[(sweep.up ? all.number : 0) + row] = found;
}

// One block: adds up the rows' pairs and says how the run went.
__global__ void offsets_kernel(Coverage all, int64_t* offsets) {
  Totals* totals = all.totals;
  const bool bad = totals->bad < all.number;
  const bool small = totals->points > static_cast<unsigned long long>(all.slots) ||
                     totals->pairs > static_cast<unsigned long long>(all.pairs);
  if (threadIdx.x == 0) {
    totals->status = bad ? kBadFrames : small ? kTooSmall : static_cast<int64_t>(totals->pairs);
    offsets[0] = 0;
  }
  if (bad || small) return;
  int64_t carry = 0;
  for (int64_t base = 0; base < all.number; base += kThreads) {
    const int64_t i = base + threadIdx.x, mine = i < all.number ? all.counts[i] + all.counts[all.number + i] : 0;
    int64_t total;
    const int64_t before = carry + sum_before<kThreads>(mine, total);
    if (i < all.number) offsets[i + 1] = before + mine;
    carry += total;
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

template <typename Points>
void launch_all(const char* op, const Coverage& coverage, const Points& points, int64_t length, float* visibility,
                int64_t* offsets, void* stream) {
  const auto masks = static_cast<unsigned>(coverage.number);
  launch(op, frames_kernel, 1, kThreads, stream, coverage.frames, coverage.number, length, coverage.begins,
         coverage.totals);
  launch(op, plan_kernel<Points>, masks, kThreads, stream, coverage, points);
  launch(op, cover_kernel<Points>, 2 * masks, kThreads, stream, coverage, points, visibility);
  launch(op, offsets_kernel, 1, kThreads, stream, coverage, offsets);
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

void launch_coverage(const Coverage& coverage, const Flows& flows, const Grids& grids, float* visibility,
                     int64_t* offsets, void* stream) {
  const Bounds bounds(flows.height, flows.width);
  const auto run = [&](const auto& points) {
    launch_all("track_coverage", coverage, points, flows.length, visibility, offsets, stream);
  };
  flows.half ? run(FlowPoints<Half>{scene_of<Half>(flows), grids, bounds})
             : run(FlowPoints<float>{scene_of<float>(flows), grids, bounds});
}

void launch_coverage(const Coverage& coverage, const Tracks& tracks, float* visibility, int64_t* offsets,
                     void* stream) {
  const GivenPoints points{reinterpret_cast<const float2*>(tracks.places), tracks.visible,
                           static_cast<int32_t>(tracks.length), static_cast<int32_t>(tracks.number),
                           Bounds(tracks.height, tracks.width)};
  launch_all("coverage_of_tracks", coverage, points, tracks.length, visibility, offsets, stream);
}

void launch_place(const char* op, const Coverage& coverage, const int64_t* offsets, int64_t pairs, int64_t* columns,
                  float* values, void* stream) {
  if (pairs == 0) return;
  launch(op, place_kernel, static_cast<unsigned>(ceil_div(pairs, kThreads)), kThreads, stream, coverage, offsets, pairs,
         columns, values);
}

}  // namespace s2d::point_tracks
