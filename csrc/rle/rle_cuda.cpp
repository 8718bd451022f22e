// rle: binds the CUDA launchers to torch's CUDA dispatch key.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "../bitmask/bitmask.h"
#include "../common/binding.h"
#include "../common/check.h"
#include "launchers.h"

namespace s2d::rle {
namespace {

// The only value of a tensor: waits for the device.
int64_t item(const Tensor& number) {
  int64_t value = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_item_int64(number.get(), &value));
  return value;
}

// The code of a batch, its shapes checked. What is in it is not: the kernels keep to its bounds whatever that is.
struct Codes {
  Codes(const Tensor& counts_, const Tensor& offsets_, const Tensor& sizes_, const char* op)
      : counts(torch::stable::contiguous(counts_)),
        offsets(torch::stable::contiguous(offsets_)),
        sizes(torch::stable::contiguous(sizes_)) {
    S2D_CHECK(counts.scalar_type() == ScalarType::Int && counts.dim() == 1, op, "counts int32 [R]", shape_of(counts));
    S2D_CHECK(sizes.scalar_type() == ScalarType::Int && sizes.dim() == 2 && sizes.size(1) == 2, op,
              "sizes int32 [N, 2]", shape_of(sizes));
    S2D_CHECK(offsets.scalar_type() == ScalarType::Long && offsets.dim() == 1 && offsets.size(0) == number() + 1, op,
              "offsets int64 [N + 1]", shape_of(offsets));
  }

  int64_t number() const { return sizes.size(0); }
  void* stream() const { return current_stream(counts); }
  DeviceCodes on_device() const { return {in_of<int32_t>(counts), in_of<int64_t>(offsets), number(), counts.size(0)}; }
  bool is(const Codes& other) const {
    return number() == other.number() && in_of<int32_t>(counts) == in_of<int32_t>(other.counts) &&
           in_of<int64_t>(offsets) == in_of<int64_t>(other.offsets);
  }

