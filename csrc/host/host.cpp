// _host: work on bytes and numpy's arrays that needs no tensor (COCO's masks as dictionaries, the loops of its
// evaluation), and what the machine can do.

#include "host.h"

#include <string>

#include "../common/simd.h"

namespace {

std::string cpu_isa() {
  switch (s2d::isa()) {
    case s2d::Isa::avx512:
      return "avx512";
    case s2d::Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.doc() = "Work on bytes that needs no tensor.";
  module.def("cpu_isa", &cpu_isa, "The instruction set the CPU kernels use: baseline, avx2 or avx512.");
  auto rle = module.def_submodule("rle", "What s2d.rle is made of.");
  s2d::host::add_batch(rle);
  s2d::host::add_masks(rle);
  s2d::host::add_measures(rle);
  s2d::host::add_iou(rle);
  s2d::host::add_shapes(rle);
  auto metrics = module.def_submodule("metrics", "What s2d.metrics is made of.");
  s2d::host::add_annotations(metrics);
  s2d::host::add_group_iou(metrics);
  s2d::host::add_matching(metrics);
  s2d::host::add_boundary(metrics);
}
