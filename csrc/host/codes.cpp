#include "codes.h"

#include <numeric>

#include "../rle/coco_strings.h"
#include "../rle/rle.h"
#include "arrays.h"

namespace s2d::host {

namespace {

struct Keys {
  PyObject* size = PyUnicode_InternFromString("size");
  PyObject* counts = PyUnicode_InternFromString("counts");
};

const Keys& keys() {
  static const Keys made;
  return made;
}

py::object item(py::handle object, PyObject* key) {
  if (PyDict_CheckExact(object.ptr())) {
    if (PyObject* found = PyDict_GetItemWithError(object.ptr(), key)) return py::reinterpret_borrow<py::object>(found);
    if (!PyErr_Occurred()) PyErr_SetObject(PyExc_KeyError, key);
    throw py::error_already_set();
  }
  PyObject* found = PyObject_GetItem(object.ptr(), key);
  if (!found) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(found);
}

py::object item_at(py::handle sequence, Py_ssize_t index) {
  PyObject* found = PySequence_GetItem(sequence.ptr(), index);
  if (!found) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(found);
}

std::optional<std::string> append_run(int64_t run, std::vector<int32_t>& runs) {
  if (run < 0) return "expected runs of at least 0 pixels, got " + std::to_string(run);
  if (run > rle::kMaxPixels) return "expected runs of at most 2^31 - 1 pixels, got a longer one";
  runs.push_back(static_cast<int32_t>(run));
  return std::nullopt;
}

std::optional<std::string> read_uncompressed(py::handle counts, std::vector<int32_t>& runs) {
  if (PyList_CheckExact(counts.ptr()) || PyTuple_CheckExact(counts.ptr())) {
    runs.reserve(PySequence_Fast_GET_SIZE(counts.ptr()));
    // Its length anew each time: what is cut to an integer may run Python.
    for (Py_ssize_t r = 0; r < PySequence_Fast_GET_SIZE(counts.ptr()); ++r) {
      const auto run = py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(counts.ptr(), r));
      if (auto wrong = append_run(integer(run), runs)) return wrong;
    }
    return std::nullopt;
  }
  if (!py::isinstance<py::array>(counts)) {
    throw py::type_error(std::string("s2d::rle: expected counts bytes, str or a list of runs, got ") +
                         Py_TYPE(counts.ptr())->tp_name);
  }
  const auto array = numpy_array<int64_t>(counts);
  if (array.ndim() != 1) return "expected counts [R], got " + std::to_string(array.ndim()) + " dimensions";
  runs.reserve(array.size());
  for (py::ssize_t r = 0; r < array.size(); ++r) {
    if (auto wrong = append_run(array.data()[r], runs)) return wrong;
  }
  return std::nullopt;
}

}  // namespace

std::string text_of(Size size) { return std::to_string(size.height) + " x " + std::to_string(size.width); }

void refuse(const char* function, const char* kind, int64_t index, const std::string& reason) {
  throw py::value_error(std::string("s2d::") + function + ": " + kind + " " + std::to_string(index) + ": " + reason);
}

int64_t integer(py::handle value) {
  py::object cut;
  if (!PyLong_Check(value.ptr())) {
    if (!PyNumber_Check(value.ptr())) {
      throw py::type_error(std::string("s2d::rle: expected an integer, got ") + Py_TYPE(value.ptr())->tp_name);
    }
    cut = py::reinterpret_steal<py::object>(PyNumber_Long(value.ptr()));
    if (!cut) throw py::error_already_set();
    value = cut;
  }
  int overflow = 0;
  const long long result = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
  // Nothing that is counted here comes near the ends of the range.
  if (overflow) return overflow > 0 ? INT64_MAX : INT64_MIN;
  if (result == -1 && PyErr_Occurred()) throw py::error_already_set();
  return result;
}

std::optional<std::string> read_size(py::handle height, py::handle width, Size& size) {
  size = {integer(height), integer(width)};
  const auto fits = [](int64_t length) { return 0 <= length && length <= rle::kMaxPixels; };
  if (fits(size.height) && fits(size.width) && size.pixels() <= rle::kMaxPixels) return std::nullopt;
  return "expected a mask of 0 to 2^31 - 1 pixels, got " + text_of(size);
}

