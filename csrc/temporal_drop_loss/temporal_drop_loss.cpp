// temporal_drop_loss on the CPU: schema of the room, its CPU kernel and its gradient.
//
// A task owns a row (a mask on a frame). Its logits, 58 kB of them at 90 x 160, are copied into a frame of zeros and
// stay in the second-level cache. One pass reads them at all candidates and keeps the values, 4 bytes each; a sample of
// them brackets the threshold, and a partial sort of what lies between finds it; then only the chosen points, drawn a
// second time from their counters, meet the mask's bits, the exponential and the sums. Where a gradient is wanted the
// same pass scatters each point's three slopes to the four pixels around it. The loss is a sum over points and a
// quotient of sums over points, so those three maps and the sums are its whole gradient: it is finished before the
// forward returns, and backward is a multiplication. The hard part is the first pass: twelve of thirteen points read
// end there.
//
// A row's digits depend on the row alone, not on threads or instruction sets.

#include "temporal_drop_loss.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <numeric>
#include <optional>
#include <tuple>

#include "../common/dtypes.h"
#include "../common/parallel.h"
#include "uncertain.h"

namespace s2d::temporal_drop_loss {
namespace {

constexpr const char* kOp = "temporal_drop_loss";
constexpr int kParts = 16;  // sums of a run that are kept apart, so that they fit registers of every width

struct Sizes {
  int64_t rows, height, width, mask_height, mask_width, points, candidates, chosen;

  int64_t uniform() const { return points - chosen; }
};

template <typename T>
struct Inputs {
  Sizes sizes;
  const T* logits;
  const uint32_t* words;
  uint64_t seed;
  const T *candidates, *uniform;  // of the row; null: drawn
};

struct Sums {
  double bce = 0, overlap = 0, probability = 0, label = 0;
};

// What a thread needs for a row.
template <typename T>
struct Scratch {
  Map<T> map;
  std::vector<T> values;        // at the candidates
  std::vector<int32_t> chosen;  // of the candidates
  std::vector<Key<T>> keys;     // what `choose` compares
  std::vector<T> slopes;        // four for each pixel of the map; none without a gradient

