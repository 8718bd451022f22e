// masked_attention on the CPU: schemas of the room, forward and backward.

#include "masked_attention.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <optional>
#include <tuple>

#include "../common/check.h"
#include "../common/parallel.h"

namespace s2d::masked_attention {
namespace {

constexpr const char* kOp = "masked_attention";

// Which keys each query attends to.
struct Attended {
  const Sizes& sizes;
  const uint64_t* words;
  std::vector<uint64_t> kept;
  std::vector<uint8_t> falls_back;

  Attended(const Sizes& s, const uint64_t* mask, const bool* frame_keep)
      : sizes(s), words(mask), kept(kept_keys(s, frame_keep)), falls_back(s.clips * s.queries) {
    for (int64_t row = 0; row < s.clips * s.queries; ++row) {
      const uint64_t* keep = kept.data() + row / s.queries * s.words();
      bool any = false;
      for (int64_t w = 0; w < s.words(); ++w) any |= (words[row * s.words() + w] & keep[w]) != 0;
      falls_back[row] = !any;
    }
  }

  bool operator()(int64_t clip, int64_t query, int64_t key) const {
    const int64_t word = key / kWordBits, row = clip * sizes.queries + query;
    const uint64_t keep = kept[clip * sizes.words() + word];
    return (falls_back[row] ? keep : keep & words[row * sizes.words() + word]) >> key % kWordBits & 1;
  }
};

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

Sizes sizes_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& words,
               const std::optional<Tensor>& frame_keep) {
  S2D_CHECK(q.dim() == 4 && k.dim() == 4 && q.size(0) == k.size(0) && q.size(1) == k.size(1) && q.size(3) == k.size(3),
            kOp, "q [B, heads, Q, D] and k [B, heads, K, D]", shape_of(q) + " and " + shape_of(k));
  S2D_CHECK(v.dim() == 4 && product_of(v, 0, 4) == product_of(k, 0, 4) && v.size(2) == k.size(2), kOp, "v as k",
            shape_of(v));
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

Attended attended_of(const Sizes& sizes, const Tensor& words, const std::optional<Tensor>& keep) {
  return Attended(sizes, data<uint64_t>(words), keep ? data<bool>(*keep) : nullptr);
}

template <typename T>
std::tuple<Tensor, Tensor> forward_of(const Sizes& s, const Tensor& q, const Tensor& k, const Tensor& v,
                                      const Attended& attended) {
  Tensor out = torch::stable::new_empty(q, {s.clips, s.heads, s.queries, s.channels}, q.scalar_type());
  Tensor logsumexp = torch::stable::new_empty(q, {s.clips, s.heads, s.queries}, q.scalar_type());
  const T *qs = data<T>(q), *ks = data<T>(k), *vs = data<T>(v);
  T *outs = static_cast<T*>(out.mutable_data_ptr()), *sums = static_cast<T*>(logsumexp.mutable_data_ptr());
  const T scale = T(1) / std::sqrt(static_cast<T>(s.channels));
  parallel_over(s.clips * s.heads * s.queries, s.keys * s.channels * 8, [&](int64_t begin, int64_t end) {
    std::vector<T> scores(s.keys);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t head = row / s.queries, clip = head / s.heads, query = row % s.queries;
      T most = -std::numeric_limits<T>::infinity(), sum = 0;
      for (int64_t key = 0; key < s.keys; ++key) {
        if (!attended(clip, query, key)) continue;
        T score = 0;
        for (int64_t d = 0; d < s.channels; ++d) {
          score += qs[row * s.channels + d] * ks[(head * s.keys + key) * s.channels + d];
        }
        scores[key] = score * scale;
        most = std::max(most, scores[key]);
      }
      T* o = outs + row * s.channels;
      std::fill(o, o + s.channels, T(0));
      bool any = false;
      for (int64_t key = 0; key < s.keys; ++key) {
        if (!attended(clip, query, key)) continue;
        const T p = std::exp(scores[key] - most);
        sum += p;
        any = true;
        for (int64_t d = 0; d < s.channels; ++d) o[d] += p * vs[(head * s.keys + key) * s.channels + d];
      }
      if (any) {
        for (int64_t d = 0; d < s.channels; ++d) o[d] /= sum;
      }
      sums[row] = any ? most + std::log(sum) : -std::numeric_limits<T>::infinity();
    }
  });
  return {out, logsumexp};
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> backward_of(const Sizes& s, const Tensor& grad, const Tensor& q, const Tensor& k,
                                               const Tensor& v, const Attended& attended, const Tensor& out,
                                               const Tensor& logsumexp) {
  Tensor grad_q = torch::stable::new_zeros(q, {s.clips, s.heads, s.queries, s.channels}, q.scalar_type());
  Tensor grad_k = torch::stable::new_zeros(q, {s.clips, s.heads, s.keys, s.channels}, q.scalar_type());
  Tensor grad_v = torch::stable::new_zeros(q, {s.clips, s.heads, s.keys, s.channels}, q.scalar_type());
  const T *gs = data<T>(grad), *qs = data<T>(q), *ks = data<T>(k), *vs = data<T>(v), *outs = data<T>(out),
          *sums = data<T>(logsumexp);
  T *gq = static_cast<T*>(grad_q.mutable_data_ptr()), *gk = static_cast<T*>(grad_k.mutable_data_ptr()),
    *gv = static_cast<T*>(grad_v.mutable_data_ptr());
  const T scale = T(1) / std::sqrt(static_cast<T>(s.channels));
  parallel_over(s.clips * s.heads, s.queries * s.keys * s.channels * 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * s.queries; row < end * s.queries; ++row) {
      const int64_t head = row / s.queries, clip = head / s.heads, query = row % s.queries;
      T delta = 0;
      for (int64_t d = 0; d < s.channels; ++d) delta += gs[row * s.channels + d] * outs[row * s.channels + d];
      for (int64_t key = 0; key < s.keys; ++key) {
        if (!attended(clip, query, key)) continue;
        const int64_t at = (head * s.keys + key) * s.channels;
        T score = 0, slope = 0;
        for (int64_t d = 0; d < s.channels; ++d) {
          score += qs[row * s.channels + d] * ks[at + d];
          slope += gs[row * s.channels + d] * vs[at + d];
        }
        const T p = std::exp(score * scale - sums[row]), ds = p * (slope - delta) * scale;
        for (int64_t d = 0; d < s.channels; ++d) {
          gv[at + d] += p * gs[row * s.channels + d];
          gk[at + d] += ds * qs[row * s.channels + d];
          gq[row * s.channels + d] += ds * ks[at + d];
        }
      }
    }
  });
  return {grad_q, grad_k, grad_v};
}

