// bitmask on the CPU: schemas of the room and its CPU kernels.
//
// Packing reads W bytes and writes W / 8 a row, one 64-byte compare a word; counting reads each word once. IoU is the
// hard part: N x M x words popcounts, so words are walked in chunks that stay in the first-level cache while every pair
// of a thread's rows passes over them, four columns at a time.

#include "bitmask.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../common/check.h"
#include "../common/pack.h"
#include "../common/pages.h"
#include "../common/parallel.h"
#include "../common/popcount.h"

namespace s2d::bitmask {
namespace {

const uint64_t* words_of(const Tensor& tensor) { return reinterpret_cast<const uint64_t*>(tensor.const_data_ptr()); }

void check_words(const Tensor& words, const char* op) {
  S2D_CHECK(words.scalar_type() == ScalarType::Long && words.dim() >= 2, op, "words int64 [..., H, ceil(W/64)]",
            shape_of(words));
}

std::vector<int64_t> shape_with_last(const Tensor& tensor, int64_t dropped, std::initializer_list<int64_t> last) {
  std::vector<int64_t> shape;
  for (int64_t dim = 0; dim < tensor.dim() - dropped; ++dim) shape.push_back(tensor.size(dim));
  shape.insert(shape.end(), last);
  return shape;
}

}  // namespace

Tensor pack_masks(const Tensor& masks) {
  S2D_CHECK(masks.scalar_type() == ScalarType::Byte && masks.dim() >= 2, "pack_masks", "masks uint8 [..., H, W]",
            shape_of(masks));
  const Tensor source = torch::stable::contiguous(masks);
  const int64_t width = source.size(source.dim() - 1), words = words_for(width);
  const int64_t rows = product_of(source, 0, source.dim() - 1);
  Tensor result = torch::stable::new_empty(source, shape_with_last(source, 1, {words}), ScalarType::Long);
  const auto* in = static_cast<const uint8_t*>(source.const_data_ptr());
  auto* out = static_cast<uint64_t*>(result.mutable_data_ptr());
  const PackRow pack = pack_row();
  parallel_over(rows, width, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) pack(in + row * width, out + row * words, width);
  });
  return result;
}

Tensor unpack_masks(const Tensor& words, int64_t width) {
  check_words(words, "unpack_masks");
  const Tensor source = torch::stable::contiguous(words);
  const int64_t per_row = source.size(source.dim() - 1), rows = product_of(source, 0, source.dim() - 1);
  S2D_CHECK(per_row == words_for(width), "unpack_masks", "a width that its words hold", width);
  Tensor result = torch::stable::new_empty(source, shape_with_last(source, 1, {width}), ScalarType::Byte);
  const uint64_t* in = words_of(source);
  auto* out = static_cast<uint8_t*>(result.mutable_data_ptr());
  prefer_large_pages(out, rows * width);
  const UnpackRow unpack = unpack_row();
  parallel_over(rows, width, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) unpack(in + row * per_row, out + row * width, width);
  });
  return result;
}

Tensor mask_area(const Tensor& words) {
  check_words(words, "mask_area");
  const Tensor source = torch::stable::contiguous(words);
  const int64_t masks = product_of(source, 0, source.dim() - 2);
  const int64_t number = source.size(source.dim() - 2) * source.size(source.dim() - 1);
  Tensor result = torch::stable::new_empty(source, shape_with_last(source, 2, {}), ScalarType::Long);
  const uint64_t* in = words_of(source);
  auto* out = static_cast<int64_t*>(result.mutable_data_ptr());
  parallel_over(masks, number * 8, [&](int64_t begin, int64_t end) {
    for (int64_t mask = begin; mask < end; ++mask) out[mask] = count(in + mask * number, number);
  });
  return result;
}

