// rle on the CPU: schemas of the room; runs from and to bits, areas and boxes, parallel over masks.

#include "rle.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "../common/pages.h"
#include "codes.h"
#include "decoder.h"
#include "encoder.h"

namespace s2d::rle {

std::tuple<Tensor, Tensor> rle_encode(const Tensor& masks, int64_t width) {
  const bool packed = masks.scalar_type() == ScalarType::Long;
  S2D_CHECK((packed || masks.scalar_type() == ScalarType::Byte) && masks.dim() == 3 &&
                masks.size(2) == (packed ? words_for(width) : width),
            "rle_encode", "masks int64 [N, H, ceil(W/64)] or uint8 [N, H, W]", shape_of(masks));
  const Tensor source = torch::stable::contiguous(masks);
  const int64_t number = source.size(0), height = source.size(1), stride = source.size(2);
  S2D_CHECK(height * width <= kMaxPixels, "rle_encode", "a mask of at most 2^31 - 1 pixels", height * width);
  const auto make_encoder = [&] { return Encoder(height, width); };
  if (packed) {
    const auto* words = static_cast<const uint64_t*>(source.const_data_ptr());
    return make_codes(
        source, number, height * stride * 8, make_encoder,
        [&](Encoder& encoder, int64_t n, auto& counts) { encoder.encode(words + n * height * stride, counts); });
  }
  const auto* pixels = static_cast<const uint8_t*>(source.const_data_ptr());
  return make_codes(source, number, height * width, make_encoder, [&](Encoder& encoder, int64_t n, auto& counts) {
    encoder.encode(pixels + n * height * width, counts);
  });
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
  prefer_large_pages(out, codes.number * height * stride * 8);
  parallel_over(codes.number, height * stride * 8, [&](int64_t begin, int64_t end) {
    Decoder decoder(height);
    for (int64_t n = begin; n < end; ++n) {
      uint64_t* words = out + n * height * stride;
      std::fill_n(words, height * stride, 0);
      decoder.decode(codes.runs(n), codes.number_of_runs(n), width,
                     [&](int64_t strip, int64_t block, const uint64_t* rows) {
                       const int64_t number = std::min<int64_t>(64, height - block * 64);
                       for (int64_t y = 0; y < number; ++y) words[(block * 64 + y) * stride + strip] = rows[y];
                     });
    }
  });
  return result;
}

Tensor rle_area(const Tensor& counts, const Tensor& offsets, const Tensor& sizes) {
  const Codes codes(counts, offsets, sizes, "rle_area");
  Tensor result = torch::stable::new_empty(counts, {codes.number}, ScalarType::Long);
  auto* out = static_cast<int64_t*>(result.mutable_data_ptr());
  parallel_over(codes.number, codes.mean_bytes(), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) out[n] = area_of(codes.runs(n), codes.number_of_runs(n));
  });
  return result;
}

Tensor rle_bbox(const Tensor& counts, const Tensor& offsets, const Tensor& sizes) {
  const Codes codes(counts, offsets, sizes, "rle_bbox");
  Tensor result = torch::stable::new_empty(counts, {codes.number, 4}, ScalarType::Long);
  auto* out = static_cast<int64_t*>(result.mutable_data_ptr());
  parallel_over(codes.number, codes.mean_bytes(), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const Box box = box_of(codes.runs(n), codes.number_of_runs(n), codes.height(n));
      const int64_t numbers[] = {box.x, box.y, box.width, box.height};
      std::copy_n(numbers, 4, out + 4 * n);
    }
  });
  return result;
}

}  // namespace s2d::rle

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def("rle_encode(Tensor masks, int width) -> (Tensor, Tensor)");
  library.def("rle_decode(Tensor counts, Tensor offsets, Tensor sizes, int height, int width) -> Tensor");
  library.def("rle_area(Tensor counts, Tensor offsets, Tensor sizes) -> Tensor");
  library.def("rle_bbox(Tensor counts, Tensor offsets, Tensor sizes) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("rle_encode", TORCH_BOX(&s2d::rle::rle_encode));
  library.impl("rle_decode", TORCH_BOX(&s2d::rle::rle_decode));
  library.impl("rle_area", TORCH_BOX(&s2d::rle::rle_area));
  library.impl("rle_bbox", TORCH_BOX(&s2d::rle::rle_bbox));
}
