// flow_warp_iou on CUDA. As on the CPU, the masks of the source become one word a pixel (32 bits for up to 32 masks,
// else 64), so that one gather reads them all where the flow leads, and nothing is warped in memory.
//
// Both kernels of the counts walk a pair's masks in steps of eight 64-pixel words, in memory order: a block takes a
// step, a warp one word of it, a lane pixels l and l + 32 of that word. A step's words of 32 masks are loaded by all
// threads, eight consecutive words a mask, and change hands in shared memory, so that lane l gets the word of mask l: a
// lane that loaded its own mask's word would touch a cache line of its own. The next step's loads are under way
// meanwhile.
//
// Counting: a lane gathers the source words of its two pixels and checks them against the reverse flow. For each source
// mask that any of the 64 pixels reads (few do), two ballots give every lane the warped word, and lane m counts what
// it shares with target m. One more target that is set everywhere gives the warped areas. Counts gather in shared
// memory and leave by one atomic each; integers, so their order changes nothing.
//
// A pixel moves N/8 + 4 bytes to be transposed (8 for more than 32 masks), then 8 of flow, 8 of reverse, 4 of gathered
// masks and M/8: 29 for 20 masks with the check, 21 of them unavoidable. The hard part is to keep enough loads under
// way and few instructions a pixel, as the check alone costs about 75: the flow of the next step is loaded before it is
// needed, and all gathers of both pixels are issued without a branch between them.

#include <algorithm>

#include "../common/launch.cuh"
#include "flow_warp_iou.h"

namespace s2d::flow_warp_iou {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kSpan = 2 * kWarp;  // pixels of a word
// Enough blocks to fill a large GPU a few times over; more would only add up more tables of counts.
constexpr int64_t kBlocks = 4096;

// The masks of one pair and how blocks share them: `parts` blocks of `block_words` words each.
struct Frame {
  Bounds bounds;
  int32_t words_per_row, words;  // 64-bit words of a mask
  int32_t block_words, parts;
};

// A warp's word of a step: its row and the column of its first pixel.
struct Cursor {
  int32_t row, column;

  __device__ Cursor(const Frame& frame, int32_t word)
      : row(word / frame.words_per_row), column(word % frame.words_per_row * kSpan) {}

  __device__ void advance(const Frame& frame) {
    column += kWarps * kSpan;
    for (; column >= frame.words_per_row * kSpan; ++row) column -= frame.words_per_row * kSpan;
  }
};

// How a block takes a step: kRun words a warp of up to kBits masks. Thread t loads word t % kStep of mask t / kStep and
// of those 32 / kRun masks on, and puts them where lanes find one word of all masks side by side.
template <int kBits, int kRun>
struct Step {
  static constexpr int kWords = kRun * kWarps, kLoads = kRun * kBits / kWarp, kStride = kWarp / kRun;
  static constexpr int kPitch = kBits + 2 / kRun;  // spreads what a warp stores over all banks
  static constexpr int kSize = kWords * kPitch;

  const uint64_t* source;
  int64_t stride;
  int32_t left[kLoads];
  uint64_t absent[kLoads], words[kLoads];

  // Masks [first, number) and, where `one_more`, one that is set everywhere.
  __device__ Step(const uint64_t* masks, int32_t first, int32_t number, int32_t begin, int32_t end, const Frame& frame,
                  bool one_more)
      : stride(static_cast<int64_t>(kStride) * frame.words) {
    const int32_t mask = first + static_cast<int32_t>(threadIdx.x / kWords);
    const int32_t word = begin + static_cast<int32_t>(threadIdx.x % kWords);
    source = masks + static_cast<int64_t>(mask) * frame.words + word;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      left[i] = mask + i * kStride < number ? end - word : 0;
      absent[i] = one_more && mask + i * kStride == number ? ~0ull : 0;
    }
    load();
  }

  __device__ void load() {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) words[i] = left[i] > 0 ? source[i * stride] : absent[i];
  }

  // Puts the step into shared memory and loads the next.
  __device__ void put(uint64_t* shared) {
    source += kWords;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      shared[threadIdx.x % kWords * kPitch + threadIdx.x / kWords + i * kStride] = words[i];
      left[i] -= kWords;
    }
    load();
  }
};

// Bit b of lane l becomes bit l of lane b: each round swaps two blocks of a matrix of four.
__device__ __forceinline__ uint32_t transpose_bits(uint32_t bits) {
  const int lane = threadIdx.x % kWarp;
  uint32_t lower = 0x0000ffffu;
#pragma unroll
  for (int size = kWarp / 2; size > 0; size /= 2) {
    const uint32_t other = __shfl_xor_sync(kAll, bits, size);
    const int turn = lane & size ? kWarp - size : size;
    const uint32_t kept = lane & size ? ~lower : lower;
    bits = (bits & kept) | ((other << turn | other >> (kWarp - turn)) & ~kept);
    lower ^= lower << (size / 2);
  }
  return bits;
}