Tensor mask_bbox(const Tensor& words) {
  check_words(words, "mask_bbox");
  const Tensor source = torch::stable::contiguous(words);
  const int64_t masks = product_of(source, 0, source.dim() - 2);
  const int64_t height = source.size(source.dim() - 2), per_row = source.size(source.dim() - 1);
  Tensor result = torch::stable::new_empty(source, shape_with_last(source, 2, {4}), ScalarType::Long);
  const uint64_t* in = words_of(source);
  auto* out = static_cast<int64_t*>(result.mutable_data_ptr());
  parallel_over(masks, height * per_row * 8, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> columns(per_row);
    for (int64_t mask = begin; mask < end; ++mask) {
      std::fill(columns.begin(), columns.end(), 0);
      int64_t top = -1, bottom = -1;
      for (int64_t y = 0; y < height; ++y) {
        const uint64_t* row = in + (mask * height + y) * per_row;
        uint64_t any = 0;
        for (int64_t w = 0; w < per_row; ++w) {
          any |= row[w];
          columns[w] |= row[w];
        }
        if (any) {
          if (top < 0) top = y;
          bottom = y;
        }
      }
      int64_t* box = out + mask * 4;
      if (top < 0) {
        std::fill(box, box + 4, 0);
        continue;
      }
      int64_t first = 0, last = per_row - 1;
      while (!columns[first]) ++first;
      while (!columns[last]) --last;
      box[0] = first * kWordBits + lowest_bit(columns[first]);
      box[1] = top;
      box[2] = last * kWordBits + highest_bit(columns[last]) - box[0] + 1;
      box[3] = bottom - top + 1;
    }
  });
  return result;
}

Tensor mask_iou(const Tensor& a, const Tensor& b) {
  check_words(a, "mask_iou");
  check_words(b, "mask_iou");
  const Tensor left = torch::stable::contiguous(a), right = torch::stable::contiguous(b);
  const int64_t n = left.size(0), m = right.size(0), words = product_of(left, 1, left.dim());
  S2D_CHECK(words == product_of(right, 1, right.dim()), "mask_iou", "a and b of equal sizes",
            shape_of(a) + " and " + shape_of(b));
  Tensor result = torch::stable::new_empty(left, {n, m}, ScalarType::Float);
  const uint64_t *rows = words_of(left), *columns = words_of(right);
  auto* out = static_cast<float*>(result.mutable_data_ptr());
  std::vector<int64_t> area(m);
  parallel_over(m, words * 8, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) area[j] = count(columns + j * words, words);
  });
  parallel_over(n, words * 8 * m, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> shared((end - begin) * m);
    add_intersections(rows + begin * words, end - begin, columns, m, words, shared.data());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t own = count(rows + i * words, words);
      for (int64_t j = 0; j < m; ++j) out[i * m + j] = iou_of(shared[(i - begin) * m + j], own, area[j]);
    }
  });
  return result;
}

Tensor mask_nms(const Tensor& words, const Tensor& order, double threshold) {
  check_words(words, "mask_nms");
  const int64_t n = words.size(0);
  S2D_CHECK(order.scalar_type() == ScalarType::Long && order.dim() == 1 && order.size(0) == n, "mask_nms",
            "order int64 [N]", shape_of(order));
  const Tensor overlaps = mask_iou(words, words), visits = torch::stable::contiguous(order);
  Tensor result = torch::stable::new_empty(words, {n}, ScalarType::Byte);
  const auto* iou = static_cast<const float*>(overlaps.const_data_ptr());
  const auto* visit = static_cast<const int64_t*>(visits.const_data_ptr());
  auto* keep = static_cast<uint8_t*>(result.mutable_data_ptr());
  for (int64_t i = 0; i < n; ++i) {
    S2D_CHECK(visit[i] >= 0 && visit[i] < n, "mask_nms", "order to hold indices of masks", visit[i]);
    keep[i] = 1;
    for (int64_t j = 0; j < i && keep[i]; ++j) keep[i] = !(keep[j] && iou[visit[i] * n + visit[j]] > threshold);
  }
  return result;
}

}  // namespace s2d::bitmask

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def("pack_masks(Tensor masks) -> Tensor");
  library.def("unpack_masks(Tensor words, int width) -> Tensor");
  library.def("mask_area(Tensor words) -> Tensor");
  library.def("mask_bbox(Tensor words) -> Tensor");
  library.def("mask_iou(Tensor a, Tensor b) -> Tensor");
  library.def("mask_nms(Tensor words, Tensor order, float threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("pack_masks", TORCH_BOX(&s2d::bitmask::pack_masks));
  library.impl("unpack_masks", TORCH_BOX(&s2d::bitmask::unpack_masks));
  library.impl("mask_area", TORCH_BOX(&s2d::bitmask::mask_area));
  library.impl("mask_bbox", TORCH_BOX(&s2d::bitmask::mask_bbox));
  library.impl("mask_iou", TORCH_BOX(&s2d::bitmask::mask_iou));
  library.impl("mask_nms", TORCH_BOX(&s2d::bitmask::mask_nms));
}
