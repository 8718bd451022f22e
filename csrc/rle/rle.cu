// rle on CUDA: runs in COCO's order (down the columns) from and to bits in rows.
//
// A run starts wherever a pixel differs from the one above it (at the top: from the last of the column before), and the
// differences of whole words are found in rows as they lie. Encoding counts them (bits read once, at the memory's
// speed), sums the counts up, and lists them from the few tiles of 64 x 64 pixels that have any: only these are
// transposed, each by a warp, in registers. Decoding goes back the same way without a transpose: the starts of the runs
// are set as bits, of which every pixel is the parity down its column.
//
// Codes are not examined here, as that would wait for the device: broken ones give some result, and no access outside.

#include "walk.cuh"

namespace s2d::rle {
namespace {

// The largest of a warp's values before this lane's, and of -1.
__device__ __forceinline__ int largest_before(int value) {
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int below = __shfl_up_sync(kAll, value, offset);
    if (lane_id() >= offset) value = max(value, below);
  }
  const int before = __shfl_up_sync(kAll, value, 1);
  return lane_id() ? before : -1;
}

// ---- bits to runs ----

// Which bits of a strip's words are pixels.
__device__ __forceinline__ uint64_t pixels_of(int strip, const Tiling& tiling) {
  return low_bits(max(tiling.width - strip * 64, 0));
}

// The pixels before those of a row in the order of runs: the row above, or what ends the columns before.
__device__ __forceinline__ uint64_t row_before(const uint64_t* mask, int row, int strip, const Tiling& tiling) {
  if (row > 0) return mask[static_cast<int64_t>(row - 1) * tiling.strips + strip];
  const uint64_t* last = mask + static_cast<int64_t>(tiling.height - 1) * tiling.strips + strip;
  return (last[0] << 1 | (strip ? last[-1] >> 63 : 0)) & pixels_of(strip, tiling);
}

constexpr int kBatch = 8;  // loads under way in a thread

// A warp owns a part: half of it goes down the upper 32 rows of the tiles, half down the lower, a lane to a strip, so
// that a load takes up to 128 bytes of a row. Reads 1/8 byte a pixel once, and one row more for each 32.
__global__ void __launch_bounds__(kThreads, 5)
    count_kernel(const uint64_t* words, TileRuns* tiles, int32_t* part_counts, Tiling batch) {
  constexpr int kHalf = kWarp / 2, kRows = 32;
  static_assert(kHalf == Tiling::kGroupStrips);
  const int64_t part = static_cast<int64_t>(blockIdx.x) * kWarps + warp_id();
  if (part >= batch.masks * batch.parts()) return;
  const int64_t mask = static_cast<uint32_t>(part) / static_cast<uint32_t>(batch.parts());
  const Tiling tiling = batch.of(mask);
  const int within = static_cast<int>(part - mask * tiling.parts());
  const int tile_row = within / tiling.groups, group = within - tile_row * tiling.groups;
  const int place = lane_id() % kHalf, strip = group * tiling.group_strips + place;
  const bool owns = place < tiling.group_strips && strip < tiling.strips;
  const int top = tile_row * 64 + lane_id() / kHalf * kRows, rows = min(kRows, tiling.height - top);
  int number = 0, column = -1, row = 0;
  if (owns && rows > 0) {
    const uint64_t* first = words + mask * tiling.words();
    uint64_t before = row_before(first, top, strip, tiling);
    first += static_cast<int64_t>(top) * tiling.strips + strip;
    for (int y = 0; y < rows; y += kBatch) {
      uint64_t batch[kBatch];
      // The last row stands in for rows past it: it does not differ from itself.
#pragma unroll
      for (int k = 0; k < kBatch; ++k) batch[k] = first[min(y + k, rows - 1) * tiling.strips];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const uint64_t starts = batch[k] ^ before;
        before = batch[k];
        if (!starts) continue;
        number += popcount(starts);
        if (highest_bit(starts) >= column) {
          column = highest_bit(starts);
          row = top + y + k;
        }
      }
    }
  }
  int last = column < 0 ? -1 : (strip * 64 + column) * tiling.height + row;
  number += __shfl_xor_sync(kAll, number, kHalf);
  last = max(last, __shfl_xor_sync(kAll, last, kHalf));
  const bool writes = owns && lane_id() < kHalf;
  if (writes) tiles[mask * tiling.tiles() + static_cast<int64_t>(strip) * tiling.tile_rows + tile_row] = {number, last};
  const int total = warp_sum(writes ? number : 0);
  if (lane_id() == 0) part_counts[part] = total;
}

