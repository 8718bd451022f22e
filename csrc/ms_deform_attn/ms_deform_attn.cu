// ms_deform_attn on CUDA. Not run on a GPU.
//
// A group of 4 to 32 lanes owns one sum: a head of a query. Its lanes share the D channels, 16 bytes each, so 8 lanes
// for D = 32 in float32, 4 in half precision. A warp takes as many queries of one head in a row as it has groups: they
// read neighbouring pixels, which the first cache then holds. Points are worked out once, a lane two of them, and
// handed to the group through shared memory; lanes of a group then read each corner as one stretch.
//
// Forward: of device memory, every input once and the result. What takes the time is the reads of corners from the
// first cache, 4 D numbers a point: at the official size (N=3, S=Lq=5040, M=8, D=32, L=3, P=4) 743 MB in float32, 26 us
// at 128 bytes a clock of each of an H200's 132 multiprocessors, against 11 us for the 48 MB of device memory; half of
// that in half precision. A tile of values in shared memory would be read at the same 128 bytes a clock and would have
// to hold whole levels (491 kB of a head at stride 8), as points may lie anywhere.
//
// Backward: reads the same and adds each point's share of the gradient to its corners' rows in device memory, which the
// second cache holds: 743 MB of additions, 52 us at the 64 bytes a clock that leave a multiprocessor. On sm_90 one
// instruction adds four numbers of a lane. Sums in shared memory would need whole levels there too, and additions of
// floats there are loops of compare-and-swap. The order of additions to grad_value is the device's, so its last bits
// change from run to run; all other results have one order. Half precision adds in float32.

#include <cmath>

#include "../common/half.h"
#include "../common/launch.cuh"
#include "launchers.h"
#include "ms_deform_attn.h"

namespace s2d::ms_deform_attn {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kFewestLanes = 4, kPointsPerLane = 2;
// Points that a warp works out at once: two a lane, and one place of padding a group, so that groups of lanes read from
// different banks.
constexpr int kRound = kPointsPerLane * kWarp + kWarp / kFewestLanes;

template <typename Real>
struct alignas(16) Point {
  Real fx, fy, weight;
  int32_t place;  // of its first corner, among all levels
};

template <typename Real>
struct Round {
  Point<Real> points[kRound];
  int32_t reach[kRound];  // the level's width << 4 | which corners are inside
};

struct Level {
  int32_t height, width, start;
};

template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Pack {
  T values[kVector];
};

// A level that is not within the places has no pixel: sizes on the device were not checked before.
__device__ __forceinline__ void load_levels(const Inputs& all, Level* levels) {
  const auto mine = static_cast<int32_t>(threadIdx.x);
  if (mine < all.levels) {
    int64_t start = 0, height = 0, width = 0;
    for (int32_t level = 0; level <= mine; ++level) {
      start += height * width;
      height = all.device_sizes ? all.device_sizes[2 * level] : all.height[level];
      width = all.device_sizes ? all.device_sizes[2 * level + 1] : all.width[level];
    }
    const bool sane = height > 0 && width > 0 && height <= all.places && width <= all.places;
    const bool fits = sane && start >= 0 && start + height * width <= all.places;
    levels[mine] = fits ? Level{static_cast<int32_t>(height), static_cast<int32_t>(width), static_cast<int32_t>(start)}
                        : Level{0, 0, 0};
  }
  __syncthreads();
}

// A group of lanes and the sum it owns.
struct Group {
  int lanes, lane, slot;  // slot: of its first point in the warp's round
  int64_t head;           // where the head's values of this batch begin
  int64_t sum;            // number of this sum in the result
  bool there;             // the last warp may have more groups than there are sums left

