// rle on the CPU: IoU of masks and of tubes.
//
// Every mask becomes its box and, where that is less work than walking runs, the bits within it; then pairs whose boxes
// meet count the bits they share. Columns are taken in tiles that stay in the second-level cache while every row passes
// over them.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
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

// Masks of a batch, ready for counting. Keeps its memory from one to the next.
class Patches {
 public:
  // The masks first, first + step, and so on.
  void read(const Codes& codes, int64_t first, int64_t step, int64_t number) {
    patches_.resize(number);
    parallel_over(number, codes.mean_bytes(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = first + i * step;
        patches_[i] = patch_of(codes.runs(n), codes.number_of_runs(n), codes.height(n), codes.width(n));
      }
    });
    starts_.assign(number + 1, 0);
    for (int64_t i = 0; i < number; ++i) {
      starts_[i + 1] = starts_[i] + (patches_[i].wants_words() ? patches_[i].size() : 0);
    }
    reserve(starts_.back());
    parallel_over(number, codes.mean_bytes(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        Patch& patch = patches_[i];
        if (!patch.wants_words()) continue;
        uint64_t* words = words_.get() + starts_[i];
        std::fill_n(words, patch.size(), 0);
        draw(patch.counts, patch.runs, patch.height, patch.first_band(), patch.first_column(), patch.columns(), words);
        patch.words = words;
      }
    });
  }

  const Patch& operator[](int64_t i) const { return patches_[i]; }
  const Patch* data() const { return patches_.data(); }

 private:
  void reserve(int64_t words) {
    if (words <= capacity_) return;
    words_.reset();
    words_.reset(static_cast<uint64_t*>(::operator new(words * 8, kAlignment)));
    prefer_large_pages(words_.get(), words * 8);
    capacity_ = words;
  }

  std::vector<Patch> patches_;
  std::vector<int64_t> starts_;
  std::unique_ptr<uint64_t, Free> words_;
  int64_t capacity_ = 0;
};

void check_sizes(const char* op, const Codes& a, const Codes& b) {
  const Codes& some = a.number ? a : b;
  for (const Codes* codes : {&a, &b}) {
    for (int64_t n = 0; n < codes->number; ++n) {
      S2D_CHECK(codes->same_size(n, some, 0), op, "masks of one size", "mask " + std::to_string(n) + " of another");
    }
  }
}

// shared[n, m] += pixels that row n and column m share, of the rows [begin, end).
void add_shared_pairs(const Patches& rows, int64_t begin, int64_t end, const Patches& columns, int64_t number,
                      int64_t* shared) {
  for (int64_t m = 0, stop; m < number; m = stop) {
    stop = m;
    for (int64_t words = 0; stop < number && (stop == m || words < kTileWords); ++stop) words += columns[stop].size();
    for (int64_t n = begin; n < end; ++n) add_shared(rows[n], columns.data() + m, stop - m, shared + n * number + m);
  }
}

double ratio(int64_t part, int64_t whole) {
  return part ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

}  // namespace

Tensor rle_iou(const Tensor& counts_a, const Tensor& offsets_a, const Tensor& sizes_a, const Tensor& counts_b,
               const Tensor& offsets_b, const Tensor& sizes_b, const Tensor& crowd) {
  const Codes a(counts_a, offsets_a, sizes_a, "rle_iou"), b(counts_b, offsets_b, sizes_b, "rle_iou");
  S2D_CHECK(crowd.scalar_type() == ScalarType::Bool && crowd.dim() == 1 && crowd.size(0) == b.number, "rle_iou",
            "crowd bool [M]", shape_of(crowd));
  check_sizes("rle_iou", a, b);
  const Tensor crowd_tensor = torch::stable::contiguous(crowd);
  const auto* is_crowd = static_cast<const bool*>(crowd_tensor.const_data_ptr());
  Patches rows, columns;
  rows.read(a, 0, 1, a.number);
  columns.read(b, 0, 1, b.number);
  Tensor result = torch::stable::new_empty(a.counts_tensor, {a.number, b.number}, ScalarType::Double);
  auto* out = static_cast<double*>(result.mutable_data_ptr());
  std::vector<int64_t> shared(a.number * b.number);
  parallel_over(a.number, b.number * b.mean_bytes(), [&](int64_t begin, int64_t end) {
    add_shared_pairs(rows, begin, end, columns, b.number, shared.data());
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t m = 0; m < b.number; ++m) {
        const int64_t both = shared[n * b.number + m], own = rows[n].area;
        out[n * b.number + m] = ratio(both, is_crowd[m] ? own : own + columns[m].area - both);
      }
    }
  });
  return result;
}

Tensor rle_tube_iou(const Tensor& counts_a, const Tensor& offsets_a, const Tensor& sizes_a, const Tensor& counts_b,
                    const Tensor& offsets_b, const Tensor& sizes_b, int64_t frames) {
  const Codes a(counts_a, offsets_a, sizes_a, "rle_tube_iou"), b(counts_b, offsets_b, sizes_b, "rle_tube_iou");
  S2D_CHECK(frames > 0 && a.number % frames == 0 && b.number % frames == 0, "rle_tube_iou",
            "a number of frames that divides both batches", frames);
  check_sizes("rle_tube_iou", a, b);
  const int64_t number_a = a.number / frames, number_b = b.number / frames;
  std::vector<int64_t> shared(number_a * number_b), area_a(number_a), area_b(number_b);
  std::mutex adding;
  // Frame by frame, so that few masks are bits at a time and these stay in the cache.
  parallel_over(frames, number_a * a.mean_bytes() + number_b * b.mean_bytes(), [&](int64_t begin, int64_t end) {
    Patches rows, columns;
    std::vector<int64_t> own_shared(shared.size()), own_a(number_a), own_b(number_b);
    for (int64_t t = begin; t < end; ++t) {
      rows.read(a, t, frames, number_a);
      columns.read(b, t, frames, number_b);
      add_shared_pairs(rows, 0, number_a, columns, number_b, own_shared.data());
      for (int64_t n = 0; n < number_a; ++n) own_a[n] += rows[n].area;
      for (int64_t m = 0; m < number_b; ++m) own_b[m] += columns[m].area;
    }
    const auto add = [](std::vector<int64_t>& to, const std::vector<int64_t>& from) {
      std::transform(to.begin(), to.end(), from.begin(), to.begin(), std::plus<>());
    };
    const std::lock_guard lock(adding);
    add(shared, own_shared);
    add(area_a, own_a);
    add(area_b, own_b);
  });
  Tensor result = torch::stable::new_empty(a.counts_tensor, {number_a, number_b}, ScalarType::Double);
  auto* out = static_cast<double*>(result.mutable_data_ptr());
  for (int64_t n = 0; n < number_a; ++n) {
    for (int64_t m = 0; m < number_b; ++m) {
      const int64_t both = shared[n * number_b + m];
      out[n * number_b + m] = ratio(both, area_a[n] + area_b[m] - both);
    }
  }
  return result;
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
