// connected_components on CUDA: union-find over the runs of bits in words, four launches whatever is in the masks.
//
//   tile_kernel    a block owns a tile of 256 words, a thread a word: joins the tile's segments in shared memory, and
//                  numbers the tile's parts. Reads 1/8 byte a pixel, writes 2 bytes a word and a segment, 8 a part.
//   border_kernel  a thread owns a word whose upper or left neighbour is in another tile: joins the tiles' parts.
//   count_kernel   a block owns a tile's parts: finds their roots, sums up their areas, counts the tile's roots.
//   image_kernel   a block owns 64 words: looks up the values of their segments and writes 8 bytes a pixel, which is
//                  nine tenths of all memory traffic; or select_kernel, a thread a word, flips bits of a copy.
//
// Scratch memory is sized for noise, 7 bytes a pixel, but only what there are segments and parts for is touched: for
// smooth masks less than their bits.
//
// The hard part is joining without locks: a parent is only ever lowered, by atomicMin, and who lowers the parent of
// what is a root no more goes on to join what it was linked to (join). So the root of a part is its first segment
// whatever the order of the threads, and labels, counted in the order of roots, are always the same.

#include "../common/launch.cuh"
#include "../common/scan.cuh"
#include "connected_components.h"

namespace s2d::connected_components {
namespace {

constexpr int kThreads = kTileWords;

// ---- union-find: others lower the parents meanwhile, so they are read as they are now ----

__device__ __forceinline__ uint32_t latest(const uint32_t* place) {
  return *static_cast<const volatile uint32_t*>(place);
}

// The root, to which the parent is brought close on the way: where all walk along one chain, each step halves it.
__device__ __forceinline__ uint32_t find(uint32_t* parents, uint32_t node) {
  uint32_t above = latest(parents + node);
  for (uint32_t next; (next = latest(parents + above)) != above; above = next) atomicMin(parents + node, next);
  return above;
}

__device__ __forceinline__ void join(uint32_t* parents, uint32_t a, uint32_t b) {
  while ((a = find(parents, a)) != (b = find(parents, b))) {
    const uint32_t high = max(a, b), low = min(a, b);
    const uint32_t old = atomicMin(parents + high, low);
    if (old == high) return;  // it was a root
    a = old;
    b = low;
  }
}

// ---- places ----

// The memory of one mask.
struct Mask {
  const uint64_t* words;
  Scratch scratch;
  uint32_t number, tiles, tile_segments;

  __device__ Mask(const uint64_t* all, const Scratch& s, const Sizes& sizes, uint32_t index, uint32_t tiles_per_mask)
      : number(static_cast<uint32_t>(sizes.words())), tiles(tiles_per_mask) {
    const uint32_t per_word = static_cast<uint32_t>(sizes.width < kWordBits ? (sizes.width + 1) / 2 : kWordBits / 2);
    tile_segments = kTileWords * per_word;
    const int64_t mask = index, segments = mask * tiles * tile_segments;
    words = all + mask * number;
    scratch = {s.first + mask * number, s.parts + segments,
               s.parents + segments,    s.areas + segments,
               s.numbers + segments,    s.in_tiles + mask * tiles,
               s.before + mask * tiles, s.groups + mask * ((tiles + kGroupTiles - 1) / kGroupTiles)};
  }

