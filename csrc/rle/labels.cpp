// rle on the CPU: label maps, parallel over frames.

#include "labels.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../common/check.h"
#include "../common/parallel.h"

namespace s2d::rle {
namespace {

template <typename Label>
std::vector<LabelRuns> encode_frames(const Tensor& labels, const int64_t* background) {
  const int64_t frames = labels.size(0), height = labels.size(1), width = labels.size(2);
  const auto* in = static_cast<const Label*>(labels.const_data_ptr());
  std::vector<LabelRuns> parts(frames);
  parallel_over(frames, height * width * static_cast<int64_t>(sizeof(Label)), [&](int64_t begin, int64_t end) {
    LabelEncoder<Label> encoder(height, width);
    for (int64_t t = begin; t < end; ++t) encoder.encode(in + t * height * width, t, background, parts[begin]);
  });
  return parts;
}

std::vector<LabelRuns> encode_frames(const Tensor& labels, const int64_t* background) {
  switch (labels.scalar_type()) {
    case ScalarType::Byte:
      return encode_frames<uint8_t>(labels, background);
    case ScalarType::Char:
      return encode_frames<int8_t>(labels, background);
    case ScalarType::UInt16:
      return encode_frames<uint16_t>(labels, background);
    case ScalarType::Short:
      return encode_frames<int16_t>(labels, background);
    case ScalarType::Int:
      return encode_frames<int32_t>(labels, background);
    default:
      return encode_frames<int64_t>(labels, background);
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> rle_from_labels(const Tensor& labels, std::optional<int64_t> background) {
  constexpr ScalarType kinds[] = {ScalarType::Byte,  ScalarType::Char, ScalarType::UInt16,
                                  ScalarType::Short, ScalarType::Int,  ScalarType::Long};
  S2D_CHECK(labels.dim() == 3 && std::find(std::begin(kinds), std::end(kinds), labels.scalar_type()) != std::end(kinds),
            "rle_from_labels", "labels of integers [T, H, W]", shape_of(labels));
  S2D_CHECK(labels.size(1) * labels.size(2) <= kMaxPixels, "rle_from_labels", "frames of at most 2^31 - 1 pixels",
            shape_of(labels));
  const Tensor source = torch::stable::contiguous(labels);
  const std::vector<LabelRuns> parts = encode_frames(source, background ? &*background : nullptr);
  int64_t runs = 0, number = 0;
  for (const LabelRuns& part : parts) {
    runs += static_cast<int64_t>(part.counts.size());
    number += static_cast<int64_t>(part.values.size());
  }
  Tensor counts = torch::stable::new_empty(source, {runs}, ScalarType::Int);
  Tensor offsets = torch::stable::new_empty(source, {number + 1}, ScalarType::Long);
  Tensor which = torch::stable::new_empty(source, {number, 2}, ScalarType::Long);
  auto* out = static_cast<int32_t*>(counts.mutable_data_ptr());
  auto* bound = static_cast<int64_t*>(offsets.mutable_data_ptr());
  auto* owner = static_cast<int64_t*>(which.mutable_data_ptr());
  *bound = 0;
  for (const LabelRuns& part : parts) {
    out = std::copy(part.counts.begin(), part.counts.end(), out);
    for (size_t n = 0; n < part.values.size(); ++n, ++bound) {
      bound[1] = bound[0] + part.lengths[n];
      *owner++ = part.frames[n];
      *owner++ = part.values[n];
    }
  }
  return {counts, offsets, which};
}

}  // namespace s2d::rle

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def("rle_from_labels(Tensor labels, int? background) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) { library.impl("rle_from_labels", TORCH_BOX(&s2d::rle::rle_from_labels)); }
