// mask_cost on the CPU: schema of the room and its CPU kernel.
//
// The points are sorted by the row of logits they fall in. A task owns a register of queries (sixteen with AVX-512,
// eight, four) of one frame and a band of rows: it turns each row it needs so that the queries' values of a pixel lie
// side by side, and then a point is four vector loads from two rows in the first-level cache, with no test for the
// border, which is a frame of zeros. Each logit is read once (twice where bands meet), each label once for a register
// of queries. The hard part is the exponential: one of them, and one division, serve softplus and sigmoid. Sums of up
// to 128 points are in T, the rest in double; which points are summed together depends on the sizes alone, so neither
// threads nor the width of a register change a digit.

#include "mask_cost.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../common/dtypes.h"
#include "../common/parallel.h"

namespace s2d::mask_cost {
namespace {

constexpr int64_t kRun = 128;      // points that are summed in T
constexpr int64_t kBandRows = 32;  // rows of logits of one task

struct Sizes {
  int64_t queries, frames, height, width, targets, mask_height, mask_width, points;

  int64_t bands() const { return height / kBandRows + 1; }  // there are height + 1 rows: the first is above the map
};

// The points in the order of their rows: those of row r are [start[r + 1], start[r + 2]).
template <typename T>
struct Sorted {
  std::vector<int32_t> order, column;
  std::vector<T> weight;
  std::vector<int64_t> start;
};

template <typename T>
Sorted<T> sort_points(const T* points, const Sizes& sizes) {
  Sorted<T> sorted{std::vector<int32_t>(sizes.points), std::vector<int32_t>(sizes.points),
                   std::vector<T>(4 * sizes.points), std::vector<int64_t>(sizes.height + 2)};
  const auto height = static_cast<int32_t>(sizes.height), width = static_cast<int32_t>(sizes.width);
  std::vector<int32_t> row(sizes.points);
  parallel_over(sizes.points, 16, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) row[p] = place_of(points[2 * p], points[2 * p + 1], height, width).row;
  });
  for (int64_t p = 0; p < sizes.points; ++p) ++sorted.start[row[p] + 2];
  for (int64_t r = 0; r <= sizes.height; ++r) sorted.start[r + 1] += sorted.start[r];
  std::vector<int64_t> next = sorted.start;
  for (int64_t p = 0; p < sizes.points; ++p) sorted.order[next[row[p] + 1]++] = static_cast<int32_t>(p);
  parallel_over(sizes.points, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* point = points + 2 * sorted.order[i];
      const Place<T> place = place_of(point[0], point[1], height, width);
      sorted.column[i] = place.column;
      std::copy(place.weight, place.weight + 4, sorted.weight.data() + 4 * i);
    }
  });
  return sorted;
}

// ---- the targets at the points ----

// What every mask shares: for each corner of each sorted point its 32-bit half of a word, its bit and its weight.
template <typename T>
struct Corners {
  std::vector<int32_t> half[4], bit[4];
  std::vector<T> weight[4];
};

template <typename T>
Corners<T> corners_of(const T* points, const std::vector<int32_t>& order, const Sizes& sizes) {
  Corners<T> corners;
  for (int c = 0; c < 4; ++c) {
    corners.half[c].resize(sizes.points);
    corners.bit[c].resize(sizes.points);
    corners.weight[c].resize(sizes.points);
  }
  const auto height = static_cast<int32_t>(sizes.mask_height), width = static_cast<int32_t>(sizes.mask_width);
  const auto halves = static_cast<int32_t>(2 * words_for(width));
  parallel_over(sizes.points, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* point = points + 2 * order[i];
      const Place<T> place = place_of(point[0], point[1], height, width);
      for (int c = 0; c < 4; ++c) {
        const int32_t x = place.column + (c & 1), y = place.row + (c >> 1);
        const bool inside = x >= 0 && x < width && y >= 0 && y < height;
        corners.half[c][i] = inside ? y * halves + x / 32 : 0;
        corners.bit[c][i] = inside ? x % 32 : 0;
        corners.weight[c][i] = inside ? place.weight[c] : 0;
      }
    }
  });
  return corners;
}