// pixels [P, passes, H, W]: bit n of a word is mask pass * bits + n.
template <typename Word>
__global__ void __launch_bounds__(kThreads)
    transpose_kernel(const uint64_t* source, Word* pixels, int32_t sources, uint32_t passes, Frame frame) {
  constexpr int kBits = 8 * sizeof(Word), kTiles = kBits / kWarp, kRun = 2;
  using Masks = Step<kBits, kRun>;
  __shared__ uint64_t exchange[2 * Masks::kSize];
  const uint32_t part = blockIdx.x % frame.parts, picture = blockIdx.x / frame.parts;
  const int32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, width = frame.bounds.width;
  const int32_t begin = part * frame.block_words, end = min(begin + frame.block_words, frame.words);
  pixels += static_cast<int64_t>(picture) * (frame.bounds.height * width);

  Masks masks(source + static_cast<int64_t>(picture / passes) * sources * frame.words, picture % passes * kBits,
              sources, begin, end, frame, false);
  Cursor at(frame, begin + warp);
  int slot = 0;
  for (int32_t step = begin; step < end; step += Masks::kWords, slot ^= Masks::kSize) {
    masks.put(exchange + slot);
    __syncthreads();
#pragma unroll
    for (int run = 0; run < kRun; ++run, at.advance(frame)) {
      const uint64_t* words = exchange + slot + (run * kWarps + warp) * Masks::kPitch + lane;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Word pixel = 0;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const uint32_t bits = static_cast<uint32_t>(words[t * kWarp] >> (half * kWarp));
          pixel |= static_cast<Word>(transpose_bits(bits)) << (t * kWarp);
        }
        const int32_t x = at.column + half * kWarp + lane;
        if (x < width && at.row < frame.bounds.height) pixels[at.row * width + x] = pixel;
      }
    }
  }
}

__device__ __forceinline__ uint32_t warp_or(uint32_t bits) { return __reduce_or_sync(kAll, bits); }

__device__ __forceinline__ uint64_t warp_or(uint64_t bits) {
  const uint32_t low = warp_or(static_cast<uint32_t>(bits)), high = warp_or(static_cast<uint32_t>(bits >> 32));
  return low | static_cast<uint64_t>(high) << 32;
}

// One bit of every lane for each of the two pixels it owns, as the word of 64 pixels.
__device__ __forceinline__ uint64_t ballot(bool left, bool right) {
  const uint32_t low = __ballot_sync(kAll, left), high = __ballot_sync(kAll, right);
  return low | static_cast<uint64_t>(high) << 32;
}

// The source masks at a position of the target's frame, one a bit, and whether its nearest pixel lies in the frame. The
// constructor loads, without a branch, so that many loads are under way at once; masks() waits for them.
template <typename Word, Mode kMode>
struct Reading;

template <typename Word>
struct Reading<Word, kNearest> {
  Word word;
  bool inside;

  __device__ Reading(const Word* pixels, const Bounds& bounds, Vector p) {
    const uint32_t row = nearest(p.y), column = nearest(p.x);
    // What is negative, too large or no number is beyond both sizes here, which stay below 2^22.
    inside = row < static_cast<uint32_t>(bounds.height) & column < static_cast<uint32_t>(bounds.width);
    word = inside ? pixels[row * bounds.width + column] : 0;
  }

  __device__ Word masks() const { return word; }
};

template <typename Word>
struct Reading<Word, kBilinear> {
  Word corner[4];
  float fx, fy;
  bool inside;

  __device__ Reading(const Word* pixels, const Bounds& bounds, Vector p) : inside(bounds.hold(p)) {
    const Corners at = corners_of(bounds, p, -1);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const Word word = pixels[max(at.index[c], 0)];
      corner[c] = at.index[c] < 0 ? 0 : word;
    }
    fx = at.fx;
    fy = at.fy;
  }

  __device__ Word masks() const { return blend_words(corner, fx, fy); }
};

struct Counts {
  unsigned long long *intersection, *warped, *target;
};

