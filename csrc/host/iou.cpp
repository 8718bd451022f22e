// IoU of codes and of boxes, to the last bit as COCO computes it.

#include <memory>

#include "../rle/patch.h"
#include "arrays.h"
#include "boxes.h"
#include "codes.h"
#include "host.h"

namespace s2d::host {

namespace {

constexpr const char* kName = "s2d::rle.iou: ";

// Words of the masks that every other mask passes over: they stay in the second-level cache.
constexpr int64_t kTileWords = 1 << 15;

// The masks of some codes, ready for counting: as bits where each meets so many others that drawing them pays.
struct Patches {
  Patches(const Codes& codes, bool as_bits) {
    int64_t total = 0;
    for (int64_t n = 0; n < codes.number(); ++n) {
      const Size size = codes.sizes[n];
      patches.push_back(rle::patch_of(codes.runs(n), codes.number_of_runs(n), size.height, size.width));
      if (as_bits && patches.back().wants_words()) total += patches.back().size();
    }
    if (!total) return;
    words = std::make_unique<uint64_t[]>(total);
    uint64_t* own = words.get();
    for (rle::Patch& patch : patches) {
      if (!patch.wants_words()) continue;
      rle::draw(patch.counts, patch.runs, patch.height, patch.first_band(), patch.first_column(), patch.columns(), own);
      patch.words = own;
      own += patch.size();
    }
  }