void CodesReader::add(py::handle object) {
  Source source;
  const py::object size = item(object, keys().size);
  std::optional<std::string> wrong = read_size(item_at(size, 0), item_at(size, 1), source.size);
  py::object counts = item(object, keys().counts);
  if (PyBytes_Check(counts.ptr())) {
    source.text = {PyBytes_AS_STRING(counts.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(counts.ptr()))};
  } else if (PyUnicode_Check(counts.ptr())) {
    Py_ssize_t length = 0;
    const char* text = PyUnicode_AsUTF8AndSize(counts.ptr(), &length);
    if (!text) throw py::error_already_set();
    source.text = {text, static_cast<size_t>(length)};
  } else if (!wrong) {
    wrong = read_uncompressed(counts, source.runs);
  }
  if (wrong) refuse(function_, "mask", static_cast<int64_t>(sources_.size()), *wrong);
  source.holder = std::move(counts);
  characters_ += source.text.size();
  sources_.push_back(std::move(source));
}

std::optional<std::string> CodesReader::read_source(Source& source, Codes& codes) const {
  const size_t before = codes.counts.size();
  if (source.text.data()) {
    if (std::string wrong = rle::parse_string(source.text, codes.counts); !wrong.empty()) return wrong;
  } else {
    codes.counts.insert(codes.counts.end(), source.runs.begin(), source.runs.end());
  }
  const int64_t sum =
      std::accumulate(codes.counts.begin() + static_cast<int64_t>(before), codes.counts.end(), int64_t{0});
  if (sum == source.size.pixels()) return std::nullopt;
  return "expected runs that add up to " + text_of(source.size) + " pixels, got " + std::to_string(sum);
}

Codes CodesReader::read() {
  Codes codes;
  int64_t broken = -1;
  std::optional<std::string> wrong;
  {
    const Unlocked unlocked(static_cast<int64_t>(characters_) > kLongWork);
    codes.counts.reserve(characters_);
    for (size_t n = 0; n < sources_.size(); ++n) {
      wrong = read_source(sources_[n], codes);
      if (wrong) {
        broken = static_cast<int64_t>(n);
        break;
      }
      codes.offsets.push_back(static_cast<int64_t>(codes.counts.size()));
      codes.sizes.push_back(sources_[n].size);
    }
  }
  if (wrong) refuse(function_, "mask", broken, *wrong);
  return codes;
}

Codes read_codes(const char* function, py::handle objects) {
  CodesReader reader(function);
  if (PyList_Check(objects.ptr())) {
    // Its length anew each time: a key that is looked up may run Python.
    for (Py_ssize_t n = 0; n < PyList_GET_SIZE(objects.ptr()); ++n) {
      reader.add(py::reinterpret_borrow<py::object>(PyList_GET_ITEM(objects.ptr(), n)));
    }
  } else {
    const py::ssize_t number = PyObject_Size(objects.ptr());
    if (number < 0) throw py::error_already_set();
    for (const py::handle object : py::reinterpret_borrow<py::object>(objects)) reader.add(object);
  }
  return reader.read();
}

Codes read_code(const char* function, py::handle object) {
  CodesReader reader(function);
  reader.add(object);
  return reader.read();
}

py::dict write_code(Size size, const int32_t* counts, int64_t runs) {
  std::string text;
  rle::append_string(counts, runs, text);
  py::list pair(2);
  PyList_SET_ITEM(pair.ptr(), 0, PyLong_FromLongLong(size.height));
  PyList_SET_ITEM(pair.ptr(), 1, PyLong_FromLongLong(size.width));
  py::dict code;
  const py::bytes bytes(text);
  if (PyDict_SetItem(code.ptr(), keys().size, pair.ptr()) || PyDict_SetItem(code.ptr(), keys().counts, bytes.ptr())) {
    throw py::error_already_set();
  }
  return code;
}

}  // namespace s2d::host
