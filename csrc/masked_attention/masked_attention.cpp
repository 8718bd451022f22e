// masked_attention on the CPU: schemas of the room, forward and backward.
//
// A task owns 2048 keys of one head. It lays 64 of them at a time into the first-level cache, turned so that a register
// holds one channel of many keys, and then takes the queries one after another: a block of a register's keys in which a
// query attends to none is skipped; of the others the scores cost a multiplication a channel. What follows costs per
// attended key: a row of values added to the query's sum (online softmax), in backward the key's own gradients, which
// no other task writes. Each task leaves a softmax, or gradients of queries, over its own keys; these are combined in
// the order of the keys, so the number of threads changes no digit. Keys and values are read once, B h Q D / 2048
// values a key are written in between; scores exist for 64 keys of one query at a time. The hard part is that a key
// that is not attended may hold NaN: its scores are selected away before the maximum, and its row is never touched.

#include "masked_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>

#include "../common/parallel.h"
#include "keys.h"

namespace s2d::masked_attention {
namespace {

constexpr const char* kOp = "masked_attention";
constexpr int64_t kSplit = 2048;  // keys of a task
constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// Rows [B, heads, Q] that each task leaves behind, `pitch` values long (D and zeros to a full register).
template <typename T>
struct Partial {
  int64_t splits, pitch;
  T *row, *most, *sum;  // `most` and `sum` of the softmax are of the forward pass alone

  // Of row [B, heads, Q] after a split.
  int64_t at(const Sizes& s, int64_t row, int64_t split) const {
    const int64_t query = row % s.queries, head = row / s.queries % s.heads, clip = row / s.queries / s.heads;
    return ((clip * splits + split) * s.heads + head) * s.queries + query;
  }
};

template <typename T>
struct Forward {
  Sizes sizes;
  const Attended& attended;
  Rows<T> q, k, v;
  Partial<T> partial;
};

template <typename T>
struct Backward {
  Sizes sizes;
  const Attended& attended;
  Rows<T> q, k, v, grad;
  const T *logsumexp, *delta;  // [B, heads, Q]; delta is the product of a row's result and its gradient
  Partial<T> partial;
  T *grad_k, *grad_v;  // [B, heads, K, D]
};

// What a task is of. Heads follow each other: their rows share pages of memory.
struct Place {
  int64_t clip, head, first_word, last_word, row;  // `row` is its first in the partial results