template <typename T>
S2D_LOOP void read_mask(const uint32_t* mask, const Corners<T>& corners, int64_t begin, int64_t end,
                        T* __restrict labels) {
  const int32_t *h0 = corners.half[0].data(), *h1 = corners.half[1].data();
  const int32_t *h2 = corners.half[2].data(), *h3 = corners.half[3].data();
  const int32_t *b0 = corners.bit[0].data(), *b1 = corners.bit[1].data();
  const int32_t *b2 = corners.bit[2].data(), *b3 = corners.bit[3].data();
  const T *w0 = corners.weight[0].data(), *w1 = corners.weight[1].data();
  const T *w2 = corners.weight[2].data(), *w3 = corners.weight[3].data();
  for (int64_t i = begin; i < end; ++i) {
    const auto a = static_cast<int32_t>(mask[h0[i]] >> b0[i] & 1), b = static_cast<int32_t>(mask[h1[i]] >> b1[i] & 1);
    const auto c = static_cast<int32_t>(mask[h2[i]] >> b2[i] & 1), d = static_cast<int32_t>(mask[h3[i]] >> b3[i] & 1);
    labels[i] =
        static_cast<T>(a) * w0[i] + static_cast<T>(b) * w1[i] + static_cast<T>(c) * w2[i] + static_cast<T>(d) * w3[i];
  }
}
S2D_LOOP void read_mask_float_loop(const uint32_t* mask, const Corners<float>& corners, int64_t begin, int64_t end,
                                   float* labels) {
  read_mask(mask, corners, begin, end, labels);
}
S2D_MULTIVERSION(void, read_mask_float,
                 (const uint32_t* mask, const Corners<float>& corners, int64_t begin, int64_t end, float* labels),
                 (mask, corners, begin, end, labels))

void read_run(const uint32_t* mask, const Corners<float>& corners, int64_t begin, int64_t end, float* labels) {
  read_mask_float(mask, corners, begin, end, labels);
}
void read_run(const uint32_t* mask, const Corners<double>& corners, int64_t begin, int64_t end, double* labels) {
  read_mask(mask, corners, begin, end, labels);
}

// labels[T, G, P] and their sums[G, T].
template <typename T>
void read_targets(const uint32_t* words, const T* points, const std::vector<int32_t>& order, const Sizes& sizes,
                  T* labels, double* sums) {
  const Corners<T> corners = corners_of(points, order, sizes);
  const int64_t halves = sizes.mask_height * 2 * words_for(sizes.mask_width);
  parallel_over(sizes.targets * sizes.frames, sizes.points * 64, [&](int64_t begin, int64_t end) {
    for (int64_t mask = begin; mask < end; ++mask) {
      const int64_t target = mask / sizes.frames, frame = mask % sizes.frames;
      T* row = labels + (frame * sizes.targets + target) * sizes.points;
      double sum = 0;
      for (int64_t first = 0; first < sizes.points; first += kRun) {
        const int64_t last = std::min(first + kRun, sizes.points);
        read_run(words + mask * halves, corners, first, last, row);
        T part = 0;
        for (int64_t i = first; i < last; ++i) part += row[i];
        sum += part;
      }
      sums[mask] = sum;
    }
  });
}

// ---- a register of queries against the targets ----

template <typename T>
struct Inputs {
  Sizes sizes;
  const T* logits;
  const Sorted<T>& points;
  const T* labels;
};

