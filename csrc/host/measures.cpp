// What is read off the runs of masks: areas, boxes, unions and intersections.

#include <pybind11/numpy.h>

#include "../rle/merge.h"
#include "../rle/rle.h"
#include "codes.h"
#include "host.h"

namespace s2d::host {

namespace {

// Calls measure(codes, results) for a list of codes or for one; its results have `width` numbers a mask.
template <typename Number, typename Measure>
py::object measured(const char* function, py::handle objects, const std::vector<py::ssize_t>& shape_of_one,
                    const Measure& measure) {
  const bool many = PyList_CheckExact(objects.ptr());
  const Codes codes = many ? read_codes(function, objects) : read_code(function, objects);
  std::vector<py::ssize_t> shape = shape_of_one;
  if (many) shape.insert(shape.begin(), codes.number());
  py::array_t<Number> result(shape);
  {
    Number* out = result.mutable_data();
    const Unlocked unlocked(static_cast<int64_t>(codes.counts.size()) > kLongWork);
    for (int64_t n = 0; n < codes.number(); ++n) out = measure(codes, n, out);
  }
  return result;
}

py::object area(const py::object& objects) {
  const py::object result =
      measured<uint32_t>("rle.area", objects, {}, [](const Codes& codes, int64_t n, uint32_t* out) {
        *out = static_cast<uint32_t>(rle::area_of(codes.runs(n), codes.number_of_runs(n)));
        return out + 1;
      });
  return PyList_CheckExact(objects.ptr()) ? result : result[py::tuple()];
}

py::object to_bbox(const py::object& objects) {
  return measured<double>("rle.toBbox", objects, {4}, [](const Codes& codes, int64_t n, double* out) {
    const rle::Box box = rle::box_of(codes.runs(n), codes.number_of_runs(n), codes.sizes[n].height);
    for (const int64_t number : {box.x, box.y, box.width, box.height}) *out++ = static_cast<double>(number);
    return out;
  });
}

py::dict merge(const py::object& objects, const py::object& intersect) {
  const bool both = integer(intersect) != 0;
  const Codes codes = read_codes("rle.merge", objects);
  for (const Size& size : codes.sizes) {
    if (size != codes.sizes[0]) return write_code({}, nullptr, 0);
  }
  if (codes.number() == 0) return write_code({}, nullptr, 0);
  const Size size = codes.sizes[0];
  if (codes.number() == 1) return write_code(size, codes.runs(0), codes.number_of_runs(0));
  std::vector<int32_t> counts;
  {
    const Unlocked unlocked(static_cast<int64_t>(codes.counts.size()) > kLongWork);
    std::vector<rle::RunsView> views;
    for (int64_t n = 0; n < codes.number(); ++n) views.push_back({codes.runs(n), codes.number_of_runs(n)});
    rle::Merger().merge(views, size.height, size.width, both, counts);
  }
  return write_code(size, counts.data(), static_cast<int64_t>(counts.size()));
}

}  // namespace

void add_measures(py::module_& module) {
  module.def("area", &area, py::arg("rleObjs"), R"(Number of set pixels of codes.

Args:
    rleObjs: a list of N codes, which may differ in size, or one code.

Returns:
    uint32 ``[N]``, or one uint32.

Raises:
    ValueError: a code that is not one; names the index of the mask.)");
  module.def("toBbox", &to_bbox, py::arg("rleObjs"), R"(Tight boxes of codes.

Args:
    rleObjs: a list of N codes, which may differ in size, or one code.

Returns:
    float64 ``[N, 4]``, or ``[4]``: x, y, width and height in pixels, zeros where no pixel is set.

Raises:
    ValueError: a code that is not one; names the index of the mask.)");
  module.def("merge", &merge, py::arg("rleObjs"), py::arg("intersect") = 0,
             R"(The union of codes, or their intersection.

Args:
    rleObjs: a list of codes.
    intersect: whether a pixel must be set in all of them; else in any.

Returns:
    A code; of size ``[0, 0]`` where the list is empty or sizes differ.

Raises:
    ValueError: a code that is not one; names the index of the mask.)");
}

}  // namespace s2d::host