// Block b owns tile b % tiles of the table of counts, which is kBits source masks by kBits targets, and part b / tiles
// of all pairs. What lies outside, lanes past the width included, reads 0, so nothing else keeps it out of a count.
template <typename Word, Mode kMode, bool kChecked>
__global__ void __launch_bounds__(kThreads, kMode == kNearest ? 5 : 4)
    count_kernel(Warp all, const Word* pixels, Counts counts, uint32_t passes, uint32_t column_passes, Frame frame) {
  constexpr int kBits = 8 * sizeof(Word), kTiles = kBits / kWarp;
  __shared__ int table[kBits + 1][kBits];
  using Masks = Step<kBits, 1>;
  __shared__ uint64_t exchange[2 * Masks::kSize];
  const uint32_t tiles = passes * column_passes, tile = blockIdx.x % tiles, block = blockIdx.x / tiles;
  const uint32_t pass = tile / column_passes, part = block % frame.parts, pair = block / frame.parts;
  const int32_t first_column = tile % column_passes * kBits, targets = static_cast<int32_t>(all.targets);
  const int32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int32_t height = frame.bounds.height, width = frame.bounds.width, area = height * width;
  const int32_t begin = part * frame.block_words, end = min(begin + frame.block_words, frame.words);
  const float* flow = all.flow + static_cast<int64_t>(2 * area) * pair;
  const float* reverse = kChecked ? all.reverse + static_cast<int64_t>(2 * area) * pair : nullptr;
  const uint64_t* visible = all.visible ? all.visible + static_cast<int64_t>(frame.words) * pair : nullptr;
  pixels += static_cast<int64_t>(area) * (pair * passes + pass);

  for (int cell = threadIdx.x; cell < (kBits + 1) * kBits; cell += kThreads) (&table[0][0])[cell] = 0;
  Cursor at(frame, begin + warp);
  Vector f[2];
  const auto load_flow = [&](int32_t word) {
    const float* here = flow + 2 * static_cast<int64_t>(at.row * width + at.column + lane);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool there = word < end && at.column + half * kWarp + lane < width;
      f[half] = there ? flow_at(here, half * kWarp) : Vector{0.0f, 0.0f};
    }
  };
  load_flow(begin + warp);
  Masks masks(all.target + static_cast<int64_t>(frame.words) * targets * pair, first_column, targets, begin, end, frame,
              true);
  int target_area[kTiles] = {};
  int slot = 0;
  for (int32_t step = begin; step < end; step += kWarps, slot ^= Masks::kSize) {
    const int32_t word = step + warp;
    masks.put(exchange + slot);
    const float x = static_cast<float>(at.column + lane), y = static_cast<float>(at.row);
    const Vector there[2] = {{x + f[0].x, y + f[0].y}, {x + kWarp + f[1].x, y + f[1].y}};
    const Reading<Word, kMode> reading[2] = {{pixels, frame.bounds, there[0]}, {pixels, frame.bounds, there[1]}};
    uint64_t kept = visible && word < end ? visible[word] : ~0ull;
    if constexpr (kChecked) {
      const Vector back[2] = {lookup(reverse, frame.bounds, there[0]), lookup(reverse, frame.bounds, there[1])};
      kept &= ballot(reading[0].inside & agree(f[0], back[0]), reading[1].inside & agree(f[1], back[1]));
    }
    at.advance(frame);
    load_flow(word + kWarps);
    const Word read[2] = {reading[0].masks(), reading[1].masks()};

    __syncthreads();
    uint64_t columns[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      columns[t] = exchange[slot + warp * Masks::kPitch + t * kWarp + lane] & kept;
      target_area[t] += popcount(columns[t]);
    }
    for (Word any = warp_or(static_cast<Word>(read[0] | read[1])); any;) {
      const int n = highest_bit(any);
      const Word bit = Word{1} << n;
      const uint64_t warped = ballot(read[0] & bit, read[1] & bit);
      any ^= bit;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) atomicAdd(&table[n][t * kWarp + lane], popcount(warped & columns[t]));
    }
  }
  if (pass == 0) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) atomicAdd(&table[kBits][t * kWarp + lane], target_area[t]);
  }
  __syncthreads();

  for (uint32_t cell = threadIdx.x; cell < (kBits + 1) * kBits; cell += kThreads) {
    const uint32_t row = cell / kBits, column = cell % kBits;
    const int64_t n = pair * all.sources + pass * kBits + row, m = first_column + static_cast<int32_t>(column);
    const int count = table[row][column];
    if (count == 0 || (row == kBits && m == targets)) continue;
    unsigned long long* total = row == kBits   ? counts.target + pair * all.targets + m
                                : m == targets ? counts.warped + n
                                               : counts.intersection + n * all.targets + m;
    atomicAdd(total, static_cast<unsigned long long>(count));
  }
}

// A thread owns one pixel: 8 bytes of flow, 8 of reverse gathered four times, 1 written.
__global__ void __launch_bounds__(kThreads)
    consistency_kernel(const float* flow, const float* reverse, uint8_t* good, Bounds bounds, int32_t parts) {
  const int32_t pixel = blockIdx.x % parts * kThreads + threadIdx.x;
  if (pixel >= bounds.height * bounds.width) return;
  const int64_t before = static_cast<int64_t>(blockIdx.x / parts) * bounds.height * bounds.width;
  const Vector here{static_cast<float>(pixel % bounds.width), static_cast<float>(pixel / bounds.width)};
  good[before + pixel] = consistent(reverse + 2 * before, bounds, here, flow_at(flow + 2 * before, pixel));
}

