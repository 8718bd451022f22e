// numpy's own conversions, with numpy's own words where they fail.
#pragma once

#include <pybind11/numpy.h>

namespace s2d::host {

// numpy.array(object, dtype=Number, order="C"); the object itself where it is one.
template <typename Number>
pybind11::array_t<Number> numpy_array(pybind11::handle object) {
  namespace py = pybind11;
  if (py::isinstance<py::array_t<Number, py::array::c_style>>(object)) {
    return py::reinterpret_borrow<py::array_t<Number>>(object);
  }
  static const py::object make = py::module_::import("numpy").attr("array");
  static const py::object dtype = py::dtype::of<Number>();
  return make(object, py::arg("dtype") = dtype, py::arg("order") = "C");
}

}  // namespace s2d::host
