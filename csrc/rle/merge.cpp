// rle on the CPU: unions and intersections of groups of masks, and polygons, of which a mask may have several.

#include "merge.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "codes.h"
#include "polygons.h"

namespace s2d::rle {
namespace {

// The indices of the members of each group, one group after another.
struct Members {
  Members(const int64_t* groups, int64_t number, int64_t number_of_groups)
      : starts(number_of_groups + 1), indices(number) {
    for (int64_t n = 0; n < number; ++n) ++starts[groups[n] + 1];
    for (int64_t g = 0; g < number_of_groups; ++g) starts[g + 1] += starts[g];
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t n = 0; n < number; ++n) indices[next[groups[n]]++] = n;
  }
  std::vector<int64_t> starts, indices;
};

// A thread's own memory.
struct Scratch {
  Merger merger;
  std::vector<RunsView> views;
  std::vector<std::vector<int32_t>> polygons;
};

const int64_t* ascending(const Tensor& offsets, int64_t total, const char* name) {
  const auto* bounds = static_cast<const int64_t*>(offsets.const_data_ptr());
  const int64_t number = offsets.size(0) - 1;
  bool fine = number >= 0 && bounds[0] == 0 && bounds[number] == total;
  for (int64_t n = 0; fine && n < number; ++n) fine = bounds[n] <= bounds[n + 1];
  S2D_CHECK(fine, "rle_from_polygons", std::string(name) + " that ascend from 0 to " + std::to_string(total),
            shape_of(offsets));
  return bounds;
}

}  // namespace

std::tuple<Tensor, Tensor> rle_merge(const Tensor& counts, const Tensor& offsets, const Tensor& sizes,
                                     const Tensor& groups, int64_t number, bool intersect) {
  const Codes codes(counts, offsets, sizes, "rle_merge");
  S2D_CHECK(groups.scalar_type() == ScalarType::Long && groups.dim() == 1 && groups.size(0) == codes.number,
            "rle_merge", "groups int64 [N]", shape_of(groups));
  const Tensor group_tensor = torch::stable::contiguous(groups);
  const auto* group = static_cast<const int64_t*>(group_tensor.const_data_ptr());
  for (int64_t n = 0; n < codes.number; ++n) {
    S2D_CHECK(0 <= group[n] && group[n] < number, "rle_merge", "groups from 0 to " + std::to_string(number - 1),
              group[n]);
  }
  const Members members(group, codes.number, number);
  for (int64_t g = 0; g < number; ++g) {
    S2D_CHECK(members.starts[g] < members.starts[g + 1], "rle_merge", "a mask in every group",
              "none in group " + std::to_string(g));
    for (int64_t i = members.starts[g]; i < members.starts[g + 1]; ++i) {
      S2D_CHECK(codes.same_size(members.indices[i], codes, members.indices[members.starts[g]]), "rle_merge",
                "masks of one size in a group", "mask " + std::to_string(members.indices[i]) + " of another");
    }
  }
  const int64_t bytes = codes.mean_bytes() * (codes.number / std::max<int64_t>(1, number) + 1);
  return make_codes(
      codes.counts_tensor, number, bytes, [] { return Scratch(); },
      [&](Scratch& scratch, int64_t g, std::vector<int32_t>& out) {
        scratch.views.clear();
        for (int64_t i = members.starts[g]; i < members.starts[g + 1]; ++i) {
          const int64_t n = members.indices[i];
          scratch.views.push_back({codes.runs(n), codes.number_of_runs(n)});
        }
        const int64_t first = members.indices[members.starts[g]];
        scratch.merger.merge(scratch.views, codes.height(first), codes.width(first), intersect, out);
      });
}

std::tuple<Tensor, Tensor> rle_from_polygons(const Tensor& vertices, const Tensor& polygons, const Tensor& masks,
                                             const Tensor& sizes) {
  constexpr const char* op = "rle_from_polygons";
  S2D_CHECK(vertices.scalar_type() == ScalarType::Double && vertices.dim() == 2 && vertices.size(1) == 2, op,
            "vertices float64 [P, 2]", shape_of(vertices));
  S2D_CHECK(polygons.scalar_type() == ScalarType::Long && polygons.dim() == 1, op, "polygons int64 [K + 1]",
            shape_of(polygons));
  S2D_CHECK(masks.scalar_type() == ScalarType::Long && masks.dim() == 1, op, "masks int64 [N + 1]", shape_of(masks));
  const Tensor points = torch::stable::contiguous(vertices), polygon_bounds = torch::stable::contiguous(polygons),
               mask_bounds = torch::stable::contiguous(masks), mask_sizes = torch::stable::contiguous(sizes);
  const int64_t* ends = ascending(polygon_bounds, points.size(0), "polygons");
  const int64_t* owned = ascending(mask_bounds, polygon_bounds.size(0) - 1, "masks");
  const int64_t number = mask_bounds.size(0) - 1;
  S2D_CHECK(sizes.scalar_type() == ScalarType::Int && sizes.dim() == 2 && sizes.size(0) == number && sizes.size(1) == 2,
            op, "sizes int32 [N, 2]", shape_of(sizes));
  const auto* size = static_cast<const int32_t*>(mask_sizes.const_data_ptr());
  for (int64_t n = 0; n < number; ++n) {
    const int64_t height = size[2 * n], width = size[2 * n + 1];
    S2D_CHECK(height >= 0 && width >= 0 && height * width <= kMaxPixels, op, "masks of at most 2^31 - 1 pixels",
              std::to_string(height) + " x " + std::to_string(width));
  }
  const auto* xy = static_cast<const double*>(points.const_data_ptr());
  for (int64_t i = 0; i < 2 * points.size(0); ++i) {
    S2D_CHECK(std::abs(xy[i]) < kMaxCoordinate, op, "finite coordinates below 4e8", xy[i]);
  }
  const int64_t bytes = points.size(0) * 64 / std::max<int64_t>(1, number) + 64;
  return make_codes(
      points, number, bytes, [] { return Scratch(); },
      [&](Scratch& scratch, int64_t n, std::vector<int32_t>& out) {
        const int64_t height = size[2 * n], width = size[2 * n + 1], parts = owned[n + 1] - owned[n];
        const auto draw_polygon = [&](int64_t k, std::vector<int32_t>& counts) {
          polygon_runs(xy + 2 * ends[k], ends[k + 1] - ends[k], height, width, counts);
        };
        if (parts == 0) return out.push_back(static_cast<int32_t>(height * width));
        if (parts == 1) return draw_polygon(owned[n], out);
        scratch.polygons.resize(std::max<size_t>(scratch.polygons.size(), parts));
        scratch.views.clear();
        for (int64_t p = 0; p < parts; ++p) {
          auto& counts = scratch.polygons[p];
          counts.clear();
          draw_polygon(owned[n] + p, counts);
          scratch.views.push_back({counts.data(), static_cast<int64_t>(counts.size())});
        }
        scratch.merger.merge(scratch.views, height, width, false, out);
      });
}

}  // namespace s2d::rle

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def(
      "rle_merge(Tensor counts, Tensor offsets, Tensor sizes, Tensor groups, int number, bool intersect) -> (Tensor, "
      "Tensor)");
  library.def("rle_from_polygons(Tensor vertices, Tensor polygons, Tensor masks, Tensor sizes) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("rle_merge", TORCH_BOX(&s2d::rle::rle_merge));
  library.impl("rle_from_polygons", TORCH_BOX(&s2d::rle::rle_from_polygons));
}
