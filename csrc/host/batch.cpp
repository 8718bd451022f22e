// Batches of codes as arrays, from and to what COCO's files hold: all masks in one call.

#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../rle/coco_strings.h"
#include "../rle/merge.h"
#include "../rle/polygons.h"
#include "arrays.h"
#include "codes.h"
#include "host.h"

namespace s2d::host {

namespace {

constexpr const char* kName = "RLE.from_coco";

// An array that takes over the memory of a vector.
template <typename Number>
py::array_t<Number> array_of(std::vector<Number>&& numbers) {
  auto* owned = new std::vector<Number>(std::move(numbers));
  const py::capsule owner(owned, [](void* pointer) { delete static_cast<std::vector<Number>*>(pointer); });
  return py::array_t<Number>(static_cast<py::ssize_t>(owned->size()), owned->data(), owner);
}

py::array_t<double> numbers_of(py::handle object) {
  const auto numbers = numpy_array<double>(object);
  for (py::ssize_t i = 0; i < numbers.size(); ++i) {
    if (!(std::abs(numbers.data()[i]) < rle::kMaxCoordinate)) {
      throw py::value_error("expected coordinates between -4e8 and 4e8, got " + std::to_string(numbers.data()[i]));
    }
  }
  return numbers;
}

void append_box(py::handle object, Size size, std::vector<int32_t>& counts) {
  const py::array_t<double> box = numbers_of(object);
  if (box.size() != 4) {
    throw py::value_error("expected a box of x, y, width and height, got " + std::to_string(box.size()) + " numbers");
  }
  const double left = box.data()[0], top = box.data()[1], right = left + box.data()[2], bottom = top + box.data()[3];
  const double corners[] = {left, top, left, bottom, right, bottom, right, top};
  rle::polygon_runs(corners, 4, size.height, size.width, counts);
}

void append_polygons(const py::sequence& polygons, Size size, std::vector<int32_t>& counts) {
  std::vector<std::vector<int32_t>> parts(polygons.size());
  std::vector<rle::RunsView> views;
  for (size_t p = 0; p < parts.size(); ++p) {
    const py::array_t<double> corners = numbers_of(polygons[p]);
    if (corners.size() % 2) {
      throw py::value_error("expected an even number of coordinates, got " + std::to_string(corners.size()));
    }
    rle::polygon_runs(corners.data(), corners.size() / 2, size.height, size.width, parts[p]);
    views.push_back({parts[p].data(), static_cast<int64_t>(parts[p].size())});
  }
  rle::Merger().merge(views, size.height, size.width, false, counts);
}

// A box, the polygons of a mask or None as a code.
py::dict code_of(py::handle object, std::optional<Size> size) {
  if (!size) throw py::value_error("expected a size for what brings none, got none");
  std::vector<int32_t> counts;
  const bool numbers = py::isinstance<py::array>(object) || py::isinstance<py::sequence>(object);
  if (object.is_none() || (numbers && py::len(object) == 0)) {
    counts.push_back(static_cast<int32_t>(size->pixels()));
  } else if (!numbers || py::isinstance<py::str>(object)) {
    throw py::type_error(std::string("expected a code, polygons, a box or None, got ") +
                         Py_TYPE(object.ptr())->tp_name);
  } else if (const auto items = py::reinterpret_borrow<py::sequence>(object);
             PyNumber_Check(py::object(items[0]).ptr()) && !py::isinstance<py::array>(items[0])) {
    append_box(object, *size, counts);
  } else {
    append_polygons(items, *size, counts);
  }
  py::dict code;
  code["size"] = py::make_tuple(size->height, size->width);
  code["counts"] = array_of(std::move(counts));
  return code;
}

py::tuple from_coco(const py::sequence& objects, const py::object& sizes) {
  std::vector<Size> given;
  if (!sizes.is_none()) {
    const auto numbers = numpy_array<int64_t>(sizes);
    for (py::ssize_t i = 0; i + 1 < numbers.size(); i += 2) {
      Size& size = given.emplace_back();
      const auto wrong = read_size(py::int_(numbers.data()[i]), py::int_(numbers.data()[i + 1]), size);
      if (wrong) throw py::value_error(std::string("s2d::") + kName + ": " + *wrong);
    }
    if (given.size() != 1 && given.size() != objects.size()) {
      throw py::value_error(std::string("s2d::") + kName + ": expected one size or one a mask, got " +
                            std::to_string(given.size()) + " for " + std::to_string(objects.size()) + " masks");
    }
  }
  CodesReader reader(kName);
  for (size_t n = 0; n < objects.size(); ++n) {
    const py::object object = objects[n];
    const auto index = static_cast<int64_t>(n);
    try {
      if (PyDict_Check(object.ptr())) {
        reader.add(object);
      } else {
        std::optional<Size> size;
        if (!given.empty()) size = given[given.size() == 1 ? 0 : n];
        reader.add(code_of(object, size));
      }
    } catch (const py::value_error& error) {
      // What the reader refuses names its mask.
      if (std::string_view(error.what()).starts_with("s2d::")) throw;
      refuse(kName, "mask", index, error.what());
    } catch (const py::type_error& error) {
      refuse(kName, "mask", index, error.what());
    } catch (py::error_already_set& error) {
      if (error.matches(PyExc_KeyError)) {
        refuse(kName, "mask", index, "missing key " + std::string(py::repr(error.value().attr("args")[py::int_(0)])));
      }
      if (!error.matches(PyExc_TypeError) && !error.matches(PyExc_ValueError)) throw;
      refuse(kName, "mask", index, py::str(error.value()));
    }
  }
  Codes codes = reader.read();
  std::vector<int32_t> shapes;
  for (const Size& size : codes.sizes) {
    shapes.push_back(static_cast<int32_t>(size.height));
    shapes.push_back(static_cast<int32_t>(size.width));
  }
  return py::make_tuple(array_of(std::move(codes.counts)), array_of(std::move(codes.offsets)),
                        array_of(std::move(shapes)).reshape({py::ssize_t{-1}, py::ssize_t{2}}));
}

// Looking for garbage among a hundred thousand dictionaries that are being made takes longer than making them.
class NoCollection {
 public:
  ~NoCollection() {
    if (collects_) PyGC_Enable();
  }

