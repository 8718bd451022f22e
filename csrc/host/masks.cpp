// Masks as numpy has them (bytes, column-major) to codes and back.

#include "arrays.h"
#include "codes.h"
#include "columns.h"
#include "host.h"

namespace s2d::host {

namespace {

py::object encode(const py::object& bimask) {
  if (!py::isinstance<py::array>(bimask)) {
    throw py::type_error(std::string("s2d::rle.encode: expected bimask a numpy array, got ") +
                         Py_TYPE(bimask.ptr())->tp_name);
  }
  const auto array = py::reinterpret_borrow<py::array>(bimask);
  if (array.ndim() != 2 && array.ndim() != 3) return py::none();
  const py::dtype dtype = array.dtype();
  if (dtype.itemsize() != 1 || (dtype.kind() != 'u' && dtype.kind() != 'b')) {
    throw py::value_error("s2d::rle.encode: expected bimask uint8 or bool, got " + std::string(py::str(dtype)));
  }
  if (!(array.flags() & py::array::f_style)) {
    throw py::value_error("s2d::rle.encode: expected bimask in Fortran order, got one that is not Fortran contiguous");
  }
  const Size size{array.shape(0), array.shape(1)};
  if (size.pixels() > rle::kMaxPixels) {
    throw py::value_error("s2d::rle.encode: expected masks of at most 2^31 - 1 pixels, got " + text_of(size));
  }
  const int64_t number = array.ndim() == 3 ? array.shape(2) : 1;
  std::vector<int32_t> counts;
  std::vector<int64_t> ends;
  {
    const Unlocked unlocked(number * size.pixels() > kLongWork);
    const auto* pixels = static_cast<const uint8_t*>(array.data());
    for (int64_t n = 0; n < number; ++n) {
      append_runs(pixels + n * size.pixels(), size.pixels(), counts);
      ends.push_back(static_cast<int64_t>(counts.size()));
    }
  }
  if (array.ndim() == 2) return write_code(size, counts.data(), ends[0]);
  py::list codes(number);
  for (int64_t n = 0, begin = 0; n < number; begin = ends[n++]) {
    PyList_SET_ITEM(codes.ptr(), n, write_code(size, counts.data() + begin, ends[n] - begin).release().ptr());
  }
  return codes;
}

py::object zeros(const std::vector<int64_t>& shape) {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> storage;
  py::tuple lengths(shape.size());
  for (size_t axis = 0; axis < shape.size(); ++axis) lengths[axis] = py::int_(shape[axis]);
  return numpy_function(storage, "zeros")(lengths, py::dtype::of<uint8_t>(), "F");
}

// `shape` is [H, W] or [H, W, N].
py::object draw_codes(const Codes& codes, const std::vector<int64_t>& shape) {
  py::object result = zeros(shape);
  auto* pixels = static_cast<uint8_t*>(py::reinterpret_borrow<py::array>(result).mutable_data());
  const int64_t step = shape[0] * shape[1];
  const uint8_t* end = pixels + codes.number() * step;
  {
    const Unlocked unlocked(end - pixels > kLongWork);
    for (int64_t n = 0; n < codes.number(); ++n) {
      draw_runs(codes.runs(n), codes.number_of_runs(n), pixels + n * step, end);
    }
  }
  return result;
}

py::object decode(const py::object& objects) {
  if (!PyList_CheckExact(objects.ptr())) {
    const Codes code = read_code("rle.decode", objects);
    return draw_codes(code, {code.sizes[0].height, code.sizes[0].width});
  }
  const Codes codes = read_codes("rle.decode", objects);
  if (codes.number() == 0) return zeros({0, 0, 0});
  for (int64_t n = 1; n < codes.number(); ++n) {
    if (codes.sizes[n] == codes.sizes[0]) continue;
    refuse("rle.decode", "mask", n,
           "expected masks of one size, got " + text_of(codes.sizes[n]) + " after " + text_of(codes.sizes[0]));
  }
  return draw_codes(codes, {codes.sizes[0].height, codes.sizes[0].width, codes.number()});
}

}  // namespace

void add_masks(py::module_& module) {
  module.def("encode", &encode, py::arg("bimask"), R"(Run-length codes of masks.

Args:
    bimask: uint8 or bool ``[H, W]`` or ``[H, W, N]`` in Fortran order; any non-zero is set.

Returns:
    A code ``{"size": [H, W], "counts": bytes}``, or a list of N of them.

Raises:
    ValueError: another dtype, another order, 2^31 pixels or more.)");
  module.def("decode", &decode, py::arg("rleObjs"), R"(The masks of codes.

Args:
    rleObjs: a list of N codes of one size, or one code.

Returns:
    uint8 ``[H, W, N]``, or ``[H, W]`` for one code, 0 or 1, in Fortran order.

Raises:
    ValueError: a code that is not one, or sizes that differ; names the index of the mask.)");
}

}  // namespace s2d::host