  std::vector<rle::Patch> patches;
  std::unique_ptr<uint64_t[]> words;
};

// A patch's own box need not be tight.
rle::Box tight_box(const Codes& codes, int64_t n) {
  return rle::box_of(codes.runs(n), codes.number_of_runs(n), codes.sizes[n].height);
}

// out[g, d]; -1 where the sizes of two masks differ and their boxes meet.
void code_iou(const Codes& dt, const Codes& gt, const uint8_t* crowd, double* out) {
  const bool as_bits = dt.number() * gt.number() > dt.number() + gt.number();
  const Patches of_dt(dt, as_bits), of_gt(gt, as_bits);
  const int64_t number = dt.number();
  std::vector<int64_t> shared(number * gt.number());
  for (int64_t begin = 0, end; begin < number; begin = end) {
    end = begin;
    for (int64_t words = 0; end < number && (end == begin || words < kTileWords);) words += of_dt.patches[end++].size();
    for (int64_t g = 0; g < gt.number(); ++g) {
      rle::add_shared(of_gt.patches[g], of_dt.patches.data() + begin, end - begin, shared.data() + g * number + begin);
    }
  }
  for (int64_t g = 0; g < gt.number(); ++g) {
    for (int64_t d = 0; d < number; ++d) {
      const rle::Patch &detected = of_dt.patches[d], &truth = of_gt.patches[g];
      const int64_t both = shared[g * number + d];
      const int64_t either = crowd[g] ? detected.area : detected.area + truth.area - both;
      double& iou = out[g * number + d];
      iou = both ? static_cast<double>(both) / static_cast<double>(either) : 0.0;
      if (dt.sizes[d] != gt.sizes[g]) iou = tight_box(dt, d).meets(tight_box(gt, g)) ? -1.0 : 0.0;
    }
  }
}

// out[d]: IoU of every box with box g of `truth`.
S2D_LOOP void column_iou_loop(const Boxes& dt, const Boxes& truth, int64_t g, bool crowd, double* out) {
  box_iou_loop(dt, 0, static_cast<int64_t>(dt.area.size()), truth, g, crowd, out, 1);
}
S2D_MULTIVERSION(void, column_iou, (const Boxes& dt, const Boxes& truth, int64_t g, bool crowd, double* out),
                 (dt, truth, g, crowd, out))

// One side of the question: codes, boxes, or nothing.
struct Side {
  int64_t number = 0;
  bool boxes = false;
  Codes codes;
  py::array_t<double> corners;
};

bool is_list_or_array(py::handle object) {
  return PyList_CheckExact(object.ptr()) || py::isinstance<py::array>(object);
}

py::array_t<double> box_array(const py::object& objects, const char* name) {
  const auto corners = numpy_array<double>(objects);
  if (corners.ndim() == 2 && corners.shape(1) == 4) return corners;
  throw py::value_error(std::string(kName) + "expected " + name +
                        " boxes [N, 4]: numpy ndarray input is only for *bounding boxes*, got " +
                        std::string(py::str(corners.attr("shape"))));
}

Side read_side(const py::object& objects, const char* name) {
  Side side;
  side.number = PyObject_Size(objects.ptr());
  if (side.number < 0) throw py::error_already_set();
  if (side.number == 0) return side;
  if (py::isinstance<py::array>(objects)) {
    side.boxes = true;
    side.corners = box_array(objects, name);
    return side;
  }
  if (!PyList_CheckExact(objects.ptr())) {
    throw py::type_error(std::string(kName) + "expected " + name +
                         " a list of codes or boxes or an array of boxes: unrecognized type, got " +
                         Py_TYPE(objects.ptr())->tp_name);
  }
  const auto list = py::reinterpret_borrow<py::list>(objects);
  bool boxes = true, codes = true;
  // Its length anew each time, and at the end: an object's length may run Python.
  for (Py_ssize_t n = 0; n < PyList_GET_SIZE(list.ptr()); ++n) {
    const auto object = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(list.ptr(), n));
    const bool code = PyDict_CheckExact(object.ptr());
    codes &= code;
    if (code) {
      boxes = false;
      continue;
    }
    const Py_ssize_t numbers = PyObject_Size(object.ptr());
    if (numbers < 0) throw py::error_already_set();
    boxes &= numbers == 4 && is_list_or_array(object);
  }
  if (!boxes && !codes) {
    throw py::value_error(std::string(kName) + "expected " + name +
                          " of one kind: list input can be bounding box (Nx4) or RLEs ([RLE]), got neither");
  }
  side.boxes = boxes;
  if (boxes) {
    side.corners = box_array(objects, name);
    side.number = side.corners.shape(0);
  } else {
    side.codes = read_codes((std::string("rle.iou: ") + name).c_str(), objects);
    side.number = side.codes.number();
  }
  return side;
}

// Flags of the ground truth: what numpy makes uint8 of, without asking it where they are a list of small integers.
std::vector<uint8_t> read_flags(const py::object& flags) {
  std::vector<uint8_t> result;
  if (PyList_CheckExact(flags.ptr())) {
    for (const py::handle flag : py::reinterpret_borrow<py::list>(flags)) {
      if (!PyLong_Check(flag.ptr())) break;
      const int64_t value = integer(flag);
      if (value < 0 || value > 255) break;
      result.push_back(static_cast<uint8_t>(value));
    }
    if (static_cast<Py_ssize_t>(result.size()) == PyList_GET_SIZE(flags.ptr())) return result;
  }
  const auto array = numpy_array<uint8_t>(flags);
  if (array.ndim() != 1) {
    throw py::value_error(std::string(kName) + "expected pyiscrowd [M], got " + std::to_string(array.ndim()) +
                          " dimensions");
  }
  return {array.data(), array.data() + array.size()};
}

py::object iou(const py::object& dt, const py::object& gt, const py::object& crowd) {
  const std::vector<uint8_t> flags = read_flags(crowd);
  const Side detected = read_side(dt, "dt"), truth = read_side(gt, "gt");
  if (static_cast<int64_t>(flags.size()) != truth.number) {
    throw py::value_error(std::string(kName) + "expected pyiscrowd of the same length as gt, got " +
                          std::to_string(flags.size()) + " for " + std::to_string(truth.number));
  }
  if (detected.number == 0 || truth.number == 0) return py::list();
  if (detected.boxes != truth.boxes) {
    throw py::type_error(std::string(kName) + "expected dt and gt of one kind: codes or boxes, got both");
  }
  const py::ssize_t rows = detected.number, columns = truth.number, step = sizeof(double);
  py::array_t<double> result({rows, columns}, {step, step * rows});
  double* out = result.mutable_data();
  if (detected.boxes) {
    const Boxes of_dt(detected.corners.data(), rows), of_gt(truth.corners.data(), columns);
    const Unlocked unlocked(rows * columns > kLongWork / 8);
    for (py::ssize_t g = 0; g < columns; ++g) column_iou(of_dt, of_gt, g, flags[g], out + g * rows);
  } else {
    const size_t runs = detected.codes.counts.size() + truth.codes.counts.size();
    const Unlocked unlocked(static_cast<int64_t>(runs) > kLongWork / 64);
    code_iou(detected.codes, truth.codes, flags.data(), out);
  }
  return result;
}

}  // namespace

void add_iou(py::module_& module) {
  module.def("iou", &iou, py::arg("dt"), py::arg("gt"), py::arg("pyiscrowd"),
             R"(IoU of every mask or box with every other.

Args:
    dt, gt: N and M codes of one size (a list), or boxes x, y, width, height (a list, or an array ``[N, 4]``).
    pyiscrowd: ``[M]``: where not 0, the intersection is divided by the area of ``dt`` alone.

Returns:
    float64 ``[N, M]`` in Fortran order; an empty list where one side is empty. -1 for masks of two sizes whose boxes
    meet.

Raises:
    TypeError: codes against boxes, or neither.
    ValueError: a code that is not one (names the index of the mask), a ``pyiscrowd`` of another length than ``gt``.)");
}

}  // namespace s2d::host