// One row of a map for up to kLanes queries, the values of a pixel side by side, zeros on both ends (one pixel before,
// two after); all zeros above and below the map.
template <int kLanes, typename T>
S2D_LOOP void turn_row(const Inputs<T>& in, int64_t query, int64_t frame, int64_t row, T* __restrict out) {
  using Pixel = typename Vector<T, kLanes>::InMemory;
  const int64_t width = in.sizes.width, height = in.sizes.height, step = in.sizes.frames * height * width;
  const int64_t count = std::min<int64_t>(kLanes, in.sizes.queries - query);
  if (row < 0 || row >= height) return std::fill(out, out + (width + 3) * kLanes, T(0));
  auto* pixels = reinterpret_cast<Pixel*>(out);
  pixels[0] = pixels[width + 1] = pixels[width + 2] = Pixel{};
  const T* maps = in.logits + query * step + (frame * height + row) * width;
  int64_t x = 0;
  for (; x + kLanes <= width; x += kLanes) {
    Lanes<T, kLanes> square[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const T* values = maps + std::min<int64_t>(lane, count - 1) * step + x;
      square[lane] = *reinterpret_cast<const Pixel*>(values);
      // The row below is next; its short pieces are more than the hardware foresees.
      __builtin_prefetch(values + width);
    }
    turn<kLanes>(square);
    for (int k = 0; k < kLanes; ++k) pixels[1 + x + k] = square[k];
  }
  for (; x < width; ++x) {
    for (int lane = 0; lane < kLanes; ++lane) pixels[1 + x][lane] = maps[std::min<int64_t>(lane, count - 1) * step + x];
  }
}

// sums += the lanes of a register.
template <int kLanes, typename T>
S2D_LOOP void add(double* __restrict sums, const Lanes<T, kLanes>& values) {
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] += static_cast<double>(values[lane]);
}

// The products of a run's logits and probabilities with the labels of kTargets targets.
template <int kTargets, int kLanes, typename T>
S2D_LOOP void multiply(const Lanes<T, kLanes>* logit, const Lanes<T, kLanes>* probability, const T* labels,
                       int64_t stride, int64_t count, double* sums) {
  Lanes<T, kLanes> with_logit[kTargets] = {}, with_probability[kTargets] = {};
  for (int64_t i = 0; i < count; ++i) {
    for (int g = 0; g < kTargets; ++g) {
      with_logit[g] += logit[i] * labels[g * stride + i];
      with_probability[g] += probability[i] * labels[g * stride + i];
    }
  }
  for (int g = 0; g < kTargets; ++g) {
    add<kLanes, T>(sums + 2 * g * kLanes, with_logit[g]);
    add<kLanes, T>(sums + (2 * g + 1) * kLanes, with_probability[g]);
  }
}

