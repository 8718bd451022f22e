// DAVIS's region and boundary measures on bits: the pixels and the outline pixels that masks share.
//
// An outline is dilated by a disk row by row: a row is widened a pixel at a time, and of every width that the disk has
// it is laid over the rows in which the disk is that wide.

#include "../common/bits.h"
#include "../common/simd.h"
#include "groups.h"
#include "host.h"
#include "threads.h"

namespace s2d::host {

namespace {

struct Frame {
  int64_t height, width, words;  // words of a row
  int64_t size() const { return height * words; }
};

// Pixels that differ from the one to the right, below, or both; at the lower and right edge from the one neighbour that
// there is.
S2D_LOOP void outline_loop(const uint64_t* mask, Frame frame, uint64_t* out) {
  const uint64_t edge = 1ull << (frame.width - 1) % 64;
  for (int64_t y = 0; y < frame.height; ++y, mask += frame.words, out += frame.words) {
    const bool last = y + 1 == frame.height;
    const uint64_t* below = last ? mask : mask + frame.words;
    for (int64_t w = 0; w < frame.words; ++w) {
      const bool more = w + 1 < frame.words;
      const uint64_t right = mask[w] >> 1 | (more ? mask[w + 1] << 63 : 0);
      const uint64_t diagonal = below[w] >> 1 | (more ? below[w + 1] << 63 : 0);
      out[w] = last ? mask[w] ^ right : (mask[w] ^ right) | (mask[w] ^ below[w]) | (mask[w] ^ diagonal);
    }
    uint64_t& end = out[frame.words - 1];
    end = (end & ~edge) | (last ? 0 : (mask[frame.words - 1] ^ below[frame.words - 1]) & edge);
  }
}
S2D_MULTIVERSION(void, outline, (const uint64_t* mask, Frame frame, uint64_t* out), (mask, frame, out))

// The disk x^2 + y^2 <= radius^2: reach[y] is how far it goes to either side, y rows from its middle.
std::vector<int64_t> disk(int64_t radius) {
  std::vector<int64_t> reach;
  for (int64_t y = 0, x = radius; y <= radius; ++y) {
    while (x * x + y * y > radius * radius) --x;
    reach.push_back(x);
  }
  return reach;
}

S2D_LOOP void lay_over_loop(const uint64_t* row, int64_t words, uint64_t* out) {
  for (int64_t w = 0; w < words; ++w) out[w] |= row[w];
}

// out |= mask dilated by the disk; bits past the width may be set. `rows` holds two rows with a word to spare at each
// end.
S2D_LOOP void dilate_loop(const uint64_t* mask, Frame frame, const int64_t* reach, int64_t radius, uint64_t* rows,
                          uint64_t* out) {
  const int64_t words = frame.words;
  for (int64_t y = 0; y < frame.height; ++y, mask += words) {
    int64_t first = 0, end = words;
    while (first < end && !mask[first]) ++first;
    while (end > first && !mask[end - 1]) --end;
    if (first == end) continue;
    // What a disk can reach.
    const int64_t margin = (radius + 63) / 64;
    first = std::max<int64_t>(0, first - margin);
    end = std::min(words, end + margin);
    const int64_t length = end - first;
    uint64_t *row = rows + 1, *wider = rows + words + 3;
    std::copy_n(mask + first, length, row);
    row[-1] = row[length] = wider[-1] = wider[length] = 0;
    int64_t dy = radius;
    for (int64_t x = 0;; ++x) {
      for (; dy >= 0 && reach[dy] == x; --dy) {
        if (y >= dy) lay_over_loop(row, length, out + (y - dy) * words + first);
        if (dy && y + dy < frame.height) lay_over_loop(row, length, out + (y + dy) * words + first);
      }
      if (x == radius) break;
      for (int64_t w = 0; w < length; ++w) {
        wider[w] = row[w] | row[w] << 1 | row[w] >> 1 | row[w - 1] >> 63 | row[w + 1] << 63;
      }
      std::swap(row, wider);
    }
  }
}
S2D_MULTIVERSION(void, dilate,
                 (const uint64_t* mask, Frame frame, const int64_t* reach, int64_t radius, uint64_t* rows,
                  uint64_t* out),
                 (mask, frame, reach, radius, rows, out))

S2D_LOOP int64_t count_shared_loop(const uint64_t* a, const uint64_t* b, int64_t number) {
  int64_t total = 0;
  for (int64_t w = 0; w < number; ++w) total += popcount(a[w] & b[w]);
  return total;
}
S2D_MULTIVERSION(int64_t, count_shared, (const uint64_t* a, const uint64_t* b, int64_t number), (a, b, number))

// Outlines of the masks of one side in one frame, and the same dilated.
struct Outlines {
  void read(const uint64_t* masks, int64_t number, int64_t step, Frame frame, const std::vector<int64_t>& reach) {
    lines.resize(number * frame.size());
    dilated.assign(number * frame.size(), 0);
    rows.resize(2 * frame.words + 4);
    for (int64_t n = 0; n < number; ++n) {
      uint64_t* own = lines.data() + n * frame.size();
      outline(masks + n * step, frame, own);
      const auto radius = static_cast<int64_t>(reach.size()) - 1;
      dilate(own, frame, reach.data(), radius, rows.data(), dilated.data() + n * frame.size());
    }
  }
  std::vector<uint64_t> lines, dilated, rows;
};

using Words = Array<int64_t>;

py::tuple region_and_boundary(const Words& predicted, const Words& truth, int64_t width, int64_t radius,
                              int64_t threads) {
  const int64_t number = predicted.shape(0), others = truth.shape(0), length = predicted.shape(1);
  const Frame frame{predicted.shape(2), width, predicted.shape(3)};
  if (truth.shape(1) != length || truth.shape(2) != frame.height || truth.shape(3) != frame.words ||
      words_for(width) != frame.words || radius < 0) {
    throw py::value_error("s2d::metrics: expected masks of one size and number of frames, got two");
  }
  Words shared({number, others, length}), found({number, others, length}), recovered({number, others, length});
  Words areas({number, length}), true_areas({others, length});
  Words lines({number, length}), true_lines({others, length});
  int64_t *shared_out = shared.mutable_data(), *found_out = found.mutable_data();
  int64_t *recovered_out = recovered.mutable_data(), *areas_out = areas.mutable_data();
  int64_t *true_areas_out = true_areas.mutable_data(), *lines_out = lines.mutable_data();
  int64_t* true_lines_out = true_lines.mutable_data();
  const auto* masks = reinterpret_cast<const uint64_t*>(predicted.data());
  const auto* true_masks = reinterpret_cast<const uint64_t*>(truth.data());
  const std::vector<int64_t> reach = disk(radius);
  {
    const py::gil_scoped_release unlocked;
    on_threads(threads, length, [&](int64_t begin, int64_t end) {
      Outlines own, wanted;
      const int64_t size = frame.size();
      const auto count = [&](const uint64_t* mask) { return count_shared(mask, mask, size); };
      for (int64_t t = begin; t < end; ++t) {
        own.read(masks + t * size, number, length * size, frame, reach);
        wanted.read(true_masks + t * size, others, length * size, frame, reach);
        for (int64_t m = 0; m < others; ++m) {
          true_areas_out[m * length + t] = count(true_masks + (m * length + t) * size);
          true_lines_out[m * length + t] = count(wanted.lines.data() + m * size);
        }
        for (int64_t n = 0; n < number; ++n) {
          const uint64_t* mask = masks + (n * length + t) * size;
          areas_out[n * length + t] = count(mask);
          lines_out[n * length + t] = count(own.lines.data() + n * size);
          for (int64_t m = 0; m < others; ++m) {
            const int64_t pair = (n * others + m) * length + t;
            shared_out[pair] = count_shared(mask, true_masks + (m * length + t) * size, size);
            found_out[pair] = count_shared(own.lines.data() + n * size, wanted.dilated.data() + m * size, size);
            recovered_out[pair] = count_shared(wanted.lines.data() + m * size, own.dilated.data() + n * size, size);
          }
        }
      }
    });
  }
  return py::make_tuple(shared, areas, true_areas, found, recovered, lines, true_lines);
}

}  // namespace

void add_boundary(py::module_& module) {
  module.def("region_and_boundary", &region_and_boundary, py::arg("predicted"), py::arg("truth"), py::arg("width"),
             py::arg("radius"), py::arg("threads"),
             R"(Pixels that masks share, and outline pixels of one that lie within a disk of the other's outline.

Args:
    predicted, truth: int64 ``[N, T, H, ceil(W/64)]`` and ``[M, ...]``, 64 pixels a word.
    width: W.
    radius: of the disk, pixels.
    threads: at most so many.

Returns:
    int64 arrays: shared pixels ``[N, M, T]``, pixels ``[N, T]``, true pixels ``[M, T]``, outline pixels near the true
    outline ``[N, M, T]``, true outline pixels near the predicted one ``[N, M, T]``, outline pixels ``[N, T]``, true
    outline pixels ``[M, T]``.)");
}

}  // namespace s2d::host