  __device__ Group(const Inputs& all, int group_lanes) : lanes(group_lanes), lane(threadIdx.x % group_lanes) {
    const int of_warp = static_cast<int>(threadIdx.x % kWarp) / lanes;
    slot = of_warp * (kPointsPerLane * lanes + 1);
    const auto number = static_cast<uint32_t>(all.batches * all.heads * all.queries);
    const uint32_t mine = (blockIdx.x * kThreads + threadIdx.x) / static_cast<uint32_t>(lanes);
    there = mine < number;
    const uint32_t index = there ? mine : number - 1, of_batch = all.heads * all.queries;
    const uint32_t batch = index / of_batch, m = index % of_batch / all.queries, q = index % all.queries;
    head = (static_cast<int64_t>(batch) * all.places * all.heads + m) * all.channels;
    sum = (static_cast<int64_t>(batch) * all.queries + q) * all.heads + m;
  }
};

// Works out the group's points [first, first + kPointsPerLane * lanes). A point with no corner inside is all zeros, so
// that nothing of it is used.
template <typename Number, typename Real>
__device__ __forceinline__ void work_out(const Inputs& all, const Level* levels, const Group& group, int first,
                                         Round<Real>& round) {
  const int per_head = all.levels * all.points;
  __syncwarp();
#pragma unroll
  for (int k = 0; k < kPointsPerLane; ++k) {
    const int r = group.lane + k * group.lanes, p = first + r;
    if (p >= per_head) break;
    const int64_t place = group.sum * per_head + p;
    const auto at = static_cast<const Pack<Number, 2>*>(all.locations)[place];
    const Real weight = widened(static_cast<const Number*>(all.weights)[place]);
    const Level level = levels[p / all.points];
    const auto corners = corners_of<Real>(widened(at.values[0]), widened(at.values[1]), level.height, level.width);
    round.points[group.slot + r] =
        corners.inside ? Point<Real>{corners.fx, corners.fy, weight, level.start + corners.place} : Point<Real>{};
    round.reach[group.slot + r] = level.width << 4 | corners.inside;
  }
  __syncwarp();
}

// Where a corner's row lies, from the first place's.
__device__ __forceinline__ int64_t offset_of(int corner, int32_t place, int32_t reach, int32_t row) {
  return static_cast<int64_t>(place + corner % 2 + corner / 2 * (reach >> 4)) * row;
}

// A lane's channels of a point's four corners; what is outside reads as zero.
template <typename T, int kVector>
struct Reading {
  Pack<T, kVector> rows[4] = {};

  __device__ __forceinline__ Reading(const T* values, int32_t place, int32_t reach, int32_t row, bool owns) {
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (!owns || !(reach >> corner & 1)) continue;
      rows[corner] = *reinterpret_cast<const Pack<T, kVector>*>(values + offset_of(corner, place, reach, row));
    }
  }
};

template <typename Real>
struct Shares {
  Real of[4];

  __device__ __forceinline__ explicit Shares(const Point<Real>& at) {
    of[0] = (1 - at.fx) * (1 - at.fy);
    of[1] = at.fx * (1 - at.fy);
    of[2] = (1 - at.fx) * at.fy;
    of[3] = at.fx * at.fy;
  }
};

// That have registers at once.
template <typename T, int kVector>
constexpr int blocks_per_multiprocessor() {
  return sizeof(T) == 8 ? 2 : kVector > 4 ? 3 : 4;
}

template <typename T, typename Number, int kVector>
__global__ void __launch_bounds__(kThreads, blocks_per_multiprocessor<T, kVector>())
    forward_kernel(Inputs all, T* out, int lanes) {
  using Real = Wide<T>;
  __shared__ Level levels[kMostLevels];
  __shared__ Round<Real> rounds[kWarps];
  load_levels(all, levels);
  Round<Real>& round = rounds[threadIdx.x / kWarp];
  const Group group(all, lanes);
  const int per_head = all.levels * all.points, row = all.heads * all.channels;
  for (int chunk = 0; chunk < all.channels; chunk += lanes * kVector) {
    const int channel = chunk + group.lane * kVector;
    const bool owns = channel < all.channels;
    const T* values = static_cast<const T*>(all.value) + group.head + channel;
    Real sum[kVector] = {};
    for (int first = 0; first < per_head; first += kPointsPerLane * lanes) {
      work_out<Number>(all, levels, group, first, round);
      const int number = min(kPointsPerLane * lanes, per_head - first);
#pragma unroll(kVector > 4 ? 1 : 2)
      for (int r = 0; r < number; ++r) {
        const Point<Real> at = round.points[group.slot + r];
        const Reading<T, kVector> read(values, at.place, round.reach[group.slot + r], row, owns);
        const Shares<Real> shares(at);
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          const Real share = at.weight * shares.of[corner];
#pragma unroll
          for (int k = 0; k < kVector; ++k) sum[k] = std::fma(share, widened(read.rows[corner].values[k]), sum[k]);
        }
      }
    }
    if (!group.there || !owns) continue;
    Pack<T, kVector> result;
#pragma unroll
    for (int k = 0; k < kVector; ++k) narrow(sum[k], result.values[k]);
    *reinterpret_cast<Pack<T, kVector>*>(out + group.sum * all.channels + channel) = result;
  }
}

