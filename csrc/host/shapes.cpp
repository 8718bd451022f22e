// Polygons, boxes and uncompressed runs to codes.

#include <cmath>

#include "../rle/polygons.h"
#include "arrays.h"
#include "codes.h"
#include "host.h"

namespace s2d::host {

namespace {

constexpr const char* kName = "rle.frPyObjects";

// Polygons, or boxes as polygons of their corners, one after another.
struct Shapes {
  const char* kind;
  std::vector<double> coordinates;
  std::vector<int64_t> ends;

  int64_t number() const { return static_cast<int64_t>(ends.size()); }

  void finish(size_t begin) {
    for (size_t c = begin; c < coordinates.size(); ++c) {
      if (std::abs(coordinates[c]) < rle::kMaxCoordinate) continue;
      refuse(kName, kind, number(), "expected coordinates between -4e8 and 4e8, got " + std::to_string(coordinates[c]));
    }
    ends.push_back(static_cast<int64_t>(coordinates.size()));
  }
};

// Append the numbers of a list, a tuple, an array: of whatever numpy makes float64 of.
void append_numbers(py::handle object, std::vector<double>& numbers) {
  if (PyList_CheckExact(object.ptr()) || PyTuple_CheckExact(object.ptr())) {
    const Py_ssize_t number = PySequence_Fast_GET_SIZE(object.ptr());
    PyObject** items = PySequence_Fast_ITEMS(object.ptr());
    const size_t before = numbers.size();
    numbers.resize(before + number);
    Py_ssize_t i = 0;
    for (; i < number; ++i) {
      if (PyFloat_CheckExact(items[i])) {
        numbers[before + i] = PyFloat_AS_DOUBLE(items[i]);
      } else if (PyLong_CheckExact(items[i])) {
        numbers[before + i] = PyLong_AsDouble(items[i]);
        if (numbers[before + i] == -1 && PyErr_Occurred()) throw py::error_already_set();
      } else {
        break;
      }
    }
    if (i == number) return;
    numbers.resize(before);
  }
  const auto array = numpy_array<double>(object);
  if (array.ndim() != 1) {
    throw py::value_error(std::string("s2d::") + kName + ": expected a polygon [x0, y0, x1, y1, ...], got " +
                          std::to_string(array.ndim()) + " dimensions");
  }
  numbers.insert(numbers.end(), array.data(), array.data() + array.size());
}

void add_polygon(py::handle object, Shapes& shapes) {
  const size_t begin = shapes.coordinates.size();
  append_numbers(object, shapes.coordinates);
  const size_t number = shapes.coordinates.size() - begin;
  if (number % 2) {
    refuse(kName, shapes.kind, shapes.number(),
           "expected an even number of coordinates, got " + std::to_string(number));
  }
  shapes.finish(begin);
}

void add_box(const double* box, Shapes& shapes) {
  const size_t begin = shapes.coordinates.size();
  const double left = box[0], top = box[1], right = left + box[2], bottom = top + box[3];
  shapes.coordinates.insert(shapes.coordinates.end(), {left, top, left, bottom, right, bottom, right, top});
  shapes.finish(begin);
}

void add_box(py::handle object, Shapes& shapes) {
  std::vector<double> box;
  append_numbers(object, box);
  if (box.size() != 4) {
    refuse(kName, shapes.kind, shapes.number(),
           "expected x, y, width and height, got " + std::to_string(box.size()) + " numbers");
  }
  add_box(box.data(), shapes);
}

py::list codes_of(const Shapes& shapes, Size size) {
  std::vector<int32_t> counts;
  std::vector<int64_t> ends;
  {
    const Unlocked unlocked(static_cast<int64_t>(shapes.coordinates.size()) > 128);
    int64_t begin = 0;
    for (const int64_t end : shapes.ends) {
      rle::polygon_runs(shapes.coordinates.data() + begin, (end - begin) / 2, size.height, size.width, counts);
      ends.push_back(static_cast<int64_t>(counts.size()));
      begin = end;
    }
  }
  py::list codes(shapes.number());
  for (int64_t n = 0, begin = 0; n < shapes.number(); begin = ends[n++]) {
    PyList_SET_ITEM(codes.ptr(), n, write_code(size, counts.data() + begin, ends[n] - begin).release().ptr());
  }
  return codes;
}

py::list codes_of(const Codes& codes) {
  py::list result(codes.number());
  for (int64_t n = 0; n < codes.number(); ++n) {
    result[n] = write_code(codes.sizes[n], codes.runs(n), codes.number_of_runs(n));
  }
  return result;
}

bool is_code(py::handle object) {
  return PyDict_Check(object.ptr()) && object.contains("counts") && object.contains("size");
}

[[noreturn]] void refuse_type(py::handle object) {
  throw py::type_error(std::string("s2d::") + kName +
                       ": expected polygons, boxes or uncompressed codes: input type is not supported, got " +
                       Py_TYPE(object.ptr())->tp_name);
}

py::list from_boxes(const py::array& boxes, Size size) {
  if (boxes.ndim() != 2 || boxes.shape(1) != 4) {
    throw py::value_error(std::string("s2d::") + kName + ": expected an array of boxes [N, 4], got " +
                          std::string(py::str(boxes.attr("shape"))));
  }
  const auto numbers = numpy_array<double>(boxes);
  Shapes shapes{"box", {}, {}};
  for (py::ssize_t n = 0; n < numbers.shape(0); ++n) add_box(numbers.data(n, 0), shapes);
  return codes_of(shapes, size);
}

// One polygon or box where `objects` holds numbers, a list of them where it holds lists.
py::object from_list(const py::list& objects, Size size) {
  if (objects.empty()) throw py::index_error(std::string("s2d::") + kName + ": expected at least one object, got none");
  const py::object first = objects[0];
  if (PyNumber_Check(first.ptr()) && !py::isinstance<py::array>(first)) {
    if (objects.size() < 4) refuse_type(objects);
    Shapes shapes{objects.size() == 4 ? "box" : "polygon", {}, {}};
    objects.size() == 4 ? add_box(objects, shapes) : add_polygon(objects, shapes);
    return codes_of(shapes, size)[0];
  }
  if (is_code(first)) return codes_of(read_codes(kName, objects));
  const Py_ssize_t numbers = PyObject_Size(first.ptr());
  if (numbers < 0) throw py::error_already_set();
  if (numbers < 4 || PyDict_Check(first.ptr())) refuse_type(objects);
  Shapes shapes{numbers == 4 ? "box" : "polygon", {}, {}};
  for (Py_ssize_t n = 0; n < PyList_GET_SIZE(objects.ptr()); ++n) {
    const auto object = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(objects.ptr(), n));
    numbers == 4 ? add_box(object, shapes) : add_polygon(object, shapes);
  }
  return codes_of(shapes, size);
}

py::object from_objects(const py::object& objects, const py::object& height, const py::object& width) {
  Size size;
  if (const auto wrong = read_size(height, width, size)) {
    throw py::value_error(std::string("s2d::") + kName + ": " + *wrong);
  }
  if (py::isinstance<py::array>(objects)) return from_boxes(py::reinterpret_borrow<py::array>(objects), size);
  if (PyList_CheckExact(objects.ptr())) return from_list(py::reinterpret_borrow<py::list>(objects), size);
  if (is_code(objects)) return codes_of(read_code(kName, objects))[0];
  refuse_type(objects);
}

}  // namespace

void add_shapes(py::module_& module) {
  module.def("frPyObjects", &from_objects, py::arg("pyobj"), py::arg("h"), py::arg("w"),
             R"(Codes of polygons, boxes or uncompressed codes.

Args:
    pyobj: a list of polygons ``[x0, y0, x1, y1, ...]``, of boxes ``[x, y, width, height]`` or of uncompressed codes
        (``counts`` a list of runs); an array of boxes ``[N, 4]``; one polygon, box or code. In pixels; a list whose
        first item has four numbers is a list of boxes.
    h, w: height and width of the masks; an uncompressed code brings its own.

Returns:
    A list of codes, or one code where there is one object.

Raises:
    IndexError: an empty list.
    TypeError: none of these.
    ValueError: an odd number of coordinates, coordinates that are not finite or beyond 4e8, runs that do not add up
        to the size; names the index of the object.)");
}

}  // namespace s2d::host