  // Of a segment, by its number in its tile: the number of its part in the mask.
  __device__ uint32_t part(uint32_t tile, uint32_t segment) const {
    return tile * tile_segments + scratch.parts[tile * tile_segments + segment];
  }
};

__device__ __forceinline__ uint64_t segment_starts(uint64_t word) { return word & ~(word << 1); }

// ---- kernels ----

// Of a node of a tile in shared memory, once all are joined: root, pixels and whether they touch the border.
constexpr uint32_t kRoot = 0xffffu, kBorder = 0x80000000u;
constexpr int kAreaShift = 16;
static_assert(kTileWords * kWordBits / 2 <= kRoot && kTileWords * kWordBits < kBorder >> kAreaShift);

__global__ void __launch_bounds__(kThreads)
    tile_kernel(const uint64_t* words, Scratch all, Sizes sizes, bool unset, uint32_t tiles) {
  __shared__ uint32_t node[kTileWords * kWordBits / 2];
  __shared__ uint64_t tile_words[kTileWords];
  __shared__ uint32_t first[kTileWords];
  const Mask mask(words, all, sizes, blockIdx.x / tiles, tiles);
  const uint32_t tile = blockIdx.x % tiles, w = tile * kTileWords + threadIdx.x, me = threadIdx.x;
  const uint32_t per_row = static_cast<uint32_t>(sizes.words_per_row), row = w / per_row, column = w % per_row;

  const uint64_t word = w < mask.number ? connected_pixels(mask.words[w], column, sizes, unset) : 0;
  const uint64_t starts = segment_starts(word);
  uint32_t segments, parts;
  const uint32_t mine = sum_before<kThreads>(static_cast<uint32_t>(popcount(starts)), segments);
  tile_words[me] = word;
  first[me] = mine;
  if (w < mask.number) mask.scratch.first[w] = static_cast<uint16_t>(mine);
  for (uint32_t s = me; s < segments; s += kThreads) node[s] = s;
  __syncthreads();

  // Where no segment of a word begins at a bit or before, the one meant is the last of the word to its left.
  const bool has_left = column > 0 && me > 0;
  const uint64_t left = has_left ? tile_words[me - 1] >> (kWordBits - 1) : 0;
  if (left & word) join(node, mine, mine - 1);
  const uint32_t upward = per_row + (column > 0);
  if (me >= upward) {
    const uint32_t above = me - per_row;
    const Window upper{tile_words[above], column > 0 ? tile_words[above - 1] >> (kWordBits - 1) : 0};
    const uint64_t upper_starts = segment_starts(upper.word);
    for (uint64_t bits = touches(upper, {word, left}, sizes.eight); bits; bits &= bits - 1) {
      const int bit = lowest_bit(bits);
      join(node, first[above] + starts_until(upper_starts, bit) - 1, mine + starts_until(starts, bit) - 1);
    }
  }
  __syncthreads();

  const uint32_t end = mine + popcount(starts);
  for (uint32_t s = mine; s < end; ++s) find(node, s);
  __syncthreads();

  uint32_t roots = 0;
  uint64_t rest = word;
  const bool edge_row = row == 0 || row + 1 == sizes.height;
  const uint64_t edge =
      (column == 0 ? 1 : 0) | (column + 1 == per_row ? uint64_t{1} << (sizes.width - 1) % kWordBits : 0);
  for (uint32_t s = mine; s < end; ++s) {
    const uint64_t run = lowest_run(rest);
    rest ^= run;
    const uint32_t root = latest(node + s) & kRoot;
    if (root == s) roots |= 1u << (s - mine);
    atomicAdd(node + root, static_cast<uint32_t>(popcount(run)) << kAreaShift);
    if (edge_row || run & edge) atomicOr(node + root, kBorder);
  }
  uint32_t part = sum_before<kThreads>(static_cast<uint32_t>(popcount(roots)), parts);
  const uint32_t base = tile * mask.tile_segments;
  for (uint32_t s = mine; s < end; ++s) {
    if (!(roots >> (s - mine) & 1)) continue;
    const uint32_t value = node[s];
    mask.scratch.parents[base + part] = base + part;
    mask.scratch.areas[base + part] = (value & kBorder) | (value & ~kBorder) >> kAreaShift;
    node[s] = part++;
  }
  __syncthreads();

  for (uint32_t s = mine; s < end; ++s) {
    const uint32_t root = roots >> (s - mine) & 1 ? s : node[s];
    mask.scratch.parts[base + s] = static_cast<uint16_t>(node[root]);
  }
  if (me == 0) {
    mask.scratch.in_tiles[tile] = parts;
    mask.scratch.before[tile] = 0;
    if (tile % kGroupTiles == 0) mask.scratch.groups[tile / kGroupTiles] = 0;
  }
}

// What a tile's first words touch outside it: `borders` words of each tile.
__global__ void border_kernel(const uint64_t* words, Scratch all, Sizes sizes, bool unset, uint32_t tiles,
                              uint32_t borders, int64_t threads) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (thread >= threads) return;
  const auto global_tile = static_cast<uint32_t>(thread / borders), offset = static_cast<uint32_t>(thread % borders);
  const Mask mask(words, all, sizes, global_tile / tiles, tiles);
  const uint32_t tile = global_tile % tiles, w = tile * kTileWords + offset;
  if (w >= mask.number) return;
  const uint32_t per_row = static_cast<uint32_t>(sizes.words_per_row), column = w % per_row;

