// COCO's strings by themselves.

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "../rle/coco_strings.h"
#include "host.h"

namespace s2d::host {

namespace py = pybind11;

namespace {

std::string rle_to_string(const std::vector<int32_t>& counts) {
  std::string text;
  rle::append_string(counts.data(), static_cast<int64_t>(counts.size()), text);
  return text;
}

std::vector<int32_t> rle_from_string(std::string_view text) {
  std::vector<int32_t> counts;
  const std::string wrong = rle::parse_string(text, counts);
  if (!wrong.empty()) throw py::value_error(wrong);
  return counts;
}

}  // namespace

void add_strings(py::module_& module) {
  module.def("rle_to_string", &rle_to_string, py::arg("counts"), "COCO's string of the runs of one mask.");
  module.def("rle_from_string", &rle_from_string, py::arg("text"),
             "The runs of a COCO string; ValueError where it is not one.");
}

}  // namespace s2d::host
