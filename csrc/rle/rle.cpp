// rle on the CPU: schemas of the room and its CPU kernels, parallel over masks.
//
// Encoding reads each word once; a strip of 64 columns without a change (most of an image) costs one comparison a word.
// Decoding fills columns and transposes them back. IoU walks the runs of both masks side by side; where there are so
// many runs that counting bits is less work, it decodes every mask once and counts.

#include "rle.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "../common/check.h"
#include "../common/parallel.h"
#include "../common/popcount.h"

namespace s2d::rle {
namespace {

constexpr int64_t kMaxPixels = (int64_t{1} << 31) - 1;

// One strip of up to 64 columns of one mask, column by column.
struct Strip {
  explicit Strip(int64_t height) : height(height), blocks(words_for(height)), columns(64 * blocks) {}

  int64_t height, blocks;
  std::vector<uint64_t> columns;  // [64, blocks]

  // Transpose the words of one word column of a mask into the strip. `stride` words lie between two rows.
  void read(const uint64_t* words, int64_t stride) {
    for (int64_t block = 0; block < blocks; ++block) {
      uint64_t square[64] = {};
      const int64_t rows = std::min<int64_t>(64, height - block * 64);
      for (int64_t y = 0; y < rows; ++y) square[y] = words[(block * 64 + y) * stride];
      transpose_block(square);
      for (int64_t x = 0; x < 64; ++x) columns[x * blocks + block] = square[x];
    }
  }

  void write(uint64_t* words, int64_t stride) const {
    for (int64_t block = 0; block < blocks; ++block) {
      uint64_t square[64];
      for (int64_t x = 0; x < 64; ++x) square[x] = columns[x * blocks + block];
      transpose_block(square);
      const int64_t rows = std::min<int64_t>(64, height - block * 64);
      for (int64_t y = 0; y < rows; ++y) words[(block * 64 + y) * stride] = square[y];
    }
  }
};

// Whether every pixel of the strip has the value of `last`, the pixel before it.
bool is_uniform(const uint64_t* words, int64_t height, int64_t stride, int64_t width, bool last) {
  const uint64_t expected = last ? low_bits(width) : 0;
  for (int64_t y = 0; y < height; ++y) {
    if (words[y * stride] != expected) return false;
  }
  return true;
}

// Append the runs of one mask.
void encode(const uint64_t* words, int64_t height, int64_t width, Strip& strip, std::vector<int32_t>& counts) {
  const int64_t stride = words_for(width);
  int64_t run_start = 0;
  bool last = false;
  for (int64_t w = 0; w < stride; ++w) {
    const int64_t columns = std::min(kWordBits, width - w * kWordBits);
    if (is_uniform(words + w, height, stride, columns, last)) continue;
    strip.read(words + w, stride);
    for (int64_t x = 0; x < columns; ++x) {
      for (int64_t block = 0; block < strip.blocks; ++block) {
        const int64_t rows = std::min(kWordBits, height - block * 64);
        const uint64_t pixels = strip.columns[x * strip.blocks + block];
        uint64_t changes = (pixels ^ (pixels << 1 | static_cast<uint64_t>(last))) & low_bits(rows);
        const int64_t position = (w * kWordBits + x) * height + block * 64;
        for (; changes; changes &= changes - 1) {
          const int64_t start = position + lowest_bit(changes);
          counts.push_back(static_cast<int32_t>(start - run_start));
          run_start = start;
        }
        last = pixels >> (rows - 1) & 1;
      }
    }
  }
  counts.push_back(static_cast<int32_t>(height * width - run_start));
}

// Set pixels [begin, end) of the strip, counted down its columns.
void fill(Strip& strip, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t x = begin / strip.height, y = begin % strip.height, block = y / 64, bit = y % 64;
    const int64_t length = std::min({end - begin, 64 - bit, strip.height - y});
    strip.columns[x * strip.blocks + block] |= low_bits(length) << bit;
    begin += length;
  }
}

// The mask of some runs that add up to its size.
void decode(const int32_t* counts, int64_t runs, int64_t height, int64_t width, Strip& strip, uint64_t* words) {
  const int64_t stride = words_for(width);
  int64_t run = 0, run_begin = 0, run_end = runs ? counts[0] : 0;
  for (int64_t w = 0; w < stride; ++w) {
    const int64_t columns = std::min(kWordBits, width - w * kWordBits);
    const int64_t begin = w * kWordBits * height, end = begin + columns * height;
    std::fill(strip.columns.begin(), strip.columns.end(), 0);
    for (;;) {
      if (run % 2 == 1) fill(strip, std::max(run_begin, begin) - begin, std::min(run_end, end) - begin);
      if (run_end >= end || run + 1 >= runs) break;
      run_begin = run_end;
      run_end += counts[++run];
    }
    strip.write(words + w, stride);
  }
}

// Number of pixels set in both masks: their runs walked side by side.
int64_t intersection(const int32_t* a, int64_t runs_a, const int32_t* b, int64_t runs_b) {
  int64_t shared = 0, i = 0, j = 0, left_a = runs_a ? a[0] : 0, left_b = runs_b ? b[0] : 0;
  while (i < runs_a && j < runs_b) {
    const int64_t step = std::min(left_a, left_b);
    if (i % 2 == 1 && j % 2 == 1) shared += step;
    left_a -= step;
    left_b -= step;
    if (left_a == 0 && ++i < runs_a) left_a = a[i];
    if (left_b == 0 && ++j < runs_b) left_b = b[j];
  }
  return shared;
}

// The code of a batch, as the kernels read it.
struct Codes {
  Codes(const Tensor& counts_, const Tensor& offsets_, const Tensor& sizes_, const char* op)
      : counts_tensor(torch::stable::contiguous(counts_)),
        offsets_tensor(torch::stable::contiguous(offsets_)),
        sizes_tensor(torch::stable::contiguous(sizes_)) {
    S2D_CHECK(counts_tensor.scalar_type() == ScalarType::Int && counts_tensor.dim() == 1, op, "counts int32 [R]",
              shape_of(counts_));
    S2D_CHECK(sizes_tensor.scalar_type() == ScalarType::Int && sizes_tensor.dim() == 2 && sizes_tensor.size(1) == 2, op,
              "sizes int32 [N, 2]", shape_of(sizes_));
    number = sizes_tensor.size(0);
    S2D_CHECK(offsets_tensor.scalar_type() == ScalarType::Long && offsets_tensor.dim() == 1 &&
                  offsets_tensor.size(0) == number + 1,
              op, "offsets int64 [N + 1]", shape_of(offsets_));
    counts = static_cast<const int32_t*>(counts_tensor.const_data_ptr());
    offsets = static_cast<const int64_t*>(offsets_tensor.const_data_ptr());
    sizes = static_cast<const int32_t*>(sizes_tensor.const_data_ptr());
    const int64_t total = counts_tensor.size(0);
    for (int64_t n = 0; n < number; ++n) {
      S2D_CHECK(0 <= offsets[n] && offsets[n] <= offsets[n + 1] && offsets[n + 1] <= total, op,
                "offsets that ascend within counts", "mask " + std::to_string(n));
      int64_t sum = 0;
      for (int64_t r = offsets[n]; r < offsets[n + 1]; ++r) {
        S2D_CHECK(counts[r] >= 0, op, "runs of at least 0 pixels", "mask " + std::to_string(n));
        sum += counts[r];
      }
      S2D_CHECK(sum == height(n) * width(n), op, "runs that add up to the size", "mask " + std::to_string(n));
    }
  }