  const auto word_at = [&](uint32_t index, uint32_t at) {
    return connected_pixels(mask.words[index], at, sizes, unset);
  };
  // The part of the last segment that begins at a bit of a word or before.
  const auto part_at = [&](uint32_t index, uint64_t word, int bit) {
    int segment = starts_until(segment_starts(word), bit);
    if (segment == 0) segment = popcount(segment_starts(word_at(--index, column - 1)));
    return mask.part(index / kTileWords, mask.scratch.first[index] + segment - 1);
  };
  const uint64_t word = word_at(w, column), left = column > 0 ? word_at(w - 1, column - 1) >> (kWordBits - 1) : 0;
  if (offset == 0 && (left & word)) {
    join(mask.scratch.parents, part_at(w, word, 0), part_at(w - 1, word_at(w - 1, column - 1), kWordBits - 1));
  }
  if (w < per_row || offset >= per_row + (column > 0)) return;
  const uint32_t above = w - per_row;
  const Window upper{word_at(above, column), column > 0 ? word_at(above - 1, column - 1) >> (kWordBits - 1) : 0};
  for (uint64_t bits = touches(upper, {word, left}, sizes.eight); bits; bits &= bits - 1) {
    const int bit = lowest_bit(bits);
    join(mask.scratch.parents, part_at(above, upper.word, bit), part_at(w, word, bit));
  }
}

__global__ void count_kernel(Scratch all, Sizes sizes, uint32_t tiles) {
  const Mask mask(nullptr, all, sizes, blockIdx.x / tiles, tiles);
  const Scratch& scratch = mask.scratch;
  const uint32_t tile = blockIdx.x % tiles, parts = scratch.in_tiles[tile], base = tile * mask.tile_segments;
  uint32_t roots = 0;
  for (uint32_t start = 0; start < parts; start += kThreads) {
    const uint32_t part = base + start + threadIdx.x;
    bool is_root = false;
    if (start + threadIdx.x < parts) {
      const uint32_t root = find(scratch.parents, part);
      is_root = root == part;
      if (!is_root) {
        const uint32_t area = scratch.areas[part];
        atomicAdd(scratch.areas + root, area & ~kBorder);
        if (area & kBorder) atomicOr(scratch.areas + root, kBorder);
      }
    }
    uint32_t more;
    const uint32_t number = roots + sum_before<kThreads>(static_cast<uint32_t>(is_root), more);
    if (is_root) scratch.numbers[part] = number;
    roots += more;
  }
  if (roots == 0) return;
  // Later tiles of the group, and later groups: a few additions each, where a scan would be another launch.
  const uint32_t group = tile / kGroupTiles, group_end = min(tiles, static_cast<uint32_t>((group + 1) * kGroupTiles));
  for (uint32_t t = tile + 1 + threadIdx.x; t < group_end; t += kThreads) atomicAdd(scratch.before + t, roots);
  const uint32_t groups = (tiles - 1) / kGroupTiles + 1;
  for (uint32_t g = group + 1 + threadIdx.x; g < groups; g += kThreads) atomicAdd(scratch.groups + g, roots);
}

constexpr int kChunkWords = 64, kQuad = 4;
static_assert(kTileWords % kChunkWords == 0);

// The pixels of a chunk are one stretch of both images, which the threads write sixteen aligned bytes at a time.
__global__ void image_kernel(const uint64_t* words, int32_t* labels, int32_t* areas, Scratch all, Sizes sizes,
                             uint32_t tiles, uint32_t chunks) {
  __shared__ uint64_t chunk[kChunkWords];
  __shared__ uint32_t first[kChunkWords];
  __shared__ int2 values[kChunkWords * kWordBits / 2];  // label and area of the chunk's segments
  const uint32_t index = blockIdx.x / chunks, begin = blockIdx.x % chunks * kChunkWords, tile = begin / kTileWords;
  const Mask mask(words, all, sizes, index, tiles);
  const Scratch& scratch = mask.scratch;
  const uint32_t per_row = static_cast<uint32_t>(sizes.words_per_row), width = static_cast<uint32_t>(sizes.width);
  const uint32_t number = min(static_cast<uint32_t>(kChunkWords), mask.number - begin);
  if (threadIdx.x < number) {
    const uint32_t w = begin + threadIdx.x;
    chunk[threadIdx.x] = connected_pixels(mask.words[w], w % per_row, sizes, false);
    first[threadIdx.x] = scratch.first[w];
  }
  __syncthreads();
  const uint32_t base = first[0], end = first[number - 1] + popcount(segment_starts(chunk[number - 1]));
  for (uint32_t s = base + threadIdx.x; s < end; s += kThreads) {
    const uint32_t root = scratch.parents[mask.part(tile, s)], from = root / mask.tile_segments;
    const uint32_t before = scratch.groups[from / kGroupTiles] + scratch.before[from] + scratch.numbers[root];
    values[s - base] = make_int2(static_cast<int>(before + 1), static_cast<int>(scratch.areas[root] & ~kBorder));
  }
  __syncthreads();

  const auto pixel_of = [=](uint32_t w) {
    return w / per_row * width + w % per_row * static_cast<uint32_t>(kWordBits);
  };
  const int64_t image = index * sizes.pixels();
  const int64_t from = image + pixel_of(begin), to = image + pixel_of(begin + number);
  for (int64_t quad = (from / kQuad + threadIdx.x) * kQuad; quad < to; quad += kThreads * kQuad) {
    const int64_t low = max(quad, from), high = min(quad + kQuad, to);
    const auto pixel = static_cast<uint32_t>(low - image);
    uint32_t x = pixel % width, w = pixel / width * per_row + x / kWordBits - begin;
    const uint64_t starts = segment_starts(chunk[w]);
    const int bit = static_cast<int>(x % kWordBits);
    uint32_t segment = first[w] - base + starts_until(starts, bit);
    // The pixels to come, and where segments start among them, in the lowest bits.
    auto set = static_cast<uint32_t>(chunk[w] >> bit), start = static_cast<uint32_t>(starts >> bit);
    int label[kQuad], area[kQuad];
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      if (low + k >= high) break;
      const int2 value = set & 1 ? values[segment - 1] : make_int2(0, 0);
      label[k] = value.x;
      area[k] = value.y;
      if (low + k + 1 == high) break;
      set >>= 1;
      start >>= 1;
      if (++x == width) x = 0;
      if (x % kWordBits == 0) {
        set = static_cast<uint32_t>(chunk[++w]);
        start = static_cast<uint32_t>(segment_starts(set));
      }
      segment += start & 1;
    }
    if (high - low == kQuad) {
      *reinterpret_cast<int4*>(labels + low) = make_int4(label[0], label[1], label[2], label[3]);
      *reinterpret_cast<int4*>(areas + low) = make_int4(area[0], area[1], area[2], area[3]);
    } else {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        if (low + k >= high) break;
        labels[low + k] = label[k];
        areas[low + k] = area[k];
      }
    }
  }
}

