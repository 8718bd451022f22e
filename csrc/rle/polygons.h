// The runs of a polygon as COCO draws it, to the pixel.
//
// Vertices are rounded to a grid five times as fine as the pixels. An edge visits one grid point per step along its
// longer axis. Where it steps across the middle of a pixel column, the mask changes there: all pixels from that one on,
// down the columns, flip; two changes of one pixel cancel. An edge has one such step a column: they are found by
// solving for them, not by walking the edge.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace s2d::rle {

// Coordinates must be finite and smaller than this, so that grid points are numbers of 31 bits.
constexpr double kMaxCoordinate = 4e8;

namespace polygons {

constexpr int64_t kFine = 5;

inline int64_t grid(double coordinate) { return static_cast<int64_t>(kFine * coordinate + .5); }

// The first of the grid columns 5c + 2 at or right of x: an edge changes the mask where it leaves one rightwards.
inline int64_t column_at(int64_t x) { return x <= 2 ? 0 : (x + 2) / kFine; }

// Calls change(column, row) for every column of the image whose middle the edge crosses, row 0 to `height`.
template <typename Change>
void walk_edge(int64_t x0, int64_t y0, int64_t x1, int64_t y1, int64_t height, int64_t width, const Change& change) {
  const int64_t dx = std::abs(x1 - x0), dy = std::abs(y1 - y0);
  const bool along_x = dx >= dy;
  // Steps are counted from the end with the smaller coordinate on the longer axis, whichever way the edge runs.
  if (along_x ? x0 > x1 : y0 > y1) std::swap(x0, x1), std::swap(y0, y1);
  const int64_t first = column_at(std::min(x0, x1)), last = std::min(column_at(std::max(x0, x1)), width);
  if (first >= last) return;
  const auto emit = [&](int64_t column, int64_t y) { change(column, y <= 2 ? 0 : std::min((y + 2) / kFine, height)); };
  if (along_x) {
    const double slope = static_cast<double>(y1 - y0) / static_cast<double>(dx);
    for (int64_t column = first; column < last; ++column) {
      // Of the two points beside the crossing, the upper counts.
      const int64_t t = column * kFine + 2 - x0 + (slope < 0);
      emit(column, static_cast<int64_t>(static_cast<double>(y0) + slope * static_cast<double>(t) + .5));
    }
    return;
  }
  const double slope = static_cast<double>(x1 - x0) / static_cast<double>(dy), start = static_cast<double>(x0);
  const double steps = 1 / slope;
  const auto x_at = [&](int64_t t) { return static_cast<int64_t>(start + slope * static_cast<double>(t) + .5); };
  for (int64_t column = first; column < last; ++column) {
    // The last point before the crossing: an estimate, moved to where the rounded points say.
    const int64_t x = column * kFine + 2;
    int64_t t = static_cast<int64_t>((static_cast<double>(x) + .5 - start) * steps);
    t = std::clamp<int64_t>(t, 0, dy - 1);
    if (x1 > x0) {
      while (t > 0 && x_at(t) > x) --t;
      while (x_at(t + 1) <= x) ++t;
    } else {
      while (t > 0 && x_at(t) <= x) --t;
      while (x_at(t + 1) > x) ++t;
    }
    emit(column, y0 + t);
  }
}

// Positions where the mask changes, in ascending order and, where it changes twice, twice.
class Changes {
 public:
  explicit Changes(int64_t height) : height_(height) {}

  void add(int64_t column, int64_t row) {
    left_ = std::min(left_, column);
    right_ = std::max(right_, column);
    found_.push_back({static_cast<int32_t>(column), static_cast<int32_t>(row)});
  }

  // Most columns have a few changes: dealt out by column, there is little left to sort.
  const std::vector<int64_t>& sorted() {
    if (found_.empty()) return positions_;
    std::vector<int32_t> ends(static_cast<size_t>(right_ - left_ + 1), 0);
    for (const Change& change : found_) ++ends[change.column - left_];
    int32_t total = 0;
    for (int32_t& end : ends) end = total += end;
    positions_.resize(found_.size());
    for (const Change& change : found_)
      positions_[--ends[change.column - left_]] = change.column * height_ + change.row;
    // `ends` holds the starts now.
    for (size_t c = 0; c < ends.size(); ++c) {
      sort_few(positions_.data() + ends[c], positions_.data() + (c + 1 < ends.size() ? ends[c + 1] : total));
    }
    return positions_;
  }

 private:
  struct Change {
    int32_t column, row;
  };

  static void sort_few(int64_t* begin, int64_t* end) {
    if (end - begin > 16) return std::sort(begin, end);
    for (int64_t* next = begin; next < end; ++next) {
      const int64_t value = *next;
      int64_t* place = next;
      for (; place > begin && place[-1] > value; --place) *place = place[-1];
      *place = value;
    }
  }

  int64_t height_, left_ = INT64_MAX, right_ = 0;
  std::vector<Change> found_;
  std::vector<int64_t> positions_;
};

}  // namespace polygons

// Append the runs of a polygon with corners xy[0], xy[1], xy[2], ... (x, y, in pixels), closed by its first vertex.
inline void polygon_runs(const double* xy, int64_t vertices, int64_t height, int64_t width,
                         std::vector<int32_t>& counts) {
  polygons::Changes changes(height);
  for (int64_t v = 0; v < vertices; ++v) {
    const double *from = xy + 2 * v, *to = v + 1 < vertices ? from + 2 : xy;
    polygons::walk_edge(polygons::grid(from[0]), polygons::grid(from[1]), polygons::grid(to[0]), polygons::grid(to[1]),
                        height, width, [&](int64_t column, int64_t row) { changes.add(column, row); });
  }
  const std::vector<int64_t>& positions = changes.sorted();
  const int64_t pixels = height * width;
  int64_t run_start = 0;
  for (size_t i = 0; i < positions.size() && positions[i] < pixels; ++i) {
    if (i + 1 < positions.size() && positions[i] == positions[i + 1]) {
      ++i;
      continue;
    }
    counts.push_back(static_cast<int32_t>(positions[i] - run_start));
    run_start = positions[i];
  }
  counts.push_back(static_cast<int32_t>(pixels - run_start));
}

}  // namespace s2d::rle