// sums[2 + 2 G, kLanes] of one band: softplus, probability, and for each target the two products.
template <int kLanes, typename T>
S2D_LOOP void sum_band(const Inputs<T>& in, int64_t query, int64_t frame, int64_t band, double* sums) {
  using Pixel = typename Vector<T, kLanes>::InMemory;
  const Sizes& sizes = in.sizes;
  const int64_t pitch = (sizes.width + 3) * kLanes;
  std::vector<T> turned(2 * pitch);
  T *above = turned.data(), *below = above + pitch;
  Lanes<T, kLanes> logit[kRun], probability[kRun];
  int64_t held = -2;  // the row that is in `below`
  const int64_t last_row = std::min(sizes.height, (band + 1) * kBandRows - 1);
  for (int64_t row = band * kBandRows - 1; row < last_row; ++row) {
    const int64_t begin = in.points.start[row + 1], end = in.points.start[row + 2];
    if (begin == end) continue;
    std::swap(above, below);
    if (held != row) turn_row<kLanes>(in, query, frame, row, above);
    turn_row<kLanes>(in, query, frame, row + 1, below);
    held = row + 1;
    for (int64_t first = begin; first < end; first += kRun) {
      const int64_t count = std::min(kRun, end - first);
      Lanes<T, kLanes> softplus_sum = {}, probability_sum = {};
      for (int64_t i = 0; i < count; ++i) {
        const int64_t place = (in.points.column[first + i] + 1) * kLanes;
        const T* weight = in.points.weight.data() + 4 * (first + i);
        const auto* upper = reinterpret_cast<const Pixel*>(above + place);
        const auto* lower = reinterpret_cast<const Pixel*>(below + place);
        const Lanes<T, kLanes> x =
            upper[0] * weight[0] + upper[1] * weight[1] + lower[0] * weight[2] + lower[1] * weight[3];
        Lanes<T, kLanes> softplus;
        terms_of<kLanes>(x, softplus, probability[i]);
        logit[i] = x;
        softplus_sum += softplus;
        probability_sum += probability[i];
      }
      add<kLanes, T>(sums, softplus_sum);
      add<kLanes, T>(sums + kLanes, probability_sum);
      const T* labels = in.labels + frame * sizes.targets * sizes.points + first;
      double* products = sums + 2 * kLanes;
      int64_t g = 0;
      for (; g + 4 <= sizes.targets; g += 4) {
        multiply<4, kLanes, T>(logit, probability, labels + g * sizes.points, sizes.points, count,
                               products + 2 * g * kLanes);
      }
      for (; g < sizes.targets; ++g) {
        multiply<1, kLanes, T>(logit, probability, labels + g * sizes.points, sizes.points, count,
                               products + 2 * g * kLanes);
      }
    }
  }
}
// A register's worth of queries, whatever the machine: a query's sums are the same in any company.
void sum_band_baseline(const Inputs<float>& in, int64_t query, int64_t frame, int64_t band, double* sums) {
  sum_band<4>(in, query, frame, band, sums);
}
#if defined(S2D_X86)
S2D_TARGET_AVX2 void sum_band_avx2(const Inputs<float>& in, int64_t query, int64_t frame, int64_t band, double* sums) {
  sum_band<8>(in, query, frame, band, sums);
}
S2D_TARGET_AVX512 void sum_band_avx512(const Inputs<float>& in, int64_t query, int64_t frame, int64_t band,
                                       double* sums) {
  sum_band<16>(in, query, frame, band, sums);
}
#endif
void sum_band_double(const Inputs<double>& in, int64_t query, int64_t frame, int64_t band, double* sums) {
  sum_band<2>(in, query, frame, band, sums);
}

template <typename T>
struct Task {
  int lanes;
  void (*run)(const Inputs<T>&, int64_t, int64_t, int64_t, double*);
};

template <typename T>
Task<T> task_of() {
  if constexpr (std::is_same_v<T, double>) {
    return {2, sum_band_double};
  } else {
#if defined(S2D_X86)
    if (isa() == Isa::avx512) return {16, sum_band_avx512};
    if (isa() == Isa::avx2) return {8, sum_band_avx2};
#endif
    return {4, sum_band_baseline};
  }
}

template <typename T>
void costs(const Sizes& sizes, const T* logits, const uint32_t* words, const T* points, T* bce, T* dice) {
  const Sorted<T> sorted = sort_points(points, sizes);
  std::vector<T> labels(sizes.frames * sizes.targets * sizes.points);
  std::vector<double> areas(sizes.targets * sizes.frames);
  read_targets(words, points, sorted.order, sizes, labels.data(), areas.data());
  const Inputs<T> in{sizes, logits, sorted, labels.data()};
  const Task<T> task = task_of<T>();
  const int64_t parts = sizes.frames * sizes.bands(), blocks = (sizes.queries + task.lanes - 1) / task.lanes;
  const int64_t length = (2 + 2 * sizes.targets) * task.lanes;
  std::vector<double> sums(blocks * parts * length);
  // A point takes as long as four registers of memory.
  const int64_t values = (sizes.height * sizes.width + 4 * sizes.points) / sizes.bands() * task.lanes;
  parallel_over(blocks * parts, values * static_cast<int64_t>(sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t part = k % parts;
      task.run(in, k / parts * task.lanes, part / sizes.bands(), part % sizes.bands(), sums.data() + k * length);
    }
  });

  const auto number = static_cast<double>(sizes.frames * sizes.points);
  for (int64_t target = 0; target < sizes.targets; ++target) {
    double area = 0;
    for (int64_t frame = 0; frame < sizes.frames; ++frame) area += areas[target * sizes.frames + frame];
    for (int64_t query = 0; query < sizes.queries; ++query) {
      const double* first = sums.data() + query / task.lanes * parts * length + query % task.lanes;
      const auto total = [&](int64_t row) {
        double sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += first[part * length + row * task.lanes];
        return sum;
      };
      const int64_t out = query * sizes.targets + target;
      bce[out] = static_cast<T>((total(0) - total(2 + 2 * target)) / number);
      dice[out] = static_cast<T>(1 - (2 * total(3 + 2 * target) + 1) / (total(1) + area + 1));
    }
  }
}