  int64_t height(int64_t n) const { return sizes[2 * n]; }
  int64_t width(int64_t n) const { return sizes[2 * n + 1]; }
  const int32_t* runs(int64_t n) const { return counts + offsets[n]; }
  int64_t number_of_runs(int64_t n) const { return offsets[n + 1] - offsets[n]; }
  int64_t mean_bytes() const { return counts_tensor.size(0) * 4 / std::max<int64_t>(1, number); }

  int64_t area(int64_t n) const {
    int64_t total = 0;
    for (int64_t r = 1; r < number_of_runs(n); r += 2) total += runs(n)[r];
    return total;
  }

  Tensor counts_tensor, offsets_tensor, sizes_tensor;
  const int32_t* counts;
  const int64_t* offsets;
  const int32_t* sizes;
  int64_t number;
};

void box_of(const Codes& codes, int64_t n, int64_t* box) {
  const int64_t height = codes.height(n);
  int64_t left = -1, right = 0, top = height, bottom = -1, position = 0;
  for (int64_t r = 0; r < codes.number_of_runs(n); ++r) {
    const int64_t begin = position, end = position += codes.runs(n)[r];
    if (r % 2 == 0 || begin == end) continue;
    if (left < 0) left = begin / height;
    right = (end - 1) / height;
    // A run that goes on into the next column covers a column's end and another's start.
    const bool wraps = begin / height != right;
    top = std::min(top, wraps ? 0 : begin % height);
    bottom = std::max(bottom, wraps ? height - 1 : (end - 1) % height);
  }
  const bool empty = left < 0;
  box[0] = empty ? 0 : left;
  box[1] = empty ? 0 : top;
  box[2] = empty ? 0 : right - left + 1;
  box[3] = empty ? 0 : bottom - top + 1;
}

bool boxes_meet(const int64_t* a, const int64_t* b) {
  return a[0] < b[0] + b[2] && b[0] < a[0] + a[2] && a[1] < b[1] + b[3] && b[1] < a[1] + a[3];
}

// Steps of a walk over runs that take as long as counting one word.
constexpr int64_t kWordsPerRun = 8;

// Whether counting bits is less work than walking runs, with all masks of one size as the caller has checked.
bool by_bits(const Codes& a, const Codes& b) {
  const int64_t runs = (a.mean_bytes() + b.mean_bytes()) / 4;
  return runs * kWordsPerRun > a.height(0) * words_for(a.width(0));
}

std::vector<uint64_t> bits_of(const Codes& codes) {
  const int64_t height = codes.height(0), width = codes.width(0), words = height * words_for(width);
  std::vector<uint64_t> bits(codes.number * words);
  parallel_over(codes.number, words * 8, [&](int64_t begin, int64_t end) {
    Strip strip(height);
    for (int64_t n = begin; n < end; ++n) {
      decode(codes.runs(n), codes.number_of_runs(n), height, width, strip, &bits[n * words]);
    }
  });
  return bits;
}

}  // namespace