// A thread owns one pixel: 8 bytes of each flow, 8 written.
__global__ void __launch_bounds__(kThreads)
    compose_kernel(const float* first, const float* second, float2* out, Bounds bounds, int32_t parts) {
  const int32_t pixel = blockIdx.x % parts * kThreads + threadIdx.x;
  if (pixel >= bounds.height * bounds.width) return;
  const int64_t before = static_cast<int64_t>(blockIdx.x / parts) * bounds.height * bounds.width;
  const Vector total = composed(second + 2 * before, bounds,
                                {static_cast<float>(pixel % bounds.width), static_cast<float>(pixel / bounds.width)},
                                flow_at(first + 2 * before, pixel));
  out[before + pixel] = {total.x, total.y};
}

// Gives each block whole steps of `step` words, so that all `number` frames together take about kBlocks blocks.
Frame frame_of(int64_t height, int64_t width, int64_t number, int64_t step) {
  const int64_t words = height * words_for(width), steps = ceil_div(words, step);
  const int64_t block_steps = std::min(ceil_div(steps * number, kBlocks), steps);
  return {Bounds(height, width), static_cast<int32_t>(words_for(width)), static_cast<int32_t>(words),
          static_cast<int32_t>(block_steps * step), static_cast<int32_t>(ceil_div(steps, block_steps))};
}

template <typename Word>
int64_t passes_of(int64_t sources) {
  return std::max<int64_t>(1, ceil_div(sources, 8 * sizeof(Word)));
}

// Whether a table of 32 x 32 counts holds all, the target that is set everywhere included.
bool is_small(const Warp& warp) { return warp.sources <= kWarp && warp.targets < kWarp; }

template <typename Word>
void launch_counts_of(const Warp& warp, Word* pixels, Counts counts, void* stream) {
  const int64_t passes = passes_of<Word>(warp.sources), column_passes = ceil_div(warp.targets + 1, 8 * sizeof(Word));
  const int64_t pictures = warp.pairs * passes, tables = pictures * column_passes;
  const Frame split = frame_of(warp.height, warp.width, pictures, 2 * kWarps);
  launch("flow_warp_iou", transpose_kernel<Word>, static_cast<unsigned>(pictures * split.parts), kThreads, stream,
         warp.source, pixels, warp.sources, passes, split);
  const Frame frame = frame_of(warp.height, warp.width, tables, kWarps);
  const auto kernel = warp.mode == kNearest
                          ? (warp.reverse ? count_kernel<Word, kNearest, true> : count_kernel<Word, kNearest, false>)
                          : (warp.reverse ? count_kernel<Word, kBilinear, true> : count_kernel<Word, kBilinear, false>);
  launch("flow_warp_iou", kernel, static_cast<unsigned>(tables * frame.parts), kThreads, stream, warp, pixels, counts,
         passes, column_passes, frame);
}

}  // namespace

int64_t scratch_size(const Warp& warp) {
  const int64_t words = is_small(warp) ? 1 : 2 * passes_of<uint64_t>(warp.sources);
  return warp.pairs * words * warp.height * warp.width;
}

void launch_counts(const Warp& warp, uint32_t* scratch, int64_t* intersection, int64_t* warped_area,
                   int64_t* target_area, void* stream) {
  if (warp.pairs * warp.height * warp.width == 0) return;
  const Counts counts{reinterpret_cast<unsigned long long*>(intersection),
                      reinterpret_cast<unsigned long long*>(warped_area),
                      reinterpret_cast<unsigned long long*>(target_area)};
  if (is_small(warp)) {
    launch_counts_of(warp, scratch, counts, stream);
  } else {
    launch_counts_of(warp, reinterpret_cast<uint64_t*>(scratch), counts, stream);
  }
}

void launch_consistency(const float* flow, const float* reverse, uint8_t* good, int64_t pairs, int64_t height,
                        int64_t width, void* stream) {
  if (pairs * height * width == 0) return;
  const int64_t parts = ceil_div(height * width, kThreads);
  launch("flow_consistency", consistency_kernel, static_cast<unsigned>(pairs * parts), kThreads, stream, flow, reverse,
         good, Bounds(height, width), parts);
}

void launch_compose(const float* first, const float* second, float* out, int64_t pairs, int64_t height, int64_t width,
                    void* stream) {
  if (pairs * height * width == 0) return;
  const int64_t parts = ceil_div(height * width, kThreads);
  launch("flow_compose", compose_kernel, static_cast<unsigned>(pairs * parts), kThreads, stream, first, second,
         reinterpret_cast<float2*>(out), Bounds(height, width), parts);
}

}  // namespace s2d::flow_warp_iou
