// The code of a batch of masks, checked, as the CPU kernels read it, and a batch as they make one.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <tuple>
#include <vector>

#include "../common/check.h"
#include "../common/parallel.h"
#include "../common/simd.h"
#include "rle.h"

namespace s2d::rle {

S2D_LOOP void add_up_loop(const int32_t* counts, int64_t runs, int64_t& sum, int32_t& least) {
  int64_t total = 0;
  int32_t lowest = 0;
  for (int64_t r = 0; r < runs; ++r) {
    total += counts[r];
    lowest = std::min(lowest, counts[r]);
  }
  sum = total;
  least = lowest;
}
S2D_MULTIVERSION(void, add_up, (const int32_t* counts, int64_t runs, int64_t& sum, int32_t& least),
                 (counts, runs, sum, least))

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
    }
    check_runs(op);
  }

  int64_t height(int64_t n) const { return sizes[2 * n]; }
  int64_t width(int64_t n) const { return sizes[2 * n + 1]; }
  bool same_size(int64_t n, const Codes& other, int64_t m) const {
    return height(n) == other.height(m) && width(n) == other.width(m);
  }
  const int32_t* runs(int64_t n) const { return counts + offsets[n]; }
  int64_t number_of_runs(int64_t n) const { return offsets[n + 1] - offsets[n]; }
  int64_t mean_bytes() const { return counts_tensor.size(0) * 4 / std::max<int64_t>(1, number) + 16; }

  Tensor counts_tensor, offsets_tensor, sizes_tensor;
  const int32_t* counts;
  const int64_t* offsets;
  const int32_t* sizes;
  int64_t number;

 private:
  void check_runs(const char* op) const {
    std::atomic<int64_t> broken{number};
    parallel_over(number, mean_bytes(), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        int64_t sum;
        int32_t least;
        add_up(runs(n), number_of_runs(n), sum, least);
        if (least >= 0 && height(n) >= 0 && width(n) >= 0 && sum == height(n) * width(n)) continue;
        int64_t first = broken;
        while (n < first && !broken.compare_exchange_weak(first, n)) {
        }
        return;
      }
    });
    const int64_t n = broken;
    if (n == number) return;
    int64_t sum;
    int32_t least;
    add_up(runs(n), number_of_runs(n), sum, least);
    S2D_CHECK(least >= 0, op, "runs of at least 0 pixels", "mask " + std::to_string(n));
    S2D_CHECK(false, op, "runs that add up to the size", "mask " + std::to_string(n));
  }
};

// The runs of the masks [begin, end) that one thread has made, one mask after another.
struct Part {
  int64_t begin = 0, end = 0;
  std::vector<int32_t> counts;
};

// Make a batch: encode(state, n, counts) appends the runs of mask n, with a state that make_state() gives each thread.
// Returns counts and offsets; takes 4 bytes a run and 40 bytes a mask beside these.
template <typename MakeState, typename Encode>
std::tuple<Tensor, Tensor> make_codes(const Tensor& like, int64_t number, int64_t bytes_per_mask,
                                      const MakeState& make_state, const Encode& encode) {
  Tensor offsets = torch::stable::new_empty(like, {number + 1}, ScalarType::Long);
  auto* bounds = static_cast<int64_t*>(offsets.mutable_data_ptr());
  std::vector<Part> parts(number);
  parallel_over(number, bytes_per_mask, [&](int64_t begin, int64_t end) {
    Part& part = parts[begin];
    part.begin = begin;
    part.end = end;
    auto state = make_state();
    for (int64_t n = begin; n < end; ++n) {
      const size_t before = part.counts.size();
      encode(state, n, part.counts);
      bounds[n + 1] = static_cast<int64_t>(part.counts.size() - before);
    }
  });
  std::erase_if(parts, [](const Part& part) { return part.begin == part.end; });
  bounds[0] = 0;
  for (int64_t n = 0; n < number; ++n) bounds[n + 1] += bounds[n];
  Tensor counts = torch::stable::new_empty(like, {bounds[number]}, ScalarType::Int);
  auto* out = static_cast<int32_t*>(counts.mutable_data_ptr());
  for (const Part& part : parts) std::copy(part.counts.begin(), part.counts.end(), out + bounds[part.begin]);
  return {counts, offsets};
}

}  // namespace s2d::rle