constexpr int kScanThreads = 1024, kScanItems = 8;

// One block: its threads take eight parts each, over and over.
__global__ void offsets_kernel(const int32_t* part_counts, int64_t* offsets, int64_t masks, int parts) {
  const int64_t number = masks * parts;
  int64_t carry = 0;
  for (int64_t begin = 0; begin < number; begin += kScanThreads * kScanItems) {
    const int64_t first = begin + threadIdx.x * kScanItems;
    int32_t counts[kScanItems];
    int64_t sum = 0, total;
#pragma unroll
    for (int k = 0; k < kScanItems; ++k) {
      counts[k] = first + k < number ? part_counts[first + k] : 0;
      sum += counts[k];
    }
    int64_t before = carry + sum_before<kScanThreads>(sum, total);
    int64_t mask = first / parts;
    int part = static_cast<int>(first - mask * parts);
#pragma unroll
    for (int k = 0; k < kScanItems; ++k) {
      if (part == 0 && first + k < number) offsets[mask] = mask + before;
      before += counts[k];
      if (++part == parts) {
        part = 0;
        ++mask;
      }
    }
    carry += total;
  }
  if (threadIdx.x == 0) offsets[masks] = masks + carry;
}

// Transpose 32 x 32 bits: a lane hands in row `lane` and is given column `lane`.
__device__ __forceinline__ uint32_t transposed(uint32_t bits) {
  uint32_t left = 0x0000ffffu;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2, left ^= left << step) {
    const uint32_t other = __shfl_xor_sync(kAll, bits, step);
    bits = lane_id() & step ? (bits & ~left) | (other >> step & left) : (bits & left) | (other & left) << step;
  }
  return bits;
}

// Calls visit(top, left, right) for every tile of a strip in which runs start, from above: where they start in columns
// `lane` and `lane` + 32 of the strip, from row `top` on. A warp owns the strip.
template <typename Visit>
__device__ __forceinline__ void visit_starts(const uint64_t* mask, const TileRuns* tiles, int strip,
                                             const Tiling& tiling, const Visit& visit) {
  for (int first = 0; first < tiling.tile_rows; first += kWarp) {
    const int tile = first + lane_id();
    const bool any = tile < tiling.tile_rows && tiles[tile].number > 0;
    for (unsigned changed = __ballot_sync(kAll, any); changed; changed &= changed - 1) {
      const int top = (first + lowest_bit(changed)) * 64;
      uint64_t rows[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = top + half * kWarp + lane_id();
        rows[half] = row < tiling.height ? mask[static_cast<int64_t>(row) * tiling.strips + strip] ^
                                               row_before(mask, row, strip, tiling)
                                         : 0;
      }
      const auto columns = [&](int shift) {
        const uint64_t upper = transposed(static_cast<uint32_t>(rows[0] >> shift));
        return upper | static_cast<uint64_t>(transposed(static_cast<uint32_t>(rows[1] >> shift))) << 32;
      };
      const uint64_t left = columns(0), right = columns(32);
      visit(top, left, right);
    }
  }
}

// The runs that start in a column of a strip.
struct Column {
  int begin;                  // position of its first pixel
  int number = 0, last = -1;  // how many start, and where the last does
  int index = 0, before = 0;  // of the next to be written: its place, and the start of the one before it

  __device__ __forceinline__ void count(uint64_t starts, int top) {
    if (!starts) return;
    number += popcount(starts);
    last = begin + top + highest_bit(starts);
  }

  __device__ __forceinline__ void write(uint64_t starts, int top, int32_t* out) {
    for (; starts; starts &= starts - 1) {
      const int start = begin + top + lowest_bit(starts);
      out[index++] = start - before;
      before = start;
    }
  }
};