  Tensor counts, offsets, sizes;
};

// The masks as bits, height x width of each; a mask may be smaller where they are of different sizes.
Tensor bits_of(const Codes& codes, int64_t height, int64_t width, bool one_size = true) {
  const auto shape = {codes.number(), height, words_for(width)};
  Tensor words = one_size ? torch::stable::new_empty(codes.offsets, shape, ScalarType::Long)
                          : torch::stable::new_zeros(codes.offsets, shape, ScalarType::Long);
  if (codes.number() * height * width > 0) {
    const Tiling tiling(codes.number(), height, width, one_size ? nullptr : in_of<int32_t>(codes.sizes));
    launch_decode(codes.on_device(), out_of<uint64_t>(words), tiling, codes.stream());
  }
  return words;
}

Tensor areas_of(const Codes& codes) {
  Tensor area = torch::stable::new_empty(codes.offsets, {codes.number()}, ScalarType::Long);
  launch_area(codes.on_device(), out_of<int64_t>(area), codes.stream());
  return area;
}

// The size that holds every mask of a batch: waits for the device.
struct Bounds {
  Bounds(const Codes& codes, const char* op) {
    const Tensor sizes = torch::stable::to(codes.sizes, torch::stable::Device(torch::headeronly::DeviceType::CPU));
    const auto* size = in_of<int32_t>(sizes);
    for (int64_t n = 0; n < codes.number(); ++n) {
      height = std::max<int64_t>(height, size[2 * n]);
      width = std::max<int64_t>(width, size[2 * n + 1]);
      one_size &= size[2 * n] == size[0] && size[2 * n + 1] == size[1];
    }
    S2D_CHECK(height * width <= kMaxPixels, op, "masks that fit into one of at most 2^31 - 1 pixels",
              std::to_string(height) + " x " + std::to_string(width));
  }
  int64_t height = 0, width = 0;
  bool one_size = true;
};

// Pixels are counted in bits, for which there has to be memory: waits for the device to know of how many pixels.
Tensor overlaps(const Codes& a, const Codes& b, int64_t frames, const bool* crowd, const char* op) {
  const int64_t n = a.number() / frames, m = b.number() / frames;
  Tensor result = torch::stable::new_empty(a.counts, {n, m}, ScalarType::Double);
  if (n * m == 0) return result;
  const Bounds bounds(a, op);
  S2D_CHECK(bounds.one_size, op, "masks of one size", "others");
  const int64_t height = bounds.height, width = bounds.width;
  const bool mirrored = a.is(b);
  const Tensor left = bits_of(a, height, width), right = mirrored ? left : bits_of(b, height, width);
  const Tensor area_a = areas_of(a), area_b = mirrored ? area_a : areas_of(b);
  Tensor shared = torch::stable::new_zeros(a.offsets, {n, m}, ScalarType::Long);
  bitmask::launch_intersections(op, in_of<uint64_t>(left), in_of<uint64_t>(right), out_of<int64_t>(shared), n, m,
                                frames * height * words_for(width), a.stream());
  launch_ratio(in_of<int64_t>(shared), in_of<int64_t>(area_a), in_of<int64_t>(area_b), crowd, out_of<double>(result), n,
               m, frames, mirrored, a.stream());
  return result;
}

// Waits for the device: how many runs there are is the size of the result.
std::tuple<Tensor, Tensor> encode(const Tensor& words, int64_t width, const int32_t* sizes = nullptr) {
  const int64_t number = words.size(0), height = words.size(1);
  Tensor offsets = torch::stable::new_empty(words, {number + 1}, ScalarType::Long);
  void* stream = current_stream(words);
  if (number * height * width == 0) {
    const Tensor nothing = torch::stable::new_zeros(words, {number}, ScalarType::Int);
    launch_offsets(in_of<int32_t>(nothing), out_of<int64_t>(offsets), number, 1, stream);
    return {nothing, offsets};
  }
  const Tiling tiling(number, height, width, sizes);
  static_assert(sizeof(TileRuns) == sizeof(int64_t));
  Tensor tiles = torch::stable::new_empty(words, {number * tiling.tiles()}, ScalarType::Long);
  Tensor part_counts = torch::stable::new_empty(words, {number * tiling.parts()}, ScalarType::Int);
  launch_count(in_of<uint64_t>(words), out_of<TileRuns>(tiles), out_of<int32_t>(part_counts), tiling, stream);
  launch_offsets(in_of<int32_t>(part_counts), out_of<int64_t>(offsets), number, tiling.parts(), stream);
  const int64_t runs = item(torch::stable::narrow(offsets, 0, number, 1));
  Tensor counts = torch::stable::new_empty(words, {runs}, ScalarType::Int);
  launch_write(in_of<uint64_t>(words), in_of<TileRuns>(tiles), in_of<int64_t>(offsets), out_of<int32_t>(counts), tiling,
               stream);
  return {counts, offsets};
}

std::tuple<Tensor, Tensor> rle_encode(const Tensor& masks, int64_t width) {
  const DeviceGuard guard(masks.get_device_index());
  const bool packed = masks.scalar_type() == ScalarType::Long;
  S2D_CHECK((packed || masks.scalar_type() == ScalarType::Byte) && masks.dim() == 3 &&
                masks.size(2) == (packed ? words_for(width) : width),
            "rle_encode", "masks int64 [N, H, ceil(W/64)] or uint8 [N, H, W]", shape_of(masks));
  S2D_CHECK(masks.size(1) * width <= kMaxPixels, "rle_encode", "a mask of at most 2^31 - 1 pixels",
            masks.size(1) * width);
  if (packed) return encode(torch::stable::contiguous(masks), width);
  std::array<StableIValue, 1> stack{torch::stable::detail::from(masks)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("s2d::pack_masks", "", stack.data(), TORCH_ABI_VERSION));
  return encode(torch::stable::detail::to<Tensor>(stack[0]), width);
}

// Rows of pairs in ascending order, each once.
Tensor distinct(const Tensor& pairs) {
  std::array<StableIValue, 5> stack{torch::stable::detail::from(pairs), torch::stable::detail::from(int64_t{0}),
                                    torch::stable::detail::from(true), torch::stable::detail::from(false),
                                    torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::unique_dim", "", stack.data(), TORCH_ABI_VERSION));
  // The empty results are taken over to be freed.
  for (int unused = 1; unused < 3; ++unused) torch::stable::detail::to<Tensor>(stack[unused]);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Of the integers that labels may be; 0 for other types.
int bytes_of(ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
    case ScalarType::Char:
      return 1;
    case ScalarType::UInt16:
    case ScalarType::Short:
      return 2;
    case ScalarType::Int:
      return 4;
    case ScalarType::Long:
      return 8;
    default:
      return 0;
  }
}

// Frames and labels of the masks, in ascending order. Waits for the device: their number is the size of a result.
Tensor labels_in(const Labels& labels, const Tensor& like, std::optional<int64_t> background) {
  const auto list = [&](int64_t* corners) {
    Tensor number = torch::stable::new_zeros(like, {1}, ScalarType::Long);
    launch_corners(labels, corners, out_of<int64_t>(number), background.has_value(), background.value_or(0),
                   current_stream(like));
    return number;
  };
  const int64_t number = labels.frames * labels.height * labels.width > 0 ? item(list(nullptr)) : 0;
  Tensor corners = torch::stable::new_empty(like, {number, 2}, ScalarType::Long);
  if (number == 0) return corners;
  list(out_of<int64_t>(corners));
  return distinct(corners);
}

std::tuple<Tensor, Tensor, Tensor> rle_from_labels(const Tensor& labels, std::optional<int64_t> background) {
  const DeviceGuard guard(labels.get_device_index());
  const ScalarType type = labels.scalar_type();
  const int bytes = bytes_of(type);
  S2D_CHECK(labels.dim() == 3 && bytes > 0, "rle_from_labels", "labels of integers [T, H, W]", shape_of(labels));
  const int64_t height = labels.size(1), width = labels.size(2);
  S2D_CHECK(height * width <= kMaxPixels, "rle_from_labels", "frames of at most 2^31 - 1 pixels", shape_of(labels));
  const Tensor source = torch::stable::contiguous(labels);
  const bool is_signed = type != ScalarType::Byte && type != ScalarType::UInt16;
  const Labels maps{source.const_data_ptr(), bytes, is_signed, source.size(0), static_cast<int>(height),
                    static_cast<int>(width)};
  const Tensor which = labels_in(maps, source, background);
  const int64_t number = which.size(0);
  Tensor words = torch::stable::new_zeros(source, {number, height, words_for(width)}, ScalarType::Long);
  if (number > 0) {
    launch_select(maps, in_of<int64_t>(which), out_of<uint64_t>(words), Tiling(number, height, width),
                  current_stream(source));
  }
  const auto [counts, offsets] = encode(words, width);
  return {counts, offsets, which};
}

// The caller has seen that all masks have this size.
Tensor rle_decode(const Tensor& counts, const Tensor& offsets, const Tensor& sizes, int64_t height, int64_t width) {
  const DeviceGuard guard(counts.get_device_index());
  S2D_CHECK(height >= 0 && width >= 0 && height * width <= kMaxPixels, "rle_decode",
            "a mask of at most 2^31 - 1 pixels", height * width);
  return bits_of(Codes(counts, offsets, sizes, "rle_decode"), height, width);
}

Tensor rle_area(const Tensor& counts, const Tensor& offsets, const Tensor& sizes) {
  const DeviceGuard guard(counts.get_device_index());
  return areas_of(Codes(counts, offsets, sizes, "rle_area"));
}

Tensor rle_bbox(const Tensor& counts, const Tensor& offsets, const Tensor& sizes) {
  const DeviceGuard guard(counts.get_device_index());
  const Codes codes(counts, offsets, sizes, "rle_bbox");
  Tensor boxes = torch::stable::new_empty(offsets, {codes.number(), 4}, ScalarType::Long);
  launch_bbox(codes.on_device(), in_of<int32_t>(codes.sizes), out_of<int64_t>(boxes), codes.stream());
  return boxes;
}

Tensor rle_iou(const Tensor& counts_a, const Tensor& offsets_a, const Tensor& sizes_a, const Tensor& counts_b,
               const Tensor& offsets_b, const Tensor& sizes_b, const Tensor& crowd) {
  const DeviceGuard guard(counts_a.get_device_index());
  const Codes a(counts_a, offsets_a, sizes_a, "rle_iou"), b(counts_b, offsets_b, sizes_b, "rle_iou");
  S2D_CHECK(crowd.scalar_type() == ScalarType::Bool && crowd.dim() == 1 && crowd.size(0) == b.number(), "rle_iou",
            "crowd bool [M]", shape_of(crowd));
  const Tensor flags = torch::stable::contiguous(crowd);
  return overlaps(a, b, 1, in_of<bool>(flags), "rle_iou");
}

Tensor rle_tube_iou(const Tensor& counts_a, const Tensor& offsets_a, const Tensor& sizes_a, const Tensor& counts_b,
                    const Tensor& offsets_b, const Tensor& sizes_b, int64_t frames) {
  const DeviceGuard guard(counts_a.get_device_index());
  const Codes a(counts_a, offsets_a, sizes_a, "rle_tube_iou"), b(counts_b, offsets_b, sizes_b, "rle_tube_iou");
  S2D_CHECK(frames > 0 && a.number() % frames == 0 && b.number() % frames == 0, "rle_tube_iou",
            "a number of frames that divides both batches", frames);
  return overlaps(a, b, frames, nullptr, "rle_tube_iou");
}

// The caller has seen that every group has a mask, and that its masks have one size.
std::tuple<Tensor, Tensor> rle_merge(const Tensor& counts, const Tensor& offsets, const Tensor& sizes,
                                     const Tensor& groups, int64_t number, bool intersect) {
  const DeviceGuard guard(counts.get_device_index());
  const Codes codes(counts, offsets, sizes, "rle_merge");
  S2D_CHECK(groups.scalar_type() == ScalarType::Long && groups.dim() == 1 && groups.size(0) == codes.number(),
            "rle_merge", "groups int64 [N]", shape_of(groups));
  const Tensor group_of = torch::stable::contiguous(groups);
  const Bounds bounds(codes, "rle_merge");
  const int64_t strips = words_for(bounds.width);
  const Tensor words = bits_of(codes, bounds.height, bounds.width, bounds.one_size);
  Tensor merged = torch::stable::new_zeros(words, {number, bounds.height, strips}, ScalarType::Long);
  Tensor group_sizes = torch::stable::new_zeros(words, {number, 2}, ScalarType::Int);
  if (intersect) torch::stable::fill_(merged, -1);
  if (codes.number() * bounds.height * strips > 0) {
    launch_merge(in_of<uint64_t>(words), in_of<int64_t>(group_of), in_of<int32_t>(codes.sizes),
                 out_of<uint64_t>(merged), out_of<int32_t>(group_sizes), codes.number(), number, bounds.height * strips,
                 intersect, codes.stream());
  }
  return encode(merged, bounds.width, bounds.one_size ? nullptr : in_of<int32_t>(group_sizes));
}

}  // namespace
}  // namespace s2d::rle

STABLE_TORCH_LIBRARY_IMPL(s2d, CUDA, library) {
  library.impl("rle_encode", TORCH_BOX(&s2d::rle::rle_encode));
  library.impl("rle_decode", TORCH_BOX(&s2d::rle::rle_decode));
  library.impl("rle_area", TORCH_BOX(&s2d::rle::rle_area));
  library.impl("rle_bbox", TORCH_BOX(&s2d::rle::rle_bbox));
  library.impl("rle_iou", TORCH_BOX(&s2d::rle::rle_iou));
  library.impl("rle_tube_iou", TORCH_BOX(&s2d::rle::rle_tube_iou));
  library.impl("rle_from_labels", TORCH_BOX(&s2d::rle::rle_from_labels));
  library.impl("rle_merge", TORCH_BOX(&s2d::rle::rle_merge));
}
