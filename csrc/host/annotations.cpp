// Numbers out of lists of COCO's annotations: one look at each dictionary, as most of the time goes by waiting for it.

#include <pybind11/numpy.h>

#include "arrays.h"
#include "codes.h"
#include "host.h"

namespace s2d::host {

namespace {

constexpr const char* kName = "metrics";

// The entry of an annotation; null where it is missing. Borrowed, or kept alive by `holder`.
PyObject* entry(py::handle annotation, py::handle key, py::object& holder) {
  if (PyDict_CheckExact(annotation.ptr())) {
    PyObject* found = PyDict_GetItemWithError(annotation.ptr(), key.ptr());
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    return found;
  }
  PyObject* found = PyObject_GetItem(annotation.ptr(), key.ptr());
  if (!found) {
    if (!PyErr_ExceptionMatches(PyExc_KeyError)) throw py::error_already_set();
    PyErr_Clear();
    return nullptr;
  }
  holder = py::reinterpret_steal<py::object>(found);
  return found;
}

double number_of(PyObject* value, const py::str& key, int64_t index) {
  const double number = PyFloat_AsDouble(value);
  if (number == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    refuse(kName, "annotation", index,
           "expected a number for '" + std::string(key) + "', got " + Py_TYPE(value)->tp_name);
  }
  return number;
}

PyObject* required(py::handle annotation, const py::str& key, int64_t index, py::object& holder) {
  PyObject* value = entry(annotation, key, holder);
  if (!value) refuse(kName, "annotation", index, "missing key '" + std::string(key) + "'");
  return value;
}

int64_t place_of(py::handle annotation, const py::str& key, const py::dict& places, int64_t index) {
  py::object holder;
  PyObject* place = PyDict_GetItemWithError(places.ptr(), required(annotation, key, index, holder));
  if (!place && PyErr_Occurred()) throw py::error_already_set();
  return place ? PyLong_AsLongLong(place) : -1;
}

void read_box(py::handle annotation, const py::str& key, int64_t index, double* out) {
  py::object holder;
  const auto box = py::reinterpret_steal<py::object>(PySequence_Fast(required(annotation, key, index, holder), ""));
  if (!box) throw py::error_already_set();
  if (PySequence_Fast_GET_SIZE(box.ptr()) != 4) refuse(kName, "annotation", index, "expected 4 numbers for 'bbox'");
  for (int i = 0; i < 4; ++i) out[i] = number_of(PySequence_Fast_GET_ITEM(box.ptr(), i), key, index);
}

py::str interned(const char* text) { return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(text)); }

py::tuple annotations(const py::list& list, const py::str& unit, const py::dict& units, const py::dict& categories,
                      const py::object& area, const py::str& number, const py::object& otherwise, bool with_boxes) {
  const py::str category = interned("category_id"), box = interned("bbox");
  const py::ssize_t length = PyList_GET_SIZE(list.ptr());
  py::array_t<int64_t> unit_out(length), category_out(length);
  const bool with_area = !area.is_none();
  py::array_t<double> area_out(with_area ? length : 0), number_out(length),
      boxes({with_boxes ? length : 0, py::ssize_t{4}});
  int64_t *units_to = unit_out.mutable_data(), *categories_to = category_out.mutable_data();
  double *areas_to = area_out.mutable_data(), *numbers_to = number_out.mutable_data();
  double* boxes_to = boxes.mutable_data();
  const bool needed = otherwise.is_none();
  const double missing = needed ? 0 : otherwise.cast<double>();
  for (Py_ssize_t n = 0; n < length; ++n) {
    // Its length anew each time: a key that is looked up may run Python.
    if (n >= PyList_GET_SIZE(list.ptr())) throw py::index_error("s2d::metrics: the list became shorter");
    py::object holder;
    const auto annotation = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(list.ptr(), n));
    units_to[n] = place_of(annotation, unit, units, n);
    categories_to[n] = place_of(annotation, category, categories, n);
    if (with_area) areas_to[n] = number_of(required(annotation, area, n, holder), area, n);
    PyObject* value = needed ? required(annotation, number, n, holder) : entry(annotation, number, holder);
    numbers_to[n] = value ? number_of(value, number, n) : missing;
    if (with_boxes) read_box(annotation, box, n, boxes_to + 4 * n);
  }
  return py::make_tuple(category_out, unit_out, area_out, number_out, boxes);
}

}  // namespace

void add_annotations(py::module_& module) {
  module.def("annotations", &annotations, py::arg("annotations"), py::arg("unit"), py::arg("units"),
             py::arg("categories"), py::arg("area"), py::arg("number"), py::arg("otherwise"), py::arg("with_boxes"),
             R"(Columns of a list of annotations.

Args:
    annotations: a list of N dictionaries.
    unit: key of the image or video; `units` and `categories` tell the places of its values and of category ids.
    area: key of the area, or None.
    number: key of another number; `otherwise` where an annotation lacks it, unless that is None.
    with_boxes: whether the key bbox is read.

Returns:
    int64 ``[N]`` places of categories and of units, -1 for unknown ones; float64 ``[N]`` areas and numbers; float64
    ``[N, 4]`` boxes. What was not asked for is empty.

Raises:
    ValueError: a missing key, something that is no number; names the index of the annotation.)");
}

}  // namespace s2d::host