  Scratch(const Sizes& sizes, bool gradient)
      : map(sizes.height, sizes.width),
        values(sizes.candidates),
        chosen(sizes.candidates + kSpare),
        slopes(gradient ? 4 * map.values.size() : 0) {}
};

// ---- points ----

struct Row {
  int64_t index;
  uint64_t seed;
};

// Both points of kRun counters.
template <typename T>
S2D_LOOP void draw(const Row& row, Stream stream, int64_t counter, Points<T>& first, Points<T>& second) {
  const uint64_t seed = row.seed;
  const auto from = static_cast<uint32_t>(counter), index = static_cast<uint32_t>(row.index);
  T* __restrict x0 = first.x, * __restrict y0 = first.y, * __restrict x1 = second.x, * __restrict y1 = second.y;
  for (uint32_t i = 0; i < kRun; ++i) {
    const Words words = philox(seed, from + i, index, stream);
    x0[i] = unit<T>(words.a);
    y0[i] = unit<T>(words.b);
    x1[i] = unit<T>(words.c);
    y1[i] = unit<T>(words.d);
  }
}

// The points of a set of `number` that have these indices.
template <typename T>
S2D_LOOP void draw_again(const Row& row, Stream stream, int64_t number, const int32_t* __restrict indices,
                         Points<T>& points) {
  const uint64_t seed = row.seed;
  const auto half = static_cast<int32_t>((number + 1) / 2);
  const auto index = static_cast<uint32_t>(row.index);
  T* __restrict x = points.x, * __restrict y = points.y;
  for (int i = 0; i < kRun; ++i) {
    const int32_t second = indices[i] >= half;
    const Words words = philox(seed, static_cast<uint32_t>(indices[i] - second * half), index, stream);
    const auto other = static_cast<uint32_t>(-second);
    x[i] = unit<T>(words.a ^ ((words.a ^ words.c) & other));
    y[i] = unit<T>(words.b ^ ((words.b ^ words.d) & other));
  }
}

template <typename T>
S2D_LOOP void take(const T* given, const int32_t* indices, int count, Points<T>& points) {
  for (int i = 0; i < count; ++i) {
    points.x[i] = given[2 * indices[i]];
    points.y[i] = given[2 * indices[i] + 1];
  }
}

// `values` of all candidates.
template <typename T>
S2D_LOOP void read_candidates(const Inputs<T>& in, const Row& row, Scratch<T>& scratch) {
  const Map<T>& map = scratch.map;
  Points<T> first, second;
  Places<T> places;
  T values[kRun];
  const auto read_to = [&](const Points<T>& points, int64_t begin, int64_t end) __attribute__((always_inline)) {
    place(points, map.height, map.width, places);
    read(map, places, values);
    if (begin < end) std::copy(values, values + std::min<int64_t>(kRun, end - begin), scratch.values.data() + begin);
  };
  const int64_t number = in.sizes.candidates, half = (number + 1) / 2;
  if (in.candidates) {
    int32_t indices[kRun];
    for (int64_t begin = 0; begin < number; begin += kRun) {
      for (int i = 0; i < kRun; ++i) indices[i] = static_cast<int32_t>(std::min(begin + i, number - 1));
      take(in.candidates, indices, kRun, first);
      read_to(first, begin, number);
    }
    return;
  }
  for (int64_t counter = 0; counter < half; counter += kRun) {
    draw(row, kCandidates, counter, first, second);
    read_to(first, counter, half);
    read_to(second, half + counter, number);
  }
}

// ---- the loss of points ----

// Adds `count` points to the sums, and their slopes to the pixels they read.
template <int kLanes, typename T>
S2D_LOOP void add_run(const Inputs<T>& in, const Row& row, const Points<T>& points, int count, Scratch<T>& scratch,
                      Sums& sums) {
  using Register = typename Vector<T, kLanes>::InMemory;
  const Map<T>& map = scratch.map;
  const auto mask_height = static_cast<int32_t>(in.sizes.mask_height);
  const auto mask_width = static_cast<int32_t>(in.sizes.mask_width);
  Places<T> places;
  T logit[kRun], label[kRun], softplus[kRun], probability[kRun];
  place(points, mask_height, mask_width, places);
  read(in.words + row.index * mask_height * 2 * words_for(mask_width), mask_height, mask_width, places, label);
  place(points, map.height, map.width, places);
  read(map, places, logit);
  for (int i = 0; i < kRun; i += kLanes) {
    Lanes<T, kLanes> softplus_of, probability_of;
    terms_of<kLanes>(Lanes<T, kLanes>(*reinterpret_cast<const Register*>(logit + i)), softplus_of, probability_of);
    *reinterpret_cast<Register*>(softplus + i) = softplus_of;
    *reinterpret_cast<Register*>(probability + i) = probability_of;
  }
  // A last run is filled up with points that read nothing; only softplus and sigmoid of 0 are not 0.
  std::fill(softplus + count, softplus + kRun, T(0));
  std::fill(probability + count, probability + kRun, T(0));

  T bce[kParts] = {}, overlap[kParts] = {}, probabilities[kParts] = {}, labels[kParts] = {};
  for (int i = 0; i < kRun; i += kParts) {
    for (int k = 0; k < kParts; ++k) {
      bce[k] += softplus[i + k] - logit[i + k] * label[i + k];
      overlap[k] += probability[i + k] * label[i + k];
      probabilities[k] += probability[i + k];
      labels[k] += label[i + k];
    }
  }
  for (int k = 0; k < kParts; ++k) {
    sums.bce += static_cast<double>(bce[k]);
    sums.overlap += static_cast<double>(overlap[k]);
    sums.probability += static_cast<double>(probabilities[k]);
    sums.label += static_cast<double>(labels[k]);
  }

  if (scratch.slopes.empty()) return;
  using Pixel = typename Vector<T, 4>::InMemory;
  for (int i = 0; i < count; ++i) {
    const T s = probability[i], t = label[i], slope = s * (1 - s);
    const Lanes<T, 4> slopes = {s - t, slope * t, slope, 0};
    const T right = places.right[i], down = places.down[i];
    auto* pixel =
        reinterpret_cast<Pixel*>(scratch.slopes.data()) + (places.row[i] + 2) * map.pitch + places.column[i] + 2;
    pixel[0] += slopes * ((1 - right) * (1 - down));
    pixel[1] += slopes * (right * (1 - down));
    pixel[map.pitch] += slopes * ((1 - right) * down);
    pixel[map.pitch + 1] += slopes * (right * down);
  }
}

template <int kLanes, typename T>
S2D_LOOP Sums sum_row(const Inputs<T>& in, const Row& row, Scratch<T>& scratch) {
  const Sizes& sizes = in.sizes;
  scratch.map.fill(in.logits + row.index * sizes.height * sizes.width);
  if (sizes.chosen > 0) {
    read_candidates(in, row, scratch);
    choose(scratch.values, sizes.chosen, scratch.chosen.data(), scratch.keys);
  }
  std::fill(scratch.slopes.begin(), scratch.slopes.end(), T(0));

  Sums sums;
  Points<T> points;
  int32_t indices[kRun];
  const auto add_set = [&](Stream stream, int64_t number, int64_t wanted, const int32_t* chosen, const T* given)
                           __attribute__((always_inline)) {
                             for (int64_t first = 0; first < wanted; first += kRun) {
                               const auto count = static_cast<int>(std::min<int64_t>(kRun, wanted - first));
                               for (int i = 0; i < kRun; ++i) indices[i] = static_cast<int32_t>(first + i);
                               if (chosen) std::copy(chosen + first, chosen + first + count, indices);
                               if (given) {
                                 for (int i = 0; i < count; ++i) {
                                   points.x[i] = given[2 * indices[i]];
                                   points.y[i] = given[2 * indices[i] + 1];
                                 }
                               } else {
                                 draw_again(row, stream, number, indices, points);
                               }
                               std::fill(points.x + count, points.x + kRun, T(-1));
                               std::fill(points.y + count, points.y + kRun, T(-1));
                               add_run<kLanes>(in, row, points, count, scratch, sums);
                             }
                           };
  add_set(kCandidates, sizes.candidates, sizes.chosen, scratch.chosen.data(), in.candidates);
  add_set(kUniform, sizes.uniform(), sizes.uniform(), nullptr, in.uniform);
  return sums;
}

Sums sum_row_baseline(const Inputs<float>& in, const Row& row, Scratch<float>& scratch) {
  return sum_row<4>(in, row, scratch);
}
#if defined(S2D_X86)
S2D_TARGET_AVX2 Sums sum_row_avx2(const Inputs<float>& in, const Row& row, Scratch<float>& scratch) {
  return sum_row<8>(in, row, scratch);
}
S2D_TARGET_AVX512 Sums sum_row_avx512(const Inputs<float>& in, const Row& row, Scratch<float>& scratch) {
  return sum_row<16>(in, row, scratch);
}
#endif

Sums sums_of(const Inputs<float>& in, const Row& row, Scratch<float>& scratch) {
#if defined(S2D_X86)
  if (isa() == Isa::avx512) return sum_row_avx512(in, row, scratch);
  if (isa() == Isa::avx2) return sum_row_avx2(in, row, scratch);
#endif
  return sum_row_baseline(in, row, scratch);
}
Sums sums_of(const Inputs<double>& in, const Row& row, Scratch<double>& scratch) {
  return sum_row<2>(in, row, scratch);
}

// The slopes of a row's two losses by its logits, [h, w] each.
template <typename T>
void write_gradients(const Sizes& sizes, const Scratch<T>& scratch, const Sums& sums, T* bce, T* dice) {
  const double total = sums.probability + sums.label + 1;
  const auto by_points = static_cast<T>(1.0 / static_cast<double>(sizes.points));
  const auto with_label = static_cast<T>(-2 / total);
  const auto without = static_cast<T>((2 * sums.overlap + 1) / (total * total));
  for (int64_t y = 0; y < sizes.height; ++y) {
    const T* pixel = scratch.slopes.data() + 4 * ((y + 2) * scratch.map.pitch + 2);
    for (int64_t x = 0; x < sizes.width; ++x, pixel += 4) {
      bce[y * sizes.width + x] = pixel[0] * by_points;
      dice[y * sizes.width + x] = pixel[1] * with_label + pixel[2] * without;
    }
  }
}

// ---- tensors ----

Sizes sizes_of(const Tensor& logits, const Tensor& words, int64_t width, const Tensor& keep, int64_t points,
               int64_t candidates, int64_t chosen) {
  S2D_CHECK(logits.dim() == 4, kOp, "logits [N, T, h, w]", shape_of(logits));
  S2D_CHECK(words.scalar_type() == ScalarType::Long && words.dim() == 4 && words.size(0) == logits.size(0) &&
                words.size(1) == logits.size(1) && words.size(3) == words_for(width),
            kOp, "words int64 [N, T, H, ceil(W/64)]", shape_of(words));
  S2D_CHECK(keep.scalar_type() == ScalarType::Bool && keep.dim() == 2 && keep.size(0) == logits.size(0) &&
                keep.size(1) == logits.size(1),
            kOp, "keep bool [N, T]", shape_of(keep));
  constexpr int64_t kLargest = int64_t{1} << 31;
  S2D_CHECK(points > 0 && 0 <= chosen && chosen <= std::min(points, candidates) && points < kLargest - kRun &&
                candidates < kLargest - kRun,
            kOp, "0 <= chosen <= points and candidates, fewer than 2^31 of them", chosen);
  S2D_CHECK((logits.size(2) + 4) * (logits.size(3) + 4) < kLargest && 2 * words.size(2) * words.size(3) < kLargest, kOp,
            "maps of fewer than 2^31 pixels", shape_of(logits) + " and " + shape_of(words));
  return {logits.size(0) * logits.size(1),
          logits.size(2),
          logits.size(3),
          words.size(2),
          width,
          points,
          candidates,
          chosen};
}

// Points that were handed in, [rows, number, 2], of the dtype of the computation.
std::optional<Tensor> given_of(const std::optional<Tensor>& points, const Sizes& sizes, int64_t number,
                               ScalarType type) {
  if (!points) return std::nullopt;
  S2D_CHECK(points->dim() == 3 && points->size(0) == sizes.rows && points->size(1) == number && points->size(2) == 2,
            kOp, "points [N T, P, 2]", shape_of(*points));
  S2D_CHECK(points->scalar_type() == type, kOp, "points float32, or float64 with logits float64", "another dtype");
  return torch::stable::contiguous(*points);
}

template <typename T>
const T* row_of(const std::optional<Tensor>& points, int64_t row) {
  return points ? static_cast<const T*>(points->const_data_ptr()) + row * points->size(1) * 2 : nullptr;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> losses_of(const Sizes& sizes, const Tensor& logits, const Tensor& words,
                                             const Tensor& keep, const Tensor& seed,
                                             const std::optional<Tensor>& candidates,
                                             const std::optional<Tensor>& uniform, bool gradient) {
  const Tensor maps = torch::stable::contiguous(logits), bits = torch::stable::contiguous(words),
               flags = torch::stable::contiguous(keep);
  const auto* kept = static_cast<const bool*>(flags.const_data_ptr());
  const std::optional<Tensor> given_candidates = given_of(candidates, sizes, sizes.candidates, maps.scalar_type());
  const std::optional<Tensor> given_uniform = given_of(uniform, sizes, sizes.uniform(), maps.scalar_type());

  Tensor bce = torch::stable::new_empty(maps, {}, maps.scalar_type()), dice = torch::stable::empty_like(bce);
  Tensor gradients =
      torch::stable::new_empty(maps,
                               gradient ? std::vector<int64_t>{2, maps.size(0), maps.size(1), sizes.height, sizes.width}
                                        : std::vector<int64_t>{0},
                               maps.scalar_type());
  auto* slopes = static_cast<T*>(gradients.mutable_data_ptr());
  const int64_t pixels = sizes.height * sizes.width;
  const Inputs<T> common{sizes,
                         static_cast<const T*>(maps.const_data_ptr()),
                         static_cast<const uint32_t*>(bits.const_data_ptr()),
                         static_cast<uint64_t>(*static_cast<const int64_t*>(seed.const_data_ptr())),
                         nullptr,
                         nullptr};
  std::vector<Sums> sums(sizes.rows);
  // A point takes as long as a few registers of memory.
  const int64_t bytes = 16 * (sizes.candidates + 4 * sizes.points);
  parallel_over(sizes.rows, bytes, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(sizes, gradient);
    for (int64_t row = begin; row < end; ++row) {
      T *of_bce = slopes + row * pixels, *of_dice = of_bce + sizes.rows * pixels;
      if (kept[row]) {
        Inputs<T> in = common;
        in.candidates = row_of<T>(given_candidates, row);
        in.uniform = row_of<T>(given_uniform, row);
        sums[row] = sums_of(in, {row, in.seed}, scratch);
        if (gradient) write_gradients(sizes, scratch, sums[row], of_bce, of_dice);
      } else if (gradient) {
        std::fill(of_bce, of_bce + pixels, T(0));
        std::fill(of_dice, of_dice + pixels, T(0));
      }
    }
  });
  double bce_sum = 0, dice_sum = 0;
  for (int64_t row = 0; row < sizes.rows; ++row) {
    if (!kept[row]) continue;
    bce_sum += sums[row].bce / static_cast<double>(sizes.points);
    dice_sum += 1 - (2 * sums[row].overlap + 1) / (sums[row].probability + sums[row].label + 1);
  }
  *static_cast<T*>(bce.mutable_data_ptr()) = static_cast<T>(bce_sum);
  *static_cast<T*>(dice.mutable_data_ptr()) = static_cast<T>(dice_sum);
  return {bce, dice, gradients};
}

template <typename T>
Tensor weigh(const Tensor& grad_bce, const Tensor& grad_dice, const Tensor& gradients, const Tensor& logits) {
  const Tensor both = torch::stable::contiguous(gradients);
  Tensor grad = torch::stable::new_empty(both, {logits.size(0), logits.size(1), logits.size(2), logits.size(3)},
                                         both.scalar_type());
  const int64_t number = product_of(grad, 0, 4);
  const auto* bce = static_cast<const T*>(both.const_data_ptr());
  const T of_bce = *static_cast<const T*>(grad_bce.const_data_ptr());
  const T of_dice = *static_cast<const T*>(grad_dice.const_data_ptr());
  auto* out = static_cast<T*>(grad.mutable_data_ptr());
  parallel_over(number, 3 * sizeof(T), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = of_bce * bce[i] + of_dice * bce[number + i];
  });
  return grad;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& logits, const Tensor& words, int64_t width, const Tensor& keep,
                                           const Tensor& seed, const std::optional<Tensor>& candidates,
                                           const std::optional<Tensor>& uniform, int64_t num_points,
                                           int64_t num_candidates, int64_t chosen, bool gradient) {
  const Sizes sizes = sizes_of(logits, words, width, keep, num_points, num_candidates, chosen);
  check_floating(logits, kOp, "logits");
  const auto run = is_double(logits) ? losses_of<double> : losses_of<float>;
  return run(sizes, widened(logits), words, keep, seed, candidates, uniform, gradient);
}

Tensor backward(const Tensor& grad_bce, const Tensor& grad_dice, const Tensor& gradients, const Tensor& logits) {
  const auto run = is_double(gradients) ? weigh<double> : weigh<float>;
  return rounded(run(grad_bce, grad_dice, gradients, logits), logits);
}

}  // namespace s2d::temporal_drop_loss

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def(
      "temporal_drop_loss(Tensor logits, Tensor words, int width, Tensor keep, Tensor seed, Tensor? candidates, "
      "Tensor? "
      "uniform, int num_points, int num_candidates, int chosen, bool gradient) -> (Tensor bce, Tensor dice, Tensor "
      "gradients)");
  library.def(
      "temporal_drop_loss_backward(Tensor grad_bce, Tensor grad_dice, Tensor gradients, Tensor logits) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("temporal_drop_loss", TORCH_BOX(&s2d::temporal_drop_loss::forward));
  library.impl("temporal_drop_loss_backward", TORCH_BOX(&s2d::temporal_drop_loss::backward));
}
