// rle on the CPU: IoU of masks and of tubes.
//
// Every mask becomes its box and, where that is less work than walking runs, the bits within it; then pairs whose boxes
// meet count the bits they share. Columns are taken in tiles that stay in the second-level cache while every row passes
// over them.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "../common/pages.h"
#include "codes.h"
#include "patch.h"

namespace s2d::rle {
namespace {

constexpr int64_t kTileWords = 1 << 15;

constexpr std::align_val_t kAlignment{64};

struct Free {
  void operator()(uint64_t* words) const { ::operator delete(words, kAlignment); }
};

// The masks of a batch, ready for counting.
struct Patches {
  // Mask n goes to place(n).
  template <typename Place>
  Patches(const Codes& codes, const Place& place) : patches(codes.number) {
    parallel_over(codes.number, codes.mean_bytes(), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        patches[place(n)] = patch_of(codes.runs(n), codes.number_of_runs(n), codes.height(n), codes.width(n));
      }
    });
    std::vector<int64_t> starts(codes.number + 1);
    for (int64_t n = 0; n < codes.number; ++n) {
      starts[n + 1] = starts[n] + (patches[n].wants_words() ? patches[n].size() : 0);
    }
    words.reset(static_cast<uint64_t*>(::operator new(starts.back() * 8, kAlignment)));
    prefer_large_pages(words.get(), starts.back() * 8);
    parallel_over(codes.number, codes.mean_bytes(), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        Patch& patch = patches[n];
        if (!patch.wants_words()) continue;
        uint64_t* own = words.get() + starts[n];
        std::fill_n(own, patch.size(), 0);
        draw(patch.counts, patch.runs, patch.height, patch.first_band(), patch.first_column(), patch.columns(), own);
        patch.words = own;
      }
    });
  }

  std::vector<Patch> patches;
  std::unique_ptr<uint64_t, Free> words;
};

// The end of the tile of columns that begins at `begin`.
int64_t tile_end(const Patch* columns, int64_t begin, int64_t number) {
  int64_t end = begin, words = 0;
  while (end < number && (end == begin || words < kTileWords)) words += columns[end++].size();
  return end;
}

// shared[n, m]: pixels that tube n of a and tube m of b share, over T frames. a is [N, T], b is [T, M].
void add_shared_tubes(const Patch* a, int64_t number_a, const Patch* b, int64_t number_b, int64_t frames,
                      int64_t* shared) {
  for (int64_t t = 0; t < frames; ++t) {
    for (int64_t m = 0, end; m < number_b; m = end) {
      end = tile_end(b + t * number_b, m, number_b);
      for (int64_t n = 0; n < number_a; ++n) {
        add_shared(a[n * frames + t], b + t * number_b + m, end - m, shared + n * number_b + m);
      }
    }
  }
}

double ratio(int64_t part, int64_t whole) {
  return part ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

Tensor iou(const char* op, const Codes& a, const Codes& b, int64_t frames, const bool* crowd) {
  const Codes& some = a.number ? a : b;
  for (const Codes* codes : {&a, &b}) {
    for (int64_t n = 0; n < codes->number; ++n) {
      S2D_CHECK(codes->same_size(n, some, 0), op, "masks of one size", "mask " + std::to_string(n) + " of another");
    }
  }
  const int64_t number_a = a.number / frames, number_b = b.number / frames;
  const Patches rows(a, [](int64_t n) { return n; });
  const Patches columns(b, [&](int64_t n) { return n % frames * number_b + n / frames; });
  std::vector<int64_t> area(number_b);
  for (int64_t n = 0; n < b.number; ++n) area[n % std::max<int64_t>(1, number_b)] += columns.patches[n].area;
  Tensor result = torch::stable::new_empty(a.counts_tensor, {number_a, number_b}, ScalarType::Double);
  auto* out = static_cast<double*>(result.mutable_data_ptr());
  parallel_over(number_a, frames * number_b * b.mean_bytes(), [&](int64_t begin, int64_t end) {
    std::vector<int64_t> shared((end - begin) * number_b);
    add_shared_tubes(&rows.patches[begin * frames], end - begin, columns.patches.data(), number_b, frames,
                     shared.data());
    for (int64_t n = begin; n < end; ++n) {
      int64_t own = 0;
      for (int64_t t = 0; t < frames; ++t) own += rows.patches[n * frames + t].area;
      for (int64_t m = 0; m < number_b; ++m) {
        const int64_t both = shared[(n - begin) * number_b + m];
        out[n * number_b + m] = ratio(both, crowd && crowd[m] ? own : own + area[m] - both);
      }
    }
  });
  return result;
}

}  // namespace

Tensor rle_iou(const Tensor& counts_a, const Tensor& offsets_a, const Tensor& sizes_a, const Tensor& counts_b,
               const Tensor& offsets_b, const Tensor& sizes_b, const Tensor& crowd) {
  const Codes a(counts_a, offsets_a, sizes_a, "rle_iou"), b(counts_b, offsets_b, sizes_b, "rle_iou");
  S2D_CHECK(crowd.scalar_type() == ScalarType::Bool && crowd.dim() == 1 && crowd.size(0) == b.number, "rle_iou",
            "crowd bool [M]", shape_of(crowd));
  const Tensor flags = torch::stable::contiguous(crowd);
  return iou("rle_iou", a, b, 1, static_cast<const bool*>(flags.const_data_ptr()));
}

Tensor rle_tube_iou(const Tensor& counts_a, const Tensor& offsets_a, const Tensor& sizes_a, const Tensor& counts_b,
                    const Tensor& offsets_b, const Tensor& sizes_b, int64_t frames) {
  const Codes a(counts_a, offsets_a, sizes_a, "rle_tube_iou"), b(counts_b, offsets_b, sizes_b, "rle_tube_iou");
  S2D_CHECK(frames > 0 && a.number % frames == 0 && b.number % frames == 0, "rle_tube_iou",
            "a number of frames that divides both batches", frames);
  return iou("rle_tube_iou", a, b, frames, nullptr);
}

}  // namespace s2d::rle

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def(
      "rle_iou(Tensor counts_a, Tensor offsets_a, Tensor sizes_a, Tensor counts_b, Tensor offsets_b, Tensor sizes_b, "
      "Tensor crowd) -> Tensor");
  library.def(
      "rle_tube_iou(Tensor counts_a, Tensor offsets_a, Tensor sizes_a, Tensor counts_b, Tensor offsets_b, "
      "Tensor sizes_b, int frames) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("rle_iou", TORCH_BOX(&s2d::rle::rle_iou));
  library.impl("rle_tube_iou", TORCH_BOX(&s2d::rle::rle_tube_iou));
}