  Place(const Sizes& s, int64_t splits, int64_t task)
      : clip(task / s.heads / splits),
        head(task % s.heads),
        first_word(task / s.heads % splits * (kSplit / kWordBits)),
        last_word(std::min(first_word + kSplit / kWordBits, s.words())),
        row(task * s.queries) {}
};

// Queries scaled so that scores are exponents of 2.
template <typename T>
S2D_LOOP void scale_queries(const Rows<T>& q, const Place& at, const Sizes& s, int64_t pitch, T* scaled) {
  const T scale = static_cast<T>(kLog2E / std::sqrt(static_cast<double>(s.channels)));
  for (int64_t query = 0; query < s.queries; ++query) {
    const T* row = q.at(at.clip, at.head, query);
    for (int64_t d = 0; d < s.channels; ++d) scaled[query * pitch + d] = row[d] * scale;
  }
}

// out += the sum of weight[key] * rows[key] over the set bits, kVectors registers of a row.
template <int kLanes, int kVectors, typename T>
S2D_LOOP void add_rows(const T* weight, const T* rows, uint64_t bits, int64_t pitch, T* out) {
  Lanes<T, kLanes> sum[kVectors], second[kVectors] = {};
  for (int v = 0; v < kVectors; ++v) sum[v] = load<kLanes>(out + v * kLanes);
  while (bits) {
    const int key = lowest_bit(bits);
    bits &= bits - 1;
    for (int v = 0; v < kVectors; ++v) sum[v] += weight[key] * load<kLanes>(rows + key * pitch + v * kLanes);
    if (!bits) break;
    const int next = lowest_bit(bits);
    bits &= bits - 1;
    for (int v = 0; v < kVectors; ++v) second[v] += weight[next] * load<kLanes>(rows + next * pitch + v * kLanes);
  }
  for (int v = 0; v < kVectors; ++v) store<kLanes>(out + v * kLanes, sum[v] + second[v]);
}

template <int kLanes, typename T>
S2D_LOOP void add_all(const T* weight, const T* rows, uint64_t bits, int64_t pitch, T* out) {
  int64_t d = 0;
  for (; d + 4 * kLanes <= pitch; d += 4 * kLanes) add_rows<kLanes, 4>(weight, rows + d, bits, pitch, out + d);
  if (pitch & 2 * kLanes) {
    add_rows<kLanes, 2>(weight, rows + d, bits, pitch, out + d);
    d += 2 * kLanes;
  }
  if (pitch & kLanes) add_rows<kLanes, 1>(weight, rows + d, bits, pitch, out + d);
}

template <int kLanes, typename T>
S2D_LOOP void attend(const Forward<T>& f, int64_t task) {
  const Sizes& s = f.sizes;
  const int64_t pitch = f.partial.pitch;
  const Place at(s, f.partial.splits, task);
  T *row = f.partial.row + at.row * pitch, *most = f.partial.most + at.row, *sum = f.partial.sum + at.row;
  constexpr T kNone = -std::numeric_limits<T>::infinity();
  std::fill(row, row + s.queries * pitch, T(0));
  std::fill(most, most + s.queries, kNone);
  Scratch<T> scaled(s.queries * pitch), sums(s.queries * kLanes), keys(kWordBits * pitch), values(kWordBits * pitch),
      turned(kWordBits * pitch), weight(kWordBits);
  scale_queries(f.q, at, s, pitch, scaled.data());
  for (int64_t word = at.first_word; word < at.last_word; ++word) {
    if (!f.attended.kept(at.clip, word)) continue;
    const int64_t first = word * kWordBits, count = std::min(kWordBits, s.keys - first);
    copy_rows<kLanes>(f.k, at.clip, at.head, first, count, s.channels, pitch, keys.data());
    copy_rows<kLanes>(f.v, at.clip, at.head, first, count, s.channels, pitch, values.data());
    turn_rows<kLanes>(keys.data(), count, s.channels, pitch, turned.data());
    for (int64_t query = 0; query < s.queries; ++query) {
      prefetch_share(f.k, at.clip, at.head, first + kWordBits, s.keys, s.channels, query, s.queries);
      prefetch_share(f.v, at.clip, at.head, first + kWordBits, s.keys, s.channels, query, s.queries);
      const uint64_t bits = f.attended.of(at.clip, query, word);
      if (!bits) continue;
      int block[kBlocks<kLanes> + 1];
      Lanes<T, kLanes> score[kBlocks<kLanes>];
      const int blocks = blocks_of<kLanes>(bits, block);
      multiply_blocks<kLanes>(scaled.data() + query * pitch, turned.data(), block, blocks, s.channels, score);
      Lanes<T, kLanes> high = Lanes<T, kLanes>{} + kNone;
      for (int b = 0; b < blocks; ++b) {
        score[b] = select<kLanes>(bits, block[b], score[b], kNone);
        high = score[b] > high ? score[b] : high;
      }
      T* out = row + query * pitch;
      Lanes<T, kLanes> total = load<kLanes>(sums.data() + query * kLanes);
      if (const T top = largest<kLanes, T>(high); top > most[query]) {
        const Lanes<T, kLanes> shrink = power_of_two<kLanes>(Lanes<T, kLanes>{} + (most[query] - top));
        for (int64_t d = 0; d < pitch; d += kLanes) store<kLanes>(out + d, load<kLanes>(out + d) * shrink);
        total *= shrink;
        most[query] = top;
      }
      const T base = most[query] == kNone ? 0 : most[query];
      for (int b = 0; b < blocks; ++b) {
        const Lanes<T, kLanes> share = power_of_two<kLanes>(score[b] - base);
        total += share;
        store<kLanes>(weight.data() + block[b] * kLanes, share);
      }
      store<kLanes>(sums.data() + query * kLanes, total);
      add_all<kLanes>(weight.data(), values.data(), bits, pitch, out);
    }
  }
  for (int64_t query = 0; query < s.queries; ++query) {
    sum[query] = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum[query] += sums.data()[query * kLanes + lane];
  }
}

// What a query and the keys it attends to give each other's gradients, kVectors registers of a row.
template <int kLanes, int kVectors, typename T>
S2D_LOOP void exchange(const T* weight, const T* slope, uint64_t bits, int64_t pitch, const T* query, const T* grad,
                       const T* keys, T* grad_keys, T* grad_values, T* grad_query) {
  Lanes<T, kLanes> q[kVectors], g[kVectors], sum[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    q[v] = load<kLanes>(query + v * kLanes);
    g[v] = load<kLanes>(grad + v * kLanes);
    sum[v] = load<kLanes>(grad_query + v * kLanes);
  }
  for (; bits; bits &= bits - 1) {
    const int key = lowest_bit(bits);
    for (int v = 0; v < kVectors; ++v) {
      const int64_t place = key * pitch + v * kLanes;
      store<kLanes>(grad_values + place, load<kLanes>(grad_values + place) + weight[key] * g[v]);
      store<kLanes>(grad_keys + place, load<kLanes>(grad_keys + place) + slope[key] * q[v]);
      sum[v] += slope[key] * load<kLanes>(keys + place);
    }
  }
  for (int v = 0; v < kVectors; ++v) store<kLanes>(grad_query + v * kLanes, sum[v]);
}

template <int kLanes, typename T>
S2D_LOOP void exchange_all(const T* weight, const T* slope, uint64_t bits, int64_t pitch, const T* query, const T* grad,
                           const T* keys, T* grad_keys, T* grad_values, T* grad_query) {
  int64_t d = 0;
  for (; d + 2 * kLanes <= pitch; d += 2 * kLanes) {
    exchange<kLanes, 2>(weight, slope, bits, pitch, query + d, grad + d, keys + d, grad_keys + d, grad_values + d,
                        grad_query + d);
  }
  if (d < pitch) {
    exchange<kLanes, 1>(weight, slope, bits, pitch, query + d, grad + d, keys + d, grad_keys + d, grad_values + d,
                        grad_query + d);
  }
}

template <int kLanes, typename T>
S2D_LOOP void attend_backward(const Backward<T>& b, int64_t task) {
  const Sizes& s = b.sizes;
  const int64_t pitch = b.partial.pitch, size = kWordBits * pitch;
  const Place at(s, b.partial.splits, task);
  T* row = b.partial.row + at.row * pitch;
  std::fill(row, row + s.queries * pitch, T(0));
  Scratch<T> scaled(s.queries * pitch), grads(s.queries * pitch), keys(size), values(size), turned_keys(size),
      turned_values(size), grad_keys(size), grad_values(size), weight(kWordBits), slope(kWordBits);
  scale_queries(b.q, at, s, pitch, scaled.data());
  copy_rows<kLanes>(b.grad, at.clip, at.head, 0, s.queries, s.channels, pitch, grads.data());
  const int64_t head = at.clip * s.heads + at.head;
  for (int64_t word = at.first_word; word < at.last_word; ++word) {
    const int64_t first = word * kWordBits, count = std::min(kWordBits, s.keys - first);
    std::fill(grad_keys.data(), grad_keys.data() + size, T(0));
    std::fill(grad_values.data(), grad_values.data() + size, T(0));
    if (b.attended.kept(at.clip, word)) {
      copy_rows<kLanes>(b.k, at.clip, at.head, first, count, s.channels, pitch, keys.data());
      copy_rows<kLanes>(b.v, at.clip, at.head, first, count, s.channels, pitch, values.data());
      turn_rows<kLanes>(keys.data(), count, s.channels, pitch, turned_keys.data());
      turn_rows<kLanes>(values.data(), count, s.channels, pitch, turned_values.data());
      for (int64_t query = 0; query < s.queries; ++query) {
        prefetch_share(b.k, at.clip, at.head, first + kWordBits, s.keys, s.channels, query, s.queries);
        prefetch_share(b.v, at.clip, at.head, first + kWordBits, s.keys, s.channels, query, s.queries);
        const uint64_t bits = b.attended.of(at.clip, query, word);
        if (!bits) continue;
        int block[kBlocks<kLanes> + 1];
        Lanes<T, kLanes> score[kBlocks<kLanes>], through[kBlocks<kLanes>];
        const int blocks = blocks_of<kLanes>(bits, block);
        const T *q = scaled.data() + query * pitch, *g = grads.data() + query * pitch;
        multiply_blocks<kLanes>(q, turned_keys.data(), block, blocks, s.channels, score);
        multiply_blocks<kLanes>(g, turned_values.data(), block, blocks, s.channels, through);
        const T base = b.logsumexp[head * s.queries + query] * static_cast<T>(kLog2E);
        const T delta = b.delta[head * s.queries + query];
        for (int n = 0; n < blocks; ++n) {
          const Lanes<T, kLanes> share = power_of_two<kLanes>(score[n] - base);
          store<kLanes>(weight.data() + block[n] * kLanes, share);
          store<kLanes>(slope.data() + block[n] * kLanes, share * (through[n] - delta));
        }
        exchange_all<kLanes>(weight.data(), slope.data(), bits, pitch, q, g, keys.data(), grad_keys.data(),
                             grad_values.data(), row + query * pitch);
      }
    }
    for (int64_t key = 0; key < count; ++key) {
      const int64_t to = (head * s.keys + first + key) * s.channels;
      for (int64_t d = 0; d < s.channels; ++d) {
        b.grad_k[to + d] = grad_keys.data()[key * pitch + d] * static_cast<T>(kLn2);
        b.grad_v[to + d] = grad_values.data()[key * pitch + d];
      }
    }
  }
}

void attend_baseline(const Forward<float>& f, int64_t task) { attend<4>(f, task); }
void attend_double(const Forward<double>& f, int64_t task) { attend<2>(f, task); }
void backward_baseline(const Backward<float>& b, int64_t task) { attend_backward<4>(b, task); }
void backward_double(const Backward<double>& b, int64_t task) { attend_backward<2>(b, task); }
#if defined(S2D_X86)
S2D_TARGET_AVX2 void attend_avx2(const Forward<float>& f, int64_t task) { attend<8>(f, task); }
S2D_TARGET_AVX512 void attend_avx512(const Forward<float>& f, int64_t task) { attend<16>(f, task); }
S2D_TARGET_AVX2 void backward_avx2(const Backward<float>& b, int64_t task) { attend_backward<8>(b, task); }
S2D_TARGET_AVX512 void backward_avx512(const Backward<float>& b, int64_t task) { attend_backward<16>(b, task); }
#endif

template <typename T>
struct Kernels {
  int64_t lanes;
  void (*forward)(const Forward<T>&, int64_t);
  void (*backward)(const Backward<T>&, int64_t);
};

template <typename T>
Kernels<T> kernels() {
  if constexpr (std::is_same_v<T, double>) {
    return {2, attend_double, backward_double};
  } else {
#if defined(S2D_X86)
    if (isa() == Isa::avx512) return {16, attend_avx512, backward_avx512};
    if (isa() == Isa::avx2) return {8, attend_avx2, backward_avx2};
#endif
    return {4, attend_baseline, backward_baseline};
  }
}

template <typename T>
T* out_of(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

Sizes sizes_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& words,
               const std::optional<Tensor>& frame_keep) {
  check_floating(q, kOp, "q");
  S2D_CHECK(q.dim() == 4 && k.dim() == 4 && q.size(0) == k.size(0) && q.size(1) == k.size(1) && q.size(3) == k.size(3),
            kOp, "q [B, heads, Q, D] and k [B, heads, K, D]", shape_of(q) + " and " + shape_of(k));
  S2D_CHECK(v.dim() == 4 && v.size(0) == k.size(0) && v.size(1) == k.size(1) && v.size(2) == k.size(2) &&
                v.size(3) == k.size(3),
            kOp, "v of the shape of k", shape_of(v));
  S2D_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(), kOp, "q, k, v of one dtype",
            "different ones");
  Sizes sizes{q.size(0), q.size(1), q.size(2), k.size(2), q.size(3), 1};
  S2D_CHECK(words.scalar_type() == ScalarType::Long && words.dim() == 3 && words.size(0) == sizes.clips &&
                words.size(1) == sizes.queries && words.size(2) == sizes.words(),
            kOp, "words int64 [B, Q, ceil(K/64)]", shape_of(words));
  if (frame_keep) {
    sizes.frames = frame_keep->dim() == 2 ? frame_keep->size(1) : 0;
    S2D_CHECK(frame_keep->scalar_type() == ScalarType::Bool && sizes.frames > 0 && frame_keep->size(0) == sizes.clips &&
                  sizes.keys % sizes.frames == 0,
              kOp, "frame_keep bool [B, T] with T that divides K", shape_of(*frame_keep));
  }
  return sizes;
}

// The words and kept frames, and what is read from them.
struct Mask {
  Tensor words;
  std::optional<Tensor> keep;
  Attended attended;

