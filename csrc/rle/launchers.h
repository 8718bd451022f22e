// rle: how masks of one size are cut up for a GPU, and the launchers of the CUDA kernels.
#pragma once

#include <cstdint>

#include "rle.h"

namespace s2d::rle {

// A batch of masks in tiles of 64 x 64 pixels; height and width are 1 to kMaxPixels in product. A strip is a column of
// tiles and of words. Where `sizes` [masks, 2] are given, each mask has its own, at the top left of height x width.
struct Tiling {
  // Strips are read in groups of nearly equal width: words that lie side by side in memory.
  static constexpr int kGroupStrips = 16;

  Tiling(int64_t masks, int64_t height, int64_t width, const int32_t* sizes = nullptr)
      : masks(masks),
        sizes(sizes),
        height(static_cast<int>(height)),
        width(static_cast<int>(width)),
        rows(this->height),
        strips(static_cast<int>(words_for(width))),
        tile_rows(static_cast<int>(words_for(height))),
        groups((strips + kGroupStrips - 1) / kGroupStrips),
        group_strips((strips + groups - 1) / groups) {}

  int64_t masks;
  const int32_t* sizes;
  int height, width, rows, strips, tile_rows, groups, group_strips;

  // As one of its masks has it.
  S2D_HOST_DEVICE Tiling of(int64_t mask) const {
    Tiling own = *this;
    if (sizes) {
      const int32_t own_height = sizes[2 * mask], own_width = sizes[2 * mask + 1];
      own.height = own_height < 0 ? 0 : own_height < height ? own_height : height;
      own.width = own_width < 0 ? 0 : own_width < width ? own_width : width;
    }
    return own;
  }

  S2D_HOST_DEVICE int64_t words() const { return static_cast<int64_t>(rows) * strips; }
  S2D_HOST_DEVICE int64_t tiles() const { return static_cast<int64_t>(tile_rows) * strips; }
  // A part is a row of tiles within a group of strips.
  S2D_HOST_DEVICE int parts() const { return tile_rows * groups; }
};

// The codes of a batch: counts [runs], offsets [masks + 1].
struct DeviceCodes {
  const int32_t* counts;
  const int64_t* offsets;
  int64_t masks, runs;
};

// The runs that start in a tile: how many, and where the last one does, counted from the mask's first pixel down the
// columns; -1 where there is none.
struct alignas(8) TileRuns {
  int32_t number, last;
};

// Maps of labels [frames, height, width], integers of some bytes each.
struct Labels {
  const void* data;
  int bytes;
  bool is_signed;
  int64_t frames;
  int height, width;
};

// Launchers: device pointers and a cudaStream_t. Definitions in rle.cu, measures.cu and labels.cu.

// What starts in each tile and how many runs start in each part: tiles [masks, strips, tile_rows], part_counts [masks,
// parts].
void launch_count(const uint64_t* words, TileRuns* tiles, int32_t* part_counts, const Tiling& tiling, void* stream);
// offsets [masks + 1] of masks that have one run more than start in their parts.
void launch_offsets(const int32_t* part_counts, int64_t* offsets, int64_t masks, int parts, void* stream);
void launch_write(const uint64_t* words, const TileRuns* tiles, const int64_t* offsets, int32_t* counts,
                  const Tiling& tiling, void* stream);

// Words below a mask's own height are left as they are.
void launch_decode(const DeviceCodes& codes, uint64_t* words, const Tiling& tiling, void* stream);
void launch_area(const DeviceCodes& codes, int64_t* area, void* stream);
// sizes [masks, 2], boxes [masks, 4].
void launch_bbox(const DeviceCodes& codes, const int32_t* sizes, int64_t* boxes, void* stream);

// merged [number_of_groups, words_per_mask], zero for a union and full for an intersection, takes in the masks of each
// group, and group_sizes [number_of_groups, 2], zeroed, their size; groups [masks], sizes [masks, 2].
void launch_merge(const uint64_t* words, const int64_t* groups, const int32_t* sizes, uint64_t* merged,
                  int32_t* group_sizes, int64_t masks, int64_t number_of_groups, int64_t words_per_mask, bool intersect,
                  void* stream);

// iou [n, m] of tubes from the pixels that they share, counts [n, m]; of tubes against themselves (mirrored) those
// above the diagonal are not looked at. area_a [n * frames], area_b [m * frames]; crowd [m] or nullptr.
void launch_ratio(const int64_t* shared, const int64_t* area_a, const int64_t* area_b, const bool* crowd, double* iou,
                  int64_t n, int64_t m, int64_t frames, bool mirrored, void* stream);

// Frame and label of the pixels that differ from those above and on the left, in no order: corners [number, 2], which
// may be nullptr to count them; number, zeroed, counts them. skips: not those of the label `skipped`.
void launch_corners(const Labels& labels, int64_t* corners, int64_t* number, bool skips, int64_t skipped, void* stream);
// Into words, zeroed: the masks of frames and labels, which [masks, 2] in ascending order.
void launch_select(const Labels& labels, const int64_t* which, uint64_t* words, const Tiling& tiling, void* stream);

}  // namespace s2d::rle