// A warp owns a strip, a lane two of its columns, 32 apart. What comes before the strip it reads off the tiles of those
// before. Tiles in which runs start are visited twice: to learn which runs are each column's, and to write them. Reads
// only these, which the caches may still hold, and 8 bytes a tile; writes 4 bytes a run.
__global__ void __launch_bounds__(kThreads, 5)
    write_kernel(const uint64_t* words, const TileRuns* tiles, const int64_t* offsets, int32_t* runs, Tiling batch) {
  const int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + warp_id();
  if (task >= batch.masks * batch.strips) return;
  const int64_t mask = static_cast<uint32_t>(task) / static_cast<uint32_t>(batch.strips);
  const Tiling tiling = batch.of(mask);
  const int strip = static_cast<int>(task - mask * tiling.strips);
  const uint64_t* first = words + mask * tiling.words();
  const TileRuns* of_mask = tiles + mask * tiling.tiles();
  const TileRuns* of_strip = of_mask + static_cast<int64_t>(strip) * tiling.tile_rows;
  int32_t* out = runs + offsets[mask];

  int index = 0, before = 0;
  for (const TileRuns* tile = of_mask + lane_id(); tile < of_strip; tile += kWarp) {
    index += tile->number;
    before = max(before, tile->last);
  }
  index = __reduce_add_sync(kAll, index);
  before = __reduce_max_sync(kAll, before);

  // Unsigned, as columns past the width may begin anywhere.
  const uint32_t height = static_cast<uint32_t>(tiling.height), column = static_cast<uint32_t>(strip * 64 + lane_id());
  Column left{static_cast<int>(column * height)}, right{static_cast<int>((column + kWarp) * height)};
  visit_starts(first, of_strip, strip, tiling, [&](int top, uint64_t left_starts, uint64_t right_starts) {
    left.count(left_starts, top);
    right.count(right_starts, top);
  });
  const int left_upto = warp_scan(left.number), right_upto = warp_scan(right.number);
  const int left_total = __shfl_sync(kAll, left_upto, kWarp - 1);
  const int left_last = max(before, __reduce_max_sync(kAll, left.last));
  left.index = index + left_upto - left.number;
  left.before = max(before, largest_before(left.last));
  right.index = index + left_total + right_upto - right.number;
  right.before = max(left_last, largest_before(right.last));
  if (lane_id() == kWarp - 1 && strip == tiling.strips - 1) {
    out[right.index + right.number] = tiling.height * tiling.width - max(right.before, right.last);
  }
  visit_starts(first, of_strip, strip, tiling, [&](int top, uint64_t left_starts, uint64_t right_starts) {
    left.write(left_starts, top, out);
    right.write(right_starts, top, out);
  });
}

// ---- runs to bits ----

// The parity of the bits below each bit.
__device__ __forceinline__ uint64_t parity_below(uint64_t bits) {
  uint64_t upto = bits;
#pragma unroll
  for (int step = 1; step < kWordBits; step *= 2) upto ^= upto << step;
  return upto ^ bits;
}

constexpr int kPieceWords = 4096;

