// ms_deform_attn on the CPU: schemas of the room and its CPU kernels.
//
// Forward: a task owns queries of a head; the head's D channels add up in registers (D of 8, 16, 32 and 64 are compiled
// with a known length). Backward: a task owns one head of one batch, whose part of `grad_value` no other task writes:
// no atomics, and the sums have one order whatever the number of threads. A point reads 4 D values (and in backward
// writes as many), 3 numbers of its own and D of the output.
//
// In `value` a head's rows lie M D numbers apart, mostly a power of two, so that they share a few sets of each cache.
// So they are copied side by side first, where there are at least as many points as rows; the second cache then holds
// them.

#include "ms_deform_attn.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../common/parallel.h"
#include "../common/simd.h"
#include "checks.h"

namespace s2d::ms_deform_attn {
namespace {

struct Levels {
  std::vector<int32_t> height, width;
  std::vector<int64_t> start;
};

template <typename T>
struct Forward {
  const Sizes& sizes;
  const Levels& levels;
  const T *value, *locations, *weights;
  const T* zeros;  // a row of them
  T* out;
};

template <typename T>
struct Backward {
  const Sizes& sizes;
  const Levels& levels;
  const T *value, *locations, *weights, *grad, *zeros;
  T *grad_value, *grad_locations, *grad_weights;
};

// The rows of a point's corners; one that is no pixel is `outside`.
template <typename T>
S2D_LOOP void rows_of(const Corners<std::remove_const_t<T>>& at, T* values, int64_t stride, T* outside, int64_t width,
                      T* rows[4]) {
  for (int64_t corner = 0; corner < 4; ++corner) {
    const int64_t pixel = at.place + corner % 2 + corner / 2 * width;
    rows[corner] = at.inside >> corner & 1 ? values + pixel * stride : outside;
  }
}

// Copies rows of `channels` that lie `from_stride` and `to_stride` apart.
template <typename T>
S2D_LOOP void copy_rows(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t channels) {
  for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * from_stride, channels, to + r * to_stride);
}

// Asks for what a query some turns ahead will read: a head's numbers lie too far apart for the processor to see to it.
constexpr int64_t kAhead = 4, kLine = 64;

template <typename T>
S2D_LOOP void ask_for(const T* numbers, int64_t length) {
  for (int64_t k = 0; k < length; k += kLine / sizeof(T)) __builtin_prefetch(numbers + k);
  __builtin_prefetch(numbers + length - 1);
}

// kChannels is D where it is known, else 0.
template <int kChannels, typename T>
S2D_LOOP void read_item(const Forward<T>& f, const T* values, int64_t stride, int64_t item) {
  const Sizes& s = f.sizes;
  const int64_t channels = kChannels ? kChannels : s.channels, first = item * s.per_head();
  T held[kChannels ? kChannels : 1];
  T* __restrict out = kChannels ? held : f.out + item * channels;
  std::fill(out, out + channels, T(0));
  for (int64_t level = 0; level < s.levels; ++level) {
    const int32_t height = f.levels.height[level], width = f.levels.width[level];
    for (int64_t point = 0; point < s.points; ++point) {
      const int64_t place = first + level * s.points + point;
      const auto at = corners_of(f.locations[2 * place], f.locations[2 * place + 1], height, width);
      if (!at.inside) continue;
      const T* rows[4];
      rows_of(at, values + f.levels.start[level] * stride, stride, f.zeros, width, rows);
      const T weight = f.weights[place];
      const T a = weight * at.share(0), b = weight * at.share(1), c = weight * at.share(2), e = weight * at.share(3);
      for (int64_t d = 0; d < channels; ++d) {
        out[d] += (a * rows[0][d] + b * rows[1][d]) + (c * rows[2][d] + e * rows[3][d]);
      }
    }
  }
  if (kChannels) std::copy_n(held, channels, f.out + item * channels);
}

// Partial sums over channels in a fixed order that vectorises.
constexpr int kPartial = 16;

template <typename T>
S2D_LOOP T total_of(T (&part)[kPartial]) {
  for (int half = kPartial / 2; half; half /= 2) {
    for (int k = 0; k < half; ++k) part[k] += part[k + half];
  }
  return part[0];
}

template <int kChannels, typename T>
S2D_LOOP void return_head(const Backward<T>& b, int64_t batch, int64_t head) {
  const Sizes& s = b.sizes;
  const int64_t channels = kChannels ? kChannels : s.channels, row = s.row();
  const int64_t base = batch * s.places * row + head * channels;
  std::vector<T> values(s.places * channels), grad_values(s.places * channels), unread(channels);
  copy_rows(b.value + base, row, values.data(), channels, s.places, channels);
  for (int64_t query = 0; query < s.queries; ++query) {
    const int64_t item = batch * s.queries + query, first = (item * s.heads + head) * s.per_head();
    const int64_t ahead = first + std::min(kAhead, s.queries - 1 - query) * s.heads * s.per_head();
    ask_for(b.locations + ahead * 2, s.per_head() * 2);
    ask_for(b.weights + ahead, s.per_head());
    const T* given = b.grad + item * row + head * channels;
    T held[kChannels ? kChannels : 1];
    if (kChannels) std::copy(given, given + channels, held);
    const T* __restrict grad = kChannels ? held : given;
    for (int64_t level = 0; level < s.levels; ++level) {
      const int32_t height = b.levels.height[level], width = b.levels.width[level];
      const int64_t level_base = b.levels.start[level] * channels;
      for (int64_t point = 0; point < s.points; ++point) {
        const int64_t place = first + level * s.points + point;
        const auto at = corners_of(b.locations[2 * place], b.locations[2 * place + 1], height, width);
        if (!at.inside) {
          b.grad_weights[place] = b.grad_locations[2 * place] = b.grad_locations[2 * place + 1] = 0;
          continue;
        }
        const T* rows[4];
        T* grads[4];
        rows_of<const T>(at, values.data() + level_base, channels, b.zeros, width, rows);
        rows_of(at, grad_values.data() + level_base, channels, unread.data(), width, grads);
        const T weight = b.weights[place];
        T read[kPartial] = {}, along_x[kPartial] = {}, along_y[kPartial] = {};
        const auto add = [&](int64_t d, int k) __attribute__((always_inline)) {
          const T v0 = rows[0][d], v1 = rows[1][d], v2 = rows[2][d], v3 = rows[3][d];
          read[k] += grad[d] * ((at.share(0) * v0 + at.share(1) * v1) + (at.share(2) * v2 + at.share(3) * v3));
          along_x[k] += grad[d] * ((1 - at.fy) * (v1 - v0) + at.fy * (v3 - v2));
          along_y[k] += grad[d] * ((1 - at.fx) * (v2 - v0) + at.fx * (v3 - v1));
        };
        int64_t d = 0;
        for (; d + kPartial <= channels; d += kPartial) {
          for (int k = 0; k < kPartial; ++k) add(d + k, k);
        }
        for (int k = 0; d + k < channels; ++k) add(d + k, k);
        for (int corner = 0; corner < 4; ++corner) {
          const T share = weight * at.share(corner);
          T* __restrict g = grads[corner];
          for (d = 0; d < channels; ++d) g[d] += share * grad[d];
        }
        b.grad_weights[place] = total_of(read);
        b.grad_locations[2 * place] = weight * static_cast<T>(width) * total_of(along_x);
        b.grad_locations[2 * place + 1] = weight * static_cast<T>(height) * total_of(along_y);
      }
    }
  }
  copy_rows(grad_values.data(), channels, b.grad_value + base, row, s.places, channels);
}

// Places [begin, end) in the order of batches, heads, queries.
template <int kChannels, typename T>
S2D_LOOP void read_items(const Forward<T>& f, int64_t begin, int64_t end) {
  const Sizes& s = f.sizes;
  const int64_t channels = kChannels ? kChannels : s.channels;
  std::vector<T> held;
  while (begin < end) {
    const int64_t batch = begin / s.queries / s.heads, head = begin / s.queries % s.heads, query = begin % s.queries;
    const int64_t number = std::min(s.queries - query, end - begin);
    const T* values = f.value + batch * s.places * s.row() + head * channels;
    int64_t stride = s.row();
    if (number * s.per_head() >= s.places) {
      held.resize(s.places * channels);
      copy_rows(values, stride, held.data(), channels, s.places, channels);
      values = held.data();
      stride = channels;
    }
    const int64_t first = (batch * s.queries + query) * s.heads + head;
    for (int64_t q = 0; q < number; ++q) {
      const int64_t ahead = first + std::min(q + kAhead, number - 1) * s.heads;
      ask_for(f.locations + ahead * s.per_head() * 2, s.per_head() * 2);
      ask_for(f.weights + ahead * s.per_head(), s.per_head());
      read_item<kChannels>(f, values, stride, first + q * s.heads);
    }
    begin += number;
  }
}

template <typename T>
S2D_LOOP void forward_any(const Forward<T>& f, int64_t begin, int64_t end) {
  switch (f.sizes.channels) {
    case 8:
      return read_items<8>(f, begin, end);
    case 16:
      return read_items<16>(f, begin, end);
    case 32:
      return read_items<32>(f, begin, end);
    case 64:
      return read_items<64>(f, begin, end);
    default:
      return read_items<0>(f, begin, end);
  }
}

template <typename T>
S2D_LOOP void backward_any(const Backward<T>& b, int64_t task) {
  const int64_t batch = task / b.sizes.heads, head = task % b.sizes.heads;
  switch (b.sizes.channels) {
    case 8:
      return return_head<8>(b, batch, head);
    case 16:
      return return_head<16>(b, batch, head);
    case 32:
      return return_head<32>(b, batch, head);
    case 64:
      return return_head<64>(b, batch, head);
    default:
      return return_head<0>(b, batch, head);
  }
}

S2D_LOOP void forward_float_loop(const Forward<float>& f, int64_t begin, int64_t end) { forward_any(f, begin, end); }
S2D_MULTIVERSION(void, forward_float, (const Forward<float>& f, int64_t begin, int64_t end), (f, begin, end))
S2D_LOOP void backward_float_loop(const Backward<float>& b, int64_t task) { backward_any(b, task); }
S2D_MULTIVERSION(void, backward_float, (const Backward<float>& b, int64_t task), (b, task))

// Double is there to check gradients by: one portable version.
void run(const Forward<double>& f, int64_t begin, int64_t end) { read_items<0>(f, begin, end); }
void run(const Forward<float>& f, int64_t begin, int64_t end) { forward_float(f, begin, end); }
void run(const Backward<double>& b, int64_t task) { return_head<0>(b, task / b.sizes.heads, task % b.sizes.heads); }
void run(const Backward<float>& b, int64_t task) { backward_float(b, task); }

Levels levels_of(const Tensor& shapes, const Sizes& sizes) {
  const Tensor held = torch::stable::contiguous(shapes);
  const auto* shape = static_cast<const int64_t*>(held.const_data_ptr());
  Levels levels;
  int64_t places = 0;
  for (int64_t level = 0; level < sizes.levels; ++level) {
    levels.height.push_back(static_cast<int32_t>(shape[2 * level]));
    levels.width.push_back(static_cast<int32_t>(shape[2 * level + 1]));
    levels.start.push_back(places);
    places += shape[2 * level] * shape[2 * level + 1];
  }
  S2D_CHECK(places == sizes.places, kOp, "spatial_shapes that add up to S", places);
  return levels;
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
Tensor forward_of(const Sizes& sizes, const Levels& levels, const Tensor& value, const Tensor& locations,
                  const Tensor& weights) {
  const Tensor v = torch::stable::contiguous(value), p = torch::stable::contiguous(locations),
               w = torch::stable::contiguous(weights);
  Tensor out = torch::stable::new_empty(v, {sizes.batches, sizes.queries, sizes.row()}, v.scalar_type());
  const std::vector<T> zeros(sizes.channels);
  const Forward<T> f{
      sizes, levels, data<T>(v), data<T>(p), data<T>(w), zeros.data(), static_cast<T*>(out.mutable_data_ptr())};
  const int64_t bytes = sizes.per_head() * sizes.channels * 16;
  parallel_over(sizes.batches * sizes.heads * sizes.queries, bytes,
                [&](int64_t begin, int64_t end) { run(f, begin, end); });
  return out;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> backward_of(const Sizes& sizes, const Levels& levels, const Tensor& value,
                                               const Tensor& locations, const Tensor& weights, const Tensor& grad) {
  const Tensor v = torch::stable::contiguous(value), p = torch::stable::contiguous(locations),
               w = torch::stable::contiguous(weights), g = torch::stable::contiguous(grad);
  Tensor grad_value =
      torch::stable::new_empty(v, {sizes.batches, sizes.places, sizes.heads, sizes.channels}, v.scalar_type());
  Tensor grad_locations = torch::stable::empty_like(p), grad_weights = torch::stable::empty_like(w);
  const std::vector<T> zeros(sizes.channels);
  const Backward<T> b{sizes,
                      levels,
                      data<T>(v),
                      data<T>(p),
                      data<T>(w),
                      data<T>(g),
                      zeros.data(),
                      static_cast<T*>(grad_value.mutable_data_ptr()),
                      static_cast<T*>(grad_locations.mutable_data_ptr()),
                      static_cast<T*>(grad_weights.mutable_data_ptr())};
  const int64_t bytes = sizes.queries * sizes.per_head() * sizes.channels * 32;
  parallel_over(sizes.batches * sizes.heads, bytes, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) run(b, task);
  });
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace

Tensor forward(const Tensor& value, const Tensor& shapes, const Tensor& locations, const Tensor& weights) {
  const Sizes sizes = sizes_of(value, shapes, locations, weights);
  const Levels levels = levels_of(shapes, sizes);
  const auto run = is_double(value) ? forward_of<double> : forward_of<float>;
  return rounded(run(sizes, levels, widened(value), widened(locations), widened(weights)), value);
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& value, const Tensor& shapes, const Tensor& locations,
                                            const Tensor& weights, const Tensor& grad) {
  const Sizes sizes = sizes_of(value, shapes, locations, weights);
  check_grad(value, grad, sizes);
  const Levels levels = levels_of(shapes, sizes);
  const auto run = is_double(value) ? backward_of<double> : backward_of<float>;
  const auto [grad_value, grad_locations, grad_weights] =
      run(sizes, levels, widened(value), widened(locations), widened(weights), widened(grad));
  return {grad_value, rounded(grad_locations, locations), rounded(grad_weights, weights)};
}

}  // namespace s2d::ms_deform_attn

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def(
      "ms_deform_attn(Tensor value, Tensor spatial_shapes, Tensor sampling_locations, Tensor attention_weights) -> "
      "Tensor");
  // The gradient of value is float32 where value is in half precision: it is a sum over many queries.
  library.def(
      "ms_deform_attn_backward(Tensor value, Tensor spatial_shapes, Tensor sampling_locations, Tensor "
      "attention_weights, Tensor grad) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&s2d::ms_deform_attn::forward));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&s2d::ms_deform_attn::backward));
}