template <typename Real, int kVector>
__device__ __forceinline__ void add_to(Real* place, const Real (&values)[kVector]) {
#if __CUDA_ARCH__ >= 900
  constexpr bool at_once = sizeof(Real) == 4 && kVector == 4;
#else
  constexpr bool at_once = false;
#endif
  if constexpr (at_once) {
    atomicAdd(reinterpret_cast<float4*>(place), make_float4(values[0], values[1], values[2], values[3]));
  } else {
#pragma unroll
    for (int k = 0; k < kVector; ++k) atomicAdd(place + k, values[k]);
  }
}

template <typename T, typename Number, int kVector>
__global__ void __launch_bounds__(kThreads, blocks_per_multiprocessor<T, kVector>())
    backward_kernel(Inputs all, const T* grad, Wide<T>* grad_value, Number* grad_locations, Number* grad_weights,
                    int lanes) {
  using Real = Wide<T>;
  __shared__ Level levels[kMostLevels];
  __shared__ Round<Real> rounds[kWarps];
  load_levels(all, levels);
  Round<Real>& round = rounds[threadIdx.x / kWarp];
  const Group group(all, lanes);
  const int per_head = all.levels * all.points, row = all.heads * all.channels;
  for (int chunk = 0; chunk < all.channels; chunk += lanes * kVector) {
    const int channel = chunk + group.lane * kVector;
    const bool owns = channel < all.channels;
    const T* values = static_cast<const T*>(all.value) + group.head + channel;
    Pack<T, kVector> given{};
    if (owns) given = *reinterpret_cast<const Pack<T, kVector>*>(grad + group.sum * all.channels + channel);
    for (int first = 0; first < per_head; first += kPointsPerLane * lanes) {
      work_out<Number>(all, levels, group, first, round);
      const int number = min(kPointsPerLane * lanes, per_head - first);
      for (int r = 0; r < number; ++r) {
        Point<Real>& slot = round.points[group.slot + r];
        const Point<Real> at = slot;
        const int32_t reach = round.reach[group.slot + r];
        const Reading<T, kVector> read(values, at.place, reach, row, owns);
        const Shares<Real> shares(at);
        Real sum = 0, along_x = 0, along_y = 0;
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          const Real g = widened(given.values[k]);
          Real v[4];
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            v[corner] = widened(read.rows[corner].values[k]);
            sum = std::fma(g * shares.of[corner], v[corner], sum);
          }
          along_x = std::fma(g, std::fma(at.fy, v[3] - v[2], (1 - at.fy) * (v[1] - v[0])), along_x);
          along_y = std::fma(g, std::fma(at.fx, v[3] - v[1], (1 - at.fx) * (v[2] - v[0])), along_y);
        }
        for (int distance = lanes / 2; distance > 0; distance /= 2) {
          sum += __shfl_xor_sync(kAll, sum, distance);
          along_x += __shfl_xor_sync(kAll, along_x, distance);
          along_y += __shfl_xor_sync(kAll, along_y, distance);
        }
        if (group.lane == 0 && reach & 15) slot = {at.weight * along_x, at.weight * along_y, sum, 0};
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          if (!group.there || !owns || !(reach >> corner & 1)) continue;
          Real share[kVector];
#pragma unroll
          for (int k = 0; k < kVector; ++k) share[k] = at.weight * shares.of[corner] * widened(given.values[k]);
          add_to(grad_value + group.head + channel + offset_of(corner, at.place, reach, row), share);
        }
      }
      __syncwarp();