std::tuple<Tensor, Tensor> rle_encode(const Tensor& words, int64_t width) {
  S2D_CHECK(words.scalar_type() == ScalarType::Long && words.dim() == 3 && words.size(2) == words_for(width),
            "rle_encode", "words int64 [N, H, ceil(W/64)]", shape_of(words));
  const Tensor source = torch::stable::contiguous(words);
  const int64_t number = source.size(0), height = source.size(1), stride = source.size(2);
  S2D_CHECK(height * width <= kMaxPixels, "rle_encode", "a mask of at most 2^31 - 1 pixels", height * width);
  const auto* in = static_cast<const uint64_t*>(source.const_data_ptr());
  std::vector<std::vector<int32_t>> runs(number);
  parallel_over(number, height * stride * 8, [&](int64_t begin, int64_t end) {
    Strip strip(height);
    for (int64_t n = begin; n < end; ++n) encode(in + n * height * stride, height, width, strip, runs[n]);
  });
  Tensor offsets = torch::stable::new_empty(source, {number + 1}, ScalarType::Long);
  auto* bounds = static_cast<int64_t*>(offsets.mutable_data_ptr());
  bounds[0] = 0;
  for (int64_t n = 0; n < number; ++n) bounds[n + 1] = bounds[n] + static_cast<int64_t>(runs[n].size());
  Tensor counts = torch::stable::new_empty(source, {bounds[number]}, ScalarType::Int);
  auto* out = static_cast<int32_t*>(counts.mutable_data_ptr());
  for (int64_t n = 0; n < number; ++n) std::copy(runs[n].begin(), runs[n].end(), out + bounds[n]);
  return {counts, offsets};
}

Tensor rle_decode(const Tensor& counts, const Tensor& offsets, const Tensor& sizes, int64_t height, int64_t width) {
  const Codes codes(counts, offsets, sizes, "rle_decode");
  const int64_t stride = words_for(width);
  for (int64_t n = 0; n < codes.number; ++n) {
    S2D_CHECK(codes.height(n) == height && codes.width(n) == width, "rle_decode", "masks of one size",
              "mask " + std::to_string(n) + " of another");
  }
  Tensor result = torch::stable::new_empty(counts, {codes.number, height, stride}, ScalarType::Long);
  auto* out = static_cast<uint64_t*>(result.mutable_data_ptr());
  parallel_over(codes.number, height * stride * 8, [&](int64_t begin, int64_t end) {
    Strip strip(height);
    for (int64_t n = begin; n < end; ++n) {
      decode(codes.runs(n), codes.number_of_runs(n), height, width, strip, out + n * height * stride);
    }
  });
  return result;
}

Tensor rle_area(const Tensor& counts, const Tensor& offsets, const Tensor& sizes) {
  const Codes codes(counts, offsets, sizes, "rle_area");
  Tensor result = torch::stable::new_empty(counts, {codes.number}, ScalarType::Long);
  auto* out = static_cast<int64_t*>(result.mutable_data_ptr());
  for (int64_t n = 0; n < codes.number; ++n) out[n] = codes.area(n);
  return result;
}