ScalarType wide(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  const bool known = type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
                     type == ScalarType::BFloat16;
  S2D_CHECK(known, kOp, "float16, bfloat16, float32 or float64", "another dtype");
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor widen(const Tensor& x) { return torch::stable::contiguous(torch::stable::to(x, wide(x))); }

}  // namespace

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& words,
                                   const std::optional<Tensor>& frame_keep) {
  const Sizes sizes = sizes_of(q, k, v, words, frame_keep);
  const Tensor bits = torch::stable::contiguous(words);
  std::optional<Tensor> keep;
  if (frame_keep) keep = torch::stable::contiguous(*frame_keep);
  const Attended attended = attended_of(sizes, bits, keep);
  auto [out, logsumexp] = wide(q) == ScalarType::Double
                              ? forward_of<double>(sizes, widen(q), widen(k), widen(v), attended)
                              : forward_of<float>(sizes, widen(q), widen(k), widen(v), attended);
  return {torch::stable::to(out, q.scalar_type()), logsumexp};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                                            const Tensor& words, const std::optional<Tensor>& frame_keep,
                                            const Tensor& out, const Tensor& logsumexp) {
  const Sizes sizes = sizes_of(q, k, v, words, frame_keep);
  const Tensor bits = torch::stable::contiguous(words);
  std::optional<Tensor> keep;
  if (frame_keep) keep = torch::stable::contiguous(*frame_keep);
  const Attended attended = attended_of(sizes, bits, keep);
  auto [gq, gk, gv] = wide(q) == ScalarType::Double
                          ? backward_of<double>(sizes, widen(grad), widen(q), widen(k), widen(v), attended, widen(out),
                                                widen(logsumexp))
                          : backward_of<float>(sizes, widen(grad), widen(q), widen(k), widen(v), attended, widen(out),
                                               widen(logsumexp));
  const ScalarType type = q.scalar_type();
  return {torch::stable::to(gq, type), torch::stable::to(gk, type), torch::stable::to(gv, type)};
}

}  // namespace s2d::masked_attention

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
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