#pragma unroll
      for (int k = 0; k < kPointsPerLane; ++k) {
        const int r = group.lane + k * lanes, p = first + r;
        if (!group.there || p >= per_head) break;
        const Level level = levels[p / all.points];
        const Point<Real> found = round.points[group.slot + r];
        const int64_t place = group.sum * per_head + p;
        Real sums[3] = {found.fx * static_cast<Real>(level.width), found.fy * static_cast<Real>(level.height),
                        found.weight};
        auto& at = reinterpret_cast<Pack<Number, 2>*>(grad_locations)[place];
        if (chunk > 0) {
          sums[0] += widened(at.values[0]);
          sums[1] += widened(at.values[1]);
          sums[2] += widened(grad_weights[place]);
        }
        Pack<Number, 2> both;
        narrow(sums[0], both.values[0]);
        narrow(sums[1], both.values[1]);
        at = both;
        narrow(sums[2], grad_weights[place]);
      }
    }
  }
}

// Lanes that share `vectors` of a sum's channels: a power of two.
int lanes_for(int64_t vectors) {
  int lanes = kFewestLanes;
  while (lanes < vectors && lanes < kWarp) lanes *= 2;
  return lanes;
}

template <typename... Parameters, typename... Arguments>
void launch_groups(void (*kernel)(Parameters...), const Inputs& all, int vector, void* stream, Arguments... arguments) {
  const int lanes = lanes_for(ceil_div(all.channels, vector));
  const int64_t sums = static_cast<int64_t>(all.batches) * all.heads * all.queries;
  if (sums * all.channels == 0) return;
  launch("ms_deform_attn", kernel, grid_for(sums * lanes, kThreads), kThreads, stream, all, arguments..., lanes);
}

template <typename T, typename Number>
struct Types {
  using Value = T;
  using Of = Number;
};

// Calls run with the types of value and of the numbers.
template <typename Run>
void with_types(const Inputs& all, const Run& run) {
  const bool wide = all.number_type == Type::kFloat;
  switch (all.type) {
    case Type::kFloat:
      return run(Types<float, float>());
    case Type::kDouble:
      return run(Types<double, double>());
    case Type::kHalf:
      return wide ? run(Types<Half, float>()) : run(Types<Half, Half>());
    case Type::kBfloat:
      return wide ? run(Types<Bfloat, float>()) : run(Types<Bfloat, Bfloat>());
  }
}

}  // namespace

void launch_forward(const Inputs& all, void* out, void* stream) {
  with_types(all, [&](auto types) {
    using T = typename decltype(types)::Value;
    using Number = typename decltype(types)::Of;
    constexpr int kVector = 16 / sizeof(T);
    const bool whole = all.channels % kVector == 0;
    launch_groups(whole ? forward_kernel<T, Number, kVector> : forward_kernel<T, Number, 1>, all, whole ? kVector : 1,
                  stream, static_cast<T*>(out));
  });
}

void launch_backward(const Inputs& all, const void* grad, void* grad_value, void* grad_locations, void* grad_weights,
                     void* stream) {
  with_types(all, [&](auto types) {
    using T = typename decltype(types)::Value;
    using Number = typename decltype(types)::Of;
    constexpr int kVector = 16 / sizeof(Wide<T>);  // of what is added up
    const bool whole = all.channels % kVector == 0;
    launch_groups(whole ? backward_kernel<T, Number, kVector> : backward_kernel<T, Number, 1>, all, whole ? kVector : 1,
                  stream, static_cast<const T*>(grad), static_cast<Wide<T>*>(grad_value),
                  static_cast<Number*>(grad_locations), static_cast<Number*>(grad_weights));
  });
}

}  // namespace s2d::ms_deform_attn
