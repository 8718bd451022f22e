// numpy's own conversions, with numpy's own words where they fail.
#pragma once

#include <pybind11/gil_safe_call_once.h>
#include <pybind11/numpy.h>

namespace s2d::host {

// A function of numpy, looked up once and never given back: the interpreter may end before this module.
inline const pybind11::object& numpy_function(pybind11::gil_safe_call_once_and_store<pybind11::object>& storage,
                                              const char* name) {
  return storage.call_once_and_store_result([&] { return pybind11::module_::import("numpy").attr(name); }).get_stored();
}

// numpy.array(object, dtype=Number, order="C"); the object itself where it is one.
template <typename Number>
pybind11::array_t<Number> numpy_array(pybind11::handle object) {
  namespace py = pybind11;
  if (py::isinstance<py::array_t<Number, py::array::c_style>>(object)) {
    return py::reinterpret_borrow<py::array_t<Number>>(object);
  }
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> storage;
  return numpy_function(storage, "array")(object, py::arg("dtype") = py::dtype::of<Number>(), py::arg("order") = "C");
}

}  // namespace s2d::host