Sizes sizes_of(const Tensor& logits, const Tensor& words, int64_t width, const Tensor& points) {
  constexpr const char* op = "mask_cost";
  S2D_CHECK(logits.dim() == 4 && product_of(logits, 1, 4) > 0, op, "logits [Q, T, h, w] with T, h, w > 0",
            shape_of(logits));
  S2D_CHECK(words.scalar_type() == ScalarType::Long && words.dim() == 4 && words.size(1) == logits.size(1) &&
                words.size(2) > 0 && width > 0 && words.size(3) == words_for(width),
            op, "words int64 [G, T, H, ceil(W/64)]", shape_of(words));
  S2D_CHECK(points.dim() == 2 && points.size(1) == 2 && points.size(0) > 0, op, "points [P, 2] with P > 0",
            shape_of(points));
  constexpr int64_t kLargest = int64_t{1} << 31;
  S2D_CHECK(points.size(0) < kLargest, op, "fewer than 2^31 points", points.size(0));
  S2D_CHECK(2 * words.size(2) * words.size(3) < kLargest, op, "masks of fewer than 2^31 32-bit words", shape_of(words));
  S2D_CHECK(logits.size(2) < (1 << 22) && logits.size(3) < (1 << 22) && words.size(2) < (1 << 22) && width < (1 << 22),
            op, "heights and widths under 2^22", shape_of(logits) + " and " + shape_of(words));
  return {logits.size(0), logits.size(1), logits.size(2), logits.size(3),
          words.size(0),  words.size(2),  width,          points.size(0)};
}

template <typename T>
std::tuple<Tensor, Tensor> costs_of(const Sizes& sizes, const Tensor& logits, const Tensor& words,
                                    const Tensor& points) {
  const Tensor maps = torch::stable::contiguous(logits), bits = torch::stable::contiguous(words),
               places = torch::stable::contiguous(points);
  Tensor bce = torch::stable::new_empty(maps, {sizes.queries, sizes.targets}, maps.scalar_type());
  Tensor dice = torch::stable::new_empty(maps, {sizes.queries, sizes.targets}, maps.scalar_type());
  if (sizes.queries * sizes.targets > 0) {
    costs<T>(sizes, static_cast<const T*>(maps.const_data_ptr()), static_cast<const uint32_t*>(bits.const_data_ptr()),
             static_cast<const T*>(places.const_data_ptr()), static_cast<T*>(bce.mutable_data_ptr()),
             static_cast<T*>(dice.mutable_data_ptr()));
  }
  return {bce, dice};
}

}  // namespace

std::tuple<Tensor, Tensor> mask_cost(const Tensor& logits, const Tensor& words, int64_t width, const Tensor& points) {
  const Sizes sizes = sizes_of(logits, words, width, points);
  check_floating(logits, "mask_cost", "logits");
  S2D_CHECK(points.scalar_type() == wide(logits), "mask_cost", "points float32, or float64 with logits float64",
            "another dtype");
  const auto run = is_double(logits) ? costs_of<double> : costs_of<float>;
  return run(sizes, widened(logits), words, points);
}

}  // namespace s2d::mask_cost

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def("mask_cost(Tensor logits, Tensor words, int width, Tensor points) -> (Tensor bce, Tensor dice)");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) { library.impl("mask_cost", TORCH_BOX(&s2d::mask_cost::mask_cost)); }