// A block owns a group of strips of one mask and goes down them in as many rows at a time as shared memory takes. The
// starts of runs are set there as bits; a pixel is the parity of those before it, which is the parity of its column so
// far, with the pixel before the column. A thread owns a few rows of a strip: it counts for those below it, then writes
// its words, side by side with its neighbours. Reads the codes once for each piece (from the caches after the first),
// writes 1/8 byte a pixel.
__global__ void __launch_bounds__(kThreads, 6) decode_kernel(DeviceCodes codes, uint64_t* words, Tiling batch) {
  __shared__ uint64_t tile[kPieceWords], parities[Tiling::kGroupStrips], before[Tiling::kGroupStrips];
  __shared__ uint64_t bands[kThreads];
  const int64_t mask = blockIdx.x / static_cast<uint32_t>(batch.groups);
  const Tiling tiling = batch.of(mask);
  if (tiling.height == 0) return;
  const int group = static_cast<int>(blockIdx.x - mask * tiling.groups), first_strip = group * tiling.group_strips;
  const int strips = min(tiling.group_strips, tiling.strips - first_strip);
  const uint32_t height = static_cast<uint32_t>(tiling.height), first_column = static_cast<uint32_t>(first_strip) * 64;
  const uint32_t columns = static_cast<uint32_t>(max(min(tiling.width - first_strip * 64, strips * 64), 0));
  const int thread = static_cast<int>(threadIdx.x), strip = thread % strips, band = thread / strips;
  const int number_of_bands = kThreads / strips, most_rows = kPieceWords / strips;
  const Runs runs(codes, mask);
  uint64_t* out = words + mask * tiling.words() + first_strip + strip;

  for (int top = 0; top < tiling.height; top += most_rows) {
    const int rows = min(most_rows, tiling.height - top);
    for (int i = thread; i < rows * strips; i += kThreads) tile[i] = 0;
    if (top == 0 && thread < strips) parities[thread] = 0;
    __syncthreads();
    int starts_before = 0;
    runs.walk((first_column + columns) * height, [&](int64_t index, uint32_t start, uint32_t) {
      const uint32_t x = start / height, y = start - x * height, column = x - first_column;
      if (index == 0) return;
      if (x < first_column) ++starts_before;
      if (x < first_column || column >= columns) return;
      const auto set = [&](uint64_t* words_of_strips) {
        atomicXor(reinterpret_cast<unsigned*>(words_of_strips) + column / 32, 1u << column % 32);
      };
      if (top == 0) set(parities);
      if (y - static_cast<uint32_t>(top) < static_cast<uint32_t>(rows))
        set(tile + static_cast<int64_t>(y - top) * strips);
    });
    const int odd = __syncthreads_count(starts_before & 1) & 1;
    if (top == 0) {
      if (thread < strips) {
        int carry = odd;
        for (int s = 0; s < thread; ++s) carry ^= popcount(parities[s]) & 1;
        const uint64_t carried = carry ? ~uint64_t{0} : 0;
        before[thread] = (parity_below(parities[thread]) ^ carried) & pixels_of(first_strip + thread, tiling);
      }
      __syncthreads();
    }
    const int band_rows = (rows + number_of_bands - 1) / number_of_bands;
    const int begin = min(band * band_rows, rows), end = min(begin + band_rows, rows);
    uint64_t parity = 0;
    if (band < number_of_bands) {
      for (int y = begin; y < end; ++y) parity ^= tile[y * strips + strip];
    }
    bands[thread] = parity;
    __syncthreads();
    uint64_t pixels = 0;
    if (band < number_of_bands) {
      pixels = before[strip];
      for (int b = 0; b < band; ++b) pixels ^= bands[b * strips + strip];
      for (int y = begin; y < end; ++y) {
        pixels ^= tile[y * strips + strip];
        out[static_cast<int64_t>(top + y) * tiling.strips] = pixels;
      }
    }
    __syncthreads();
    if (band == number_of_bands - 1) before[strip] = pixels;
  }
}

}  // namespace

void launch_count(const uint64_t* words, TileRuns* tiles, int32_t* part_counts, const Tiling& tiling, void* stream) {
  const unsigned blocks = static_cast<unsigned>(ceil_div(tiling.masks * tiling.parts(), kWarps));
  launch("rle_encode", count_kernel, blocks, kThreads, stream, words, tiles, part_counts, tiling);
}

void launch_offsets(const int32_t* part_counts, int64_t* offsets, int64_t masks, int parts, void* stream) {
  launch("rle_encode", offsets_kernel, 1, kScanThreads, stream, part_counts, offsets, masks, parts);
}

void launch_write(const uint64_t* words, const TileRuns* tiles, const int64_t* offsets, int32_t* counts,
                  const Tiling& tiling, void* stream) {
  const unsigned blocks = static_cast<unsigned>(ceil_div(tiling.masks * tiling.strips, kWarps));
  launch("rle_encode", write_kernel, blocks, kThreads, stream, words, tiles, offsets, counts, tiling);
}

void launch_decode(const DeviceCodes& codes, uint64_t* words, const Tiling& tiling, void* stream) {
  launch("rle_decode", decode_kernel, static_cast<unsigned>(tiling.masks * tiling.groups), kThreads, stream, codes,
         words, tiling);
}

}  // namespace s2d::rle
