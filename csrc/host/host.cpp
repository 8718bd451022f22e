// _host: work on bytes that needs no tensor (COCO's run-length strings), and what the machine can do.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "../common/simd.h"

namespace py = pybind11;

namespace {

// Five bits a character from '0' on, the sixth says 'more'; from the fourth run on, the difference to the run two
// before.
std::string rle_to_string(const std::vector<int64_t>& counts) {
  std::string text;
  text.reserve(counts.size() * 3);
  for (size_t index = 0; index < counts.size(); ++index) {
    int64_t value = index > 2 ? counts[index] - counts[index - 2] : counts[index];
    for (bool more = true; more;) {
      const int64_t chunk = value & 31;
      value >>= 5;
      more = value != (chunk & 16 ? -1 : 0);
      text.push_back(static_cast<char>((more ? chunk | 32 : chunk) + '0'));
    }
  }
  return text;
}

// No run of a mask under 2^31 pixels takes more bits than this.
constexpr int kLongestRun = 40;

std::vector<int64_t> rle_from_string(std::string_view text) {
  std::vector<int64_t> counts;
  int64_t value = 0;
  int shift = 0;
  for (const char character : text) {
    const int chunk = character - '0';
    if (chunk < 0 || chunk >= 64) {
      throw py::value_error("expected characters from '0' to 'o', got character code " +
                            std::to_string(static_cast<unsigned char>(character)));
    }
    if (shift >= kLongestRun) throw py::value_error("expected runs of at most 2^31 pixels, got a longer one");
    value |= static_cast<int64_t>(chunk & 31) << shift;
    shift += 5;
    if (chunk & 32) continue;
    if (chunk & 16) value -= int64_t{1} << shift;
    counts.push_back(counts.size() > 2 ? value + counts[counts.size() - 2] : value);
    value = 0;
    shift = 0;
  }
  if (shift) throw py::value_error("expected a complete last run, got a string that ends within it");
  return counts;
}

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
  module.def("rle_to_string", &rle_to_string, py::arg("counts"), "COCO's string of the runs of one mask.");
  module.def("rle_from_string", &rle_from_string, py::arg("text"),
             "The runs of a COCO string; ValueError where it is not one.");
}
