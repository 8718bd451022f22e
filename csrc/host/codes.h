// COCO's dictionaries of masks, {"size": [height, width], "counts": ...}, read and written.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace s2d::host {

namespace py = pybind11;

struct Size {
  int64_t height = 0, width = 0;
  int64_t pixels() const { return height * width; }
  bool operator==(const Size&) const = default;
};

std::string text_of(Size size);

// Throws ValueError: "s2d::<function>: <kind> <index>: <reason>".
[[noreturn]] void refuse(const char* function, const char* kind, int64_t index, const std::string& reason);

// An integer as pycocotools takes one: an int, or a number that is cut to one. TypeError where it is neither.
int64_t integer(py::handle value);

// The size of a mask; a sentence where it cannot be one.
std::optional<std::string> read_size(py::handle height, py::handle width, Size& size);

// The runs of some masks, one mask after another, checked: they add up to the size, none is negative.
struct Codes {
  std::vector<int32_t> counts;
  std::vector<int64_t> offsets{0};
  std::vector<Size> sizes;

  int64_t number() const { return static_cast<int64_t>(sizes.size()); }
  const int32_t* runs(int64_t n) const { return counts.data() + offsets[n]; }
  int64_t number_of_runs(int64_t n) const { return offsets[n + 1] - offsets[n]; }
};

// Reads dictionaries one by one, then all their runs at once, without the interpreter's lock where they are many.
class CodesReader {
 public:
  explicit CodesReader(const char* function) : function_(function) {}
  void add(py::handle object);
  Codes read();

 private:
  struct Source {
    py::object holder;  // keeps `text` alive while the lock is released
    std::string_view text;
    std::vector<int32_t> runs;  // of uncompressed counts
    Size size;
  };
  std::optional<std::string> read_source(Source& source, Codes& codes) const;

  const char* function_;
  std::vector<Source> sources_;
  size_t characters_ = 0;
};

// Of a list (or another sequence) of dictionaries, or of one dictionary.
Codes read_codes(const char* function, py::handle objects);
Codes read_code(const char* function, py::handle object);

py::dict write_code(Size size, const int32_t* counts, int64_t runs);

// Releases the interpreter's lock while work is done that takes longer than that.
class Unlocked {
 public:
  explicit Unlocked(bool worthwhile) {
    if (worthwhile) release_.emplace();
  }

 private:
  std::optional<py::gil_scoped_release> release_;
};

// Pixels or characters that take some ten microseconds.
constexpr int64_t kLongWork = 1 << 15;

}  // namespace s2d::host