  Mask(const Sizes& sizes, const Tensor& given, const std::optional<Tensor>& frame_keep)
      : words(torch::stable::contiguous(given)),
        keep(frame_keep ? std::optional(torch::stable::contiguous(*frame_keep)) : std::nullopt),
        attended(sizes, static_cast<const uint64_t*>(words.const_data_ptr()),
                 keep ? static_cast<const bool*>(keep->const_data_ptr()) : nullptr) {}
};

// In the type of the computation, with D contiguous.
Tensor in_rows(const Tensor& x) {
  const Tensor held = widened(x);
  return held.stride(3) == 1 || held.size(3) == 1 ? held : torch::stable::contiguous(held);
}

template <typename T>
Rows<T> rows_of(const Tensor& x) {
  return {static_cast<const T*>(x.const_data_ptr()), x.stride(0), x.stride(1), x.stride(2)};
}

template <typename T>
Partial<T> partial_of(const Sizes& s, int64_t lanes) {
  return {std::max<int64_t>(1, (s.keys + kSplit - 1) / kSplit), (s.channels + lanes - 1) / lanes * lanes, nullptr,
          nullptr, nullptr};
}

int64_t task_bytes(const Sizes& s) { return s.queries * std::min(s.keys, kSplit) * s.channels; }

// The softmaxes of all splits become one.
template <typename T>
void combine(const Forward<T>& f, T* out, T* logsumexp) {
  const Sizes& s = f.sizes;
  const Partial<T>& p = f.partial;
  parallel_over(s.clips * s.heads * s.queries, p.splits * p.pitch * 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* to = out + row * s.channels;
      std::fill(to, to + s.channels, T(0));
      logsumexp[row] = -std::numeric_limits<T>::infinity();
      if (!f.attended.any_kept(row / s.queries / s.heads)) continue;
      T most = -std::numeric_limits<T>::infinity(), sum = 0;
      for (int64_t split = 0; split < p.splits; ++split) most = std::max(most, p.most[p.at(s, row, split)]);
      for (int64_t split = 0; split < p.splits; ++split) {
        const int64_t at = p.at(s, row, split);
        // Equal where both are infinite.
        const T share = p.most[at] == most ? T(1) : std::exp2(p.most[at] - most);
        sum += share * p.sum[at];
        for (int64_t d = 0; d < s.channels; ++d) to[d] += share * p.row[at * p.pitch + d];
      }
      for (int64_t d = 0; d < s.channels; ++d) to[d] /= sum;
      logsumexp[row] = most * static_cast<T>(kLn2) + std::log(sum);
    }
  });
}