 private:
  const bool collects_ = PyGC_Disable();
};

using Counts = py::array_t<int32_t, py::array::c_style>;
using Offsets = py::array_t<int64_t, py::array::c_style>;

py::list to_coco(const Counts& counts, const Offsets& offsets, const Counts& sizes, bool compressed) {
  const int64_t number = offsets.size() - 1;
  bool fine = number >= 0 && sizes.size() == 2 * number && offsets.data()[0] >= 0;
  for (int64_t n = 0; fine && n < number; ++n) fine = offsets.data()[n] <= offsets.data()[n + 1];
  if (!fine || offsets.data()[number] > counts.size()) {
    throw py::value_error(
        "s2d::RLE.to_coco: expected offsets [N + 1] that ascend within counts and sizes [N, 2], got " +
        std::to_string(offsets.size()) + " offsets for " + std::to_string(sizes.size() / 2) + " masks");
  }
  const NoCollection none;
  py::list codes(number);
  std::string text;
  for (int64_t n = 0; n < number; ++n) {
    const int32_t* runs = counts.data() + offsets.data()[n];
    const int64_t length = offsets.data()[n + 1] - offsets.data()[n];
    py::dict code;
    py::list size(2);
    for (int64_t i = 0; i < 2; ++i) size[i] = py::int_(sizes.data()[2 * n + i]);
    code["size"] = size;
    if (compressed) {
      text.clear();
      rle::append_string(runs, length, text);
      code["counts"] = py::str(text);
    } else {
      py::list listed(length);
      for (int64_t r = 0; r < length; ++r) listed[r] = py::int_(runs[r]);
      code["counts"] = listed;
    }
    codes[n] = code;
  }
  return codes;
}

}  // namespace

void add_batch(py::module_& module) {
  module.def("from_coco", &from_coco, py::arg("objects"), py::arg("sizes"),
             "Codes, polygons, boxes and None to counts int32 [R], offsets int64 [N + 1] and sizes int32 [N, 2].");
  module.def("to_coco", &to_coco, py::arg("counts"), py::arg("offsets"), py::arg("sizes"), py::arg("compressed"),
             "The dictionaries of a batch that holds together.");
}

}  // namespace s2d::host