__global__ void select_kernel(const uint64_t* words, uint64_t* result, Scratch all, Sizes sizes, Task task,
                              int64_t limit, uint32_t tiles, int64_t threads) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (thread >= threads) return;
  const bool fill = task == Task::fill;
  const Mask mask(words, all, sizes, static_cast<uint32_t>(thread / sizes.words()), tiles);
  const auto w = static_cast<uint32_t>(thread % sizes.words());
  const uint32_t segment = mask.scratch.first[w];
  const uint64_t word = mask.words[w];
  uint64_t changed = 0;
  uint64_t rest = connected_pixels(word, w % sizes.words_per_row, sizes, fill);
  for (uint32_t s = segment; rest; ++s) {
    const uint64_t run = lowest_run(rest);
    rest ^= run;
    const uint32_t area = mask.scratch.areas[mask.scratch.parents[mask.part(w / kTileWords, s)]];
    const int64_t pixels = area & ~kBorder;
    if (fill ? !(area & kBorder) && pixels <= limit : pixels < limit) changed |= run;
  }
  result[thread] = word ^ changed;
}

// Every kernel but the last.
void find_parts(const char* op, const uint64_t* words, const Scratch& scratch, int64_t masks, const Sizes& sizes,
                bool unset, void* stream) {
  const auto tiles = static_cast<uint32_t>(tiles_of(sizes));
  const auto blocks = static_cast<unsigned>(masks * tiles);
  const auto borders = static_cast<uint32_t>(sizes.words_per_row < kTileWords ? sizes.words_per_row + 1 : kTileWords);
  launch(op, tile_kernel, blocks, kThreads, stream, words, scratch, sizes, unset, tiles);
  if (tiles > 1) {
    launch(op, border_kernel, grid_for(masks * tiles * borders, kThreads), kThreads, stream, words, scratch, sizes,
           unset, tiles, borders, masks * tiles * borders);
  }
  launch(op, count_kernel, blocks, kThreads, stream, scratch, sizes, tiles);
}

}  // namespace

void launch_components(const uint64_t* words, int32_t* labels, int32_t* areas, const Scratch& scratch, int64_t masks,
                       const Sizes& sizes, void* stream) {
  const char* op = "connected_components";
  find_parts(op, words, scratch, masks, sizes, false, stream);
  const auto chunks = static_cast<uint32_t>(ceil_div(sizes.words(), kChunkWords));
  launch(op, image_kernel, static_cast<unsigned>(masks * chunks), kThreads, stream, words, labels, areas, scratch,
         sizes, static_cast<uint32_t>(tiles_of(sizes)), chunks);
}

void launch_select(const uint64_t* words, uint64_t* result, Task task, int64_t limit, const Scratch& scratch,
                   int64_t masks, const Sizes& sizes, void* stream) {
  const bool fill = task == Task::fill;
  const char* op = fill ? "fill_holes" : "remove_small";
  find_parts(op, words, scratch, masks, sizes, fill, stream);
  launch(op, select_kernel, grid_for(masks * sizes.words(), kThreads), kThreads, stream, words, result, scratch, sizes,
         task, limit, static_cast<uint32_t>(tiles_of(sizes)), masks * sizes.words());
}

}  // namespace s2d::connected_components