Tensor rle_bbox(const Tensor& counts, const Tensor& offsets, const Tensor& sizes) {
  const Codes codes(counts, offsets, sizes, "rle_bbox");
  Tensor result = torch::stable::new_empty(counts, {codes.number, 4}, ScalarType::Long);
  auto* out = static_cast<int64_t*>(result.mutable_data_ptr());
  for (int64_t n = 0; n < codes.number; ++n) box_of(codes, n, out + 4 * n);
  return result;
}

Tensor rle_iou(const Tensor& counts_a, const Tensor& offsets_a, const Tensor& sizes_a, const Tensor& counts_b,
               const Tensor& offsets_b, const Tensor& sizes_b, const Tensor& crowd) {
  const Codes a(counts_a, offsets_a, sizes_a, "rle_iou"), b(counts_b, offsets_b, sizes_b, "rle_iou");
  S2D_CHECK(crowd.scalar_type() == ScalarType::Bool && crowd.dim() == 1 && crowd.size(0) == b.number, "rle_iou",
            "crowd bool [M]", shape_of(crowd));
  for (const Codes* codes : {&a, &b}) {
    for (int64_t n = 0; n < codes->number; ++n) {
      const Codes& first = a.number ? a : b;
      S2D_CHECK(codes->height(n) == first.height(0) && codes->width(n) == first.width(0), "rle_iou",
                "masks of one size", "mask " + std::to_string(n) + " of another");
    }
  }
  const Tensor crowd_flags = torch::stable::contiguous(crowd);
  const auto* is_crowd = static_cast<const bool*>(crowd_flags.const_data_ptr());
  std::vector<int64_t> area_b(b.number), box_b(4 * b.number);
  for (int64_t m = 0; m < b.number; ++m) {
    area_b[m] = b.area(m);
    box_of(b, m, &box_b[4 * m]);
  }
  Tensor result = torch::stable::new_empty(counts_a, {a.number, b.number}, ScalarType::Double);
  auto* out = static_cast<double*>(result.mutable_data_ptr());
  const bool dense = a.number && b.number && by_bits(a, b);
  const std::vector<uint64_t> bits_a = dense ? bits_of(a) : std::vector<uint64_t>();
  const std::vector<uint64_t> bits_b = dense ? bits_of(b) : std::vector<uint64_t>();
  const int64_t words = dense ? a.height(0) * words_for(a.width(0)) : 0;
  const int64_t bytes = dense ? words * 8 : a.mean_bytes() + b.mean_bytes();
  parallel_over(a.number, bytes * b.number, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> shared(dense ? (end - begin) * b.number : 0);
    if (dense) add_intersections(&bits_a[begin * words], end - begin, bits_b.data(), b.number, words, shared.data());
    for (int64_t n = begin; n < end; ++n) {
      const int64_t own = a.area(n);
      int64_t box[4];
      box_of(a, n, box);
      for (int64_t m = 0; m < b.number; ++m) {
        int64_t both = 0;
        if (dense) {
          both = shared[(n - begin) * b.number + m];
        } else if (boxes_meet(box, &box_b[4 * m])) {
          both = intersection(a.runs(n), a.number_of_runs(n), b.runs(m), b.number_of_runs(m));
        }
        const int64_t whole = is_crowd[m] ? own : own + area_b[m] - both;
        out[n * b.number + m] = both ? static_cast<double>(both) / static_cast<double>(whole) : 0.0;
      }
    }
  });
  return result;
}

}  // namespace s2d::rle

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def("rle_encode(Tensor words, int width) -> (Tensor, Tensor)");
  library.def("rle_decode(Tensor counts, Tensor offsets, Tensor sizes, int height, int width) -> Tensor");
  library.def("rle_area(Tensor counts, Tensor offsets, Tensor sizes) -> Tensor");
  library.def("rle_bbox(Tensor counts, Tensor offsets, Tensor sizes) -> Tensor");
  library.def(
      "rle_iou(Tensor counts_a, Tensor offsets_a, Tensor sizes_a, Tensor counts_b, Tensor offsets_b, Tensor sizes_b, "
      "Tensor crowd) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("rle_encode", TORCH_BOX(&s2d::rle::rle_encode));
  library.impl("rle_decode", TORCH_BOX(&s2d::rle::rle_decode));
  library.impl("rle_area", TORCH_BOX(&s2d::rle::rle_area));
  library.impl("rle_bbox", TORCH_BOX(&s2d::rle::rle_bbox));
  library.impl("rle_iou", TORCH_BOX(&s2d::rle::rle_iou));
}