template <typename T>
std::tuple<Tensor, Tensor> forward_of(const Sizes& s, const Tensor& q, const Tensor& k, const Tensor& v,
                                      const Mask& mask) {
  const Kernels<T> kernel = kernels<T>();
  Forward<T> f{s, mask.attended, rows_of<T>(q), rows_of<T>(k), rows_of<T>(v), partial_of<T>(s, kernel.lanes)};
  const int64_t tasks = s.clips * s.heads * f.partial.splits;
  const ScalarType type = q.scalar_type();
  Tensor rows = torch::stable::new_empty(q, {tasks, s.queries, f.partial.pitch}, type);
  Tensor state = torch::stable::new_empty(q, {2, tasks, s.queries}, type);
  f.partial.row = out_of<T>(rows);
  f.partial.most = out_of<T>(state);
  f.partial.sum = f.partial.most + tasks * s.queries;
  parallel_over(tasks, task_bytes(s), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) kernel.forward(f, task);
  });
  Tensor out = torch::stable::new_empty(q, {s.clips, s.heads, s.queries, s.channels}, type);
  Tensor logsumexp = torch::stable::new_empty(q, {s.clips, s.heads, s.queries}, type);
  combine(f, out_of<T>(out), out_of<T>(logsumexp));
  return {out, logsumexp};
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> backward_of(const Sizes& s, const Tensor& grad, const Tensor& q, const Tensor& k,
                                               const Tensor& v, const Mask& mask, const Tensor& out,
                                               const Tensor& logsumexp) {
  const Kernels<T> kernel = kernels<T>();
  const ScalarType type = q.scalar_type();
  const int64_t rows = s.clips * s.heads * s.queries;
  Tensor delta = torch::stable::new_empty(q, {rows}, type);
  Tensor grad_q = torch::stable::new_empty(q, {s.clips, s.heads, s.queries, s.channels}, type);
  Tensor grad_k = torch::stable::new_empty(q, {s.clips, s.heads, s.keys, s.channels}, type);
  Tensor grad_v = torch::stable::new_empty(q, {s.clips, s.heads, s.keys, s.channels}, type);
  Backward<T> b{s,
                mask.attended,
                rows_of<T>(q),
                rows_of<T>(k),
                rows_of<T>(v),
                rows_of<T>(grad),
                static_cast<const T*>(logsumexp.const_data_ptr()),
                out_of<T>(delta),
                partial_of<T>(s, kernel.lanes),
                out_of<T>(grad_k),
                out_of<T>(grad_v)};
  const Partial<T>& p = b.partial;
  const int64_t tasks = s.clips * s.heads * p.splits;
  Tensor partial = torch::stable::new_empty(q, {tasks, s.queries, p.pitch}, type);
  b.partial.row = out_of<T>(partial);
  const Rows<T> result = rows_of<T>(out);
  T *deltas = out_of<T>(delta), *to = out_of<T>(grad_q);
  const auto place = [&](int64_t row) {
    return std::tuple(row / s.queries / s.heads, row / s.queries % s.heads, row % s.queries);
  };
  parallel_over(rows, s.channels * 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const auto [clip, head, query] = place(row);
      const T *a = result.at(clip, head, query), *g = b.grad.at(clip, head, query);
      deltas[row] = 0;
      for (int64_t d = 0; d < s.channels; ++d) deltas[row] += a[d] * g[d];
    }
  });
  parallel_over(tasks, task_bytes(s), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) kernel.backward(b, task);
  });
  const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(s.channels)));
  parallel_over(rows, p.splits * p.pitch * 4, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t d = 0; d < s.channels; ++d) {
        T sum = 0;
        for (int64_t split = 0; split < p.splits; ++split) {
          sum += p.row[p.at(s, row, split) * p.pitch + d];
        }
        to[row * s.channels + d] = sum * scale;
      }
    }
  });
  return {grad_q, grad_k, grad_v};
}

}  // namespace

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& words,
                                   const std::optional<Tensor>& frame_keep) {
  const Sizes sizes = sizes_of(q, k, v, words, frame_keep);
  const Mask mask(sizes, words, frame_keep);
  const auto run = is_double(q) ? forward_of<double> : forward_of<float>;
  const auto [out, logsumexp] = run(sizes, in_rows(q), in_rows(k), in_rows(v), mask);
  return {rounded(out, q), logsumexp};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                                            const Tensor& words, const std::optional<Tensor>& frame_keep,
                                            const Tensor& out, const Tensor& logsumexp) {
  const Sizes sizes = sizes_of(q, k, v, words, frame_keep);
  for (const Tensor* rows : {&grad, &out}) {
    S2D_CHECK(rows->dim() == 4 && rows->scalar_type() == q.scalar_type() && rows->size(0) == sizes.clips &&
                  rows->size(1) == sizes.heads && rows->size(2) == sizes.queries && rows->size(3) == sizes.channels,
              kOp, "grad and out like q", shape_of(*rows));
  }
  S2D_CHECK(logsumexp.scalar_type() == wide(q) && logsumexp.dim() == 3 && logsumexp.size(0) == sizes.clips &&
                logsumexp.size(1) == sizes.heads && logsumexp.size(2) == sizes.queries,
            kOp, "logsumexp [B, heads, Q]", shape_of(logsumexp));
  const Mask mask(sizes, words, frame_keep);
  const auto run = is_double(q) ? backward_of<double> : backward_of<float>;
  const auto [grad_q, grad_k, grad_v] = run(sizes, in_rows(grad), in_rows(q), in_rows(k), in_rows(v), mask,
                                            in_rows(out), torch::stable::contiguous(logsumexp));
  return {rounded(grad_q, q), rounded(grad_k, k), rounded(grad_v, v)};
}

}  // namespace s2d::masked_attention

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def("attention_mask(Tensor mask_logits, SymInt height, SymInt width) -> Tensor");
  library.def("attention_mask_from_features(Tensor embed, Tensor features) -> Tensor");
  library.def(
      "masked_attention(Tensor q, Tensor k, Tensor v, Tensor words, Tensor? frame_keep) -> (Tensor out, Tensor "
      "logsumexp)");
  library.def(
      "masked_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor words, Tensor? frame_keep, Tensor "
      "out, Tensor logsumexp) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("masked_attention", TORCH_BOX(&s2d::masked_attention::forward));
  library.impl("masked_attention_backward", TORCH_BOX(&s2d::masked_attention::backward));
}
