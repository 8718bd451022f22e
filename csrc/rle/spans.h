// The set rows of a mask column by column, for counting what two masks share.
//
// A mask of an object has a run or two in a column. The first of every column is layer 0, the second layer 1, and so
// on: what two layers share in a column is one minimum, one maximum and one difference, and columns lie side by side.
// Masks with many runs in a column are better off as bits (patch.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/simd.h"

namespace s2d::rle {

// Runs of a column, from which on bits are less work.
constexpr int64_t kMostLayers = 4;
// A span is one number, the row after its last << 16 | its first row; 0 where there is none.
constexpr int64_t kMostRows = 0xffff;

struct Spans {
  int64_t area = 0, first = 0, columns = 0;  // `first`: the column with which the layers begin
  std::vector<uint32_t> rows;                // [layers, columns]

  int64_t layers() const { return columns ? static_cast<int64_t>(rows.size()) / columns : 0; }
};

// The set runs of a mask: columns, first rows, and rows after the last. Before the columns come kMostLayers that are
// none.
struct PlacedRuns {
  void resize(int64_t number) {
    column.assign(kMostLayers, -1);
    column.resize(kMostLayers + number);
    begin.resize(number);
    end.resize(number);
  }
  void append(int32_t x, int32_t first, int32_t stop) {
    column.push_back(x);
    begin.push_back(first);
    end.push_back(stop);
  }
  int64_t number() const { return static_cast<int64_t>(begin.size()); }
  int32_t* columns() { return column.data() + kMostLayers; }

  std::vector<int32_t> column, begin, end;
};

// Returns the greatest end: beyond the height where a run goes on into the next column.
S2D_LOOP int32_t place_runs_loop(const int32_t* counts, int64_t number, int32_t height, int32_t* __restrict column,
                                 int32_t* __restrict begin, int32_t* __restrict end, int32_t& area) {
  int32_t position = 0, lowest = 0, total = 0;
  for (int64_t r = 0; r < number; ++r) {
    begin[r] = position + counts[2 * r];
    end[r] = position += counts[2 * r] + counts[2 * r + 1];
  }
  // Half a pixel keeps positions below 2^31 clear of rounding.
  const double columns_a_pixel = 1.0 / height;
  for (int64_t r = 0; r < number; ++r) {
    column[r] = static_cast<int32_t>((begin[r] + 0.5) * columns_a_pixel);
    total += end[r] - begin[r];
    begin[r] -= column[r] * height;
    end[r] -= column[r] * height;
    lowest = std::max(lowest, end[r]);
  }
  area = total;
  return lowest;
}
S2D_MULTIVERSION(int32_t, place_runs,
                 (const int32_t* counts, int64_t number, int32_t height, int32_t* __restrict column,
                  int32_t* __restrict begin, int32_t* __restrict end, int32_t& area),
                 (counts, number, height, column, begin, end, area))

// Whether no column has more runs than there are layers; if so, `layers` and where in the rows each run belongs.
S2D_LOOP bool layer_runs_loop(const int32_t* column, int64_t number, int32_t columns, int32_t* __restrict place,
                              int64_t& layers) {
  int32_t deepest = 0;
  for (int64_t r = 0; r < number; ++r) {
    int32_t before = 0;
    for (int64_t k = 1; k <= kMostLayers; ++k) before += column[r] == column[r - k];
    place[r] = before * columns + column[r] - column[0];
    deepest = std::max(deepest, before);
  }
  layers = deepest + 1;
  return deepest < kMostLayers;
}
S2D_MULTIVERSION(bool, layer_runs,
                 (const int32_t* column, int64_t number, int32_t columns, int32_t* __restrict place, int64_t& layers),
                 (column, number, columns, place, layers))

// Reads masks one after another in memory of its own.
class SpansReader {
 public:
  // False where a column has more runs than there are layers, or more rows than a span can tell.
  bool read(const int32_t* counts, int64_t runs, int64_t height, Spans& spans) {
    spans.area = spans.columns = 0;
    if (height > kMostRows) return false;
    const int64_t number = height ? runs / 2 : 0;
    if (!number) return true;
    runs_.resize(number);
    const auto rows = static_cast<int32_t>(height);
    int32_t area = 0;
    const int32_t lowest =
        place_runs(counts, number, rows, runs_.columns(), runs_.begin.data(), runs_.end.data(), area);
    spans.area = area;
    if (lowest > rows) split(rows);
    return lay(spans);
  }

 private:
  // A run that goes on into the next column becomes two.
  void split(int32_t height) {
    PlacedRuns whole;
    whole.resize(0);
    for (int64_t r = 0; r < runs_.number(); ++r) {
      int32_t x = runs_.columns()[r], y = runs_.begin[r], rest = runs_.end[r];
      for (; rest > height; ++x, y = 0, rest -= height) whole.append(x, y, height);
      whole.append(x, y, rest);
    }
    std::swap(runs_, whole);
  }

  bool lay(Spans& spans) {
    const int64_t number = runs_.number();
    const int32_t *column = runs_.columns(), *begin = runs_.begin.data(), *end = runs_.end.data();
    const int32_t columns = column[number - 1] + 1 - column[0];
    places_.resize(number);
    int32_t* const places = places_.data();
    int64_t layers = 0;
    if (!layer_runs(column, number, columns, places, layers)) return false;
    spans.first = column[0];
    spans.columns = columns;
    spans.rows.assign(layers * columns, 0);
    uint32_t* const rows = spans.rows.data();
    for (int64_t r = 0; r < number; ++r) rows[places[r]] = static_cast<uint32_t>(end[r] << 16 | begin[r]);
    return true;
  }

  PlacedRuns runs_;
  std::vector<int32_t> places_;
};

// Number of pixels set in both masks, which have one height.
S2D_LOOP int64_t shared_spans_loop(const Spans& a, const Spans& b) {
  const int64_t left = std::max(a.first, b.first);
  const int64_t columns = std::min(a.first + a.columns, b.first + b.columns) - left;
  if (columns <= 0) return 0;
  int64_t total = 0;
  for (int64_t i = 0; i < a.layers(); ++i) {
    const uint32_t* of_a = a.rows.data() + i * a.columns + left - a.first;
    for (int64_t j = 0; j < b.layers(); ++j) {
      const uint32_t* of_b = b.rows.data() + j * b.columns + left - b.first;
      int32_t shared = 0;
      for (int64_t x = 0; x < columns; ++x) {
        const auto begin = static_cast<int32_t>(std::max(of_a[x] & kMostRows, of_b[x] & kMostRows));
        const auto end = static_cast<int32_t>(std::min(of_a[x] >> 16, of_b[x] >> 16));
        shared += std::max(end - begin, 0);
      }
      total += shared;
    }
  }
  return total;
}
S2D_MULTIVERSION(int64_t, shared_spans, (const Spans& a, const Spans& b), (a, b))

}  // namespace s2d::rle
