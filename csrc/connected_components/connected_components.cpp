// connected_components on the CPU: schemas of the room and its CPU kernels.
//
// A task owns a mask. It lists the runs of pixels row by row (the edges `x ^ (x << 1)` of 64 pixels at a time), joins
// each with the runs of the row above that it touches (union-find over runs; where runs touch is bit arithmetic as
// well), and writes both images (images.h). Filling and removing flip the bits of whole runs in a copy of the mask. No
// pixel is looked at by itself, and what noise would make a branch guess wrong is kept free of branches.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../common/pages.h"
#include "../common/parallel.h"
#include "../common/simd.h"
#include "call.h"
#include "images.h"

namespace s2d::connected_components {
namespace {

// The runs of a mask's connected pixels, and which of them belong together. Kept from mask to mask for its memory.
struct Runs {
  std::vector<int32_t> edges;      // first and past-the-last column of each run
  std::vector<int32_t> of_row;     // number of runs above each row, and of all in the end
  std::vector<int32_t> component;  // of each run; before `number_components`, the union-find's parents
  std::vector<int32_t> areas;      // of each component
  std::vector<int32_t> labels_of_run, areas_of_run;

  int32_t number() const { return of_row.back(); }
};

// Where the row's runs begin and end; `edges` has room for a row of alternating pixels.
S2D_LOOP int32_t* list_edges(const uint64_t* row, const Sizes& sizes, bool unset, int32_t* edges) {
  uint64_t before = 0;
  for (int64_t w = 0; w < sizes.words_per_row; ++w) {
    const uint64_t word = connected_pixels(row[w], w, sizes, unset);
    const int32_t x = static_cast<int32_t>(w * kWordBits);
    for (uint64_t changes = word ^ (word << 1 | before); changes; changes &= changes - 1) {
      *edges++ = x + lowest_bit(changes);
    }
    before = word >> (kWordBits - 1);
  }
  if (before) *edges++ = static_cast<int32_t>(sizes.width);
  return edges;
}

// Rem's union: it climbs from both runs at once, hangs what it leaves under the lower parent, and ends where the
// parents meet, which in most cases is at once. A root is its part's first run.
S2D_LOOP void join(int32_t* parent, int32_t a, int32_t b) {
  int32_t above_a = parent[a], above_b = parent[b];
  while (above_a != above_b) {
    if (above_a < above_b) {
      std::swap(a, b);
      std::swap(above_a, above_b);
    }
    parent[a] = above_b;
    if (above_a == a) return;
    a = above_a;
    above_a = parent[a];
  }
}

// Join the runs of a row, from `run` on, with those of the row above, from `above` on, that they touch.
S2D_LOOP void join_rows(const uint64_t* row, const Sizes& sizes, bool unset, int32_t* parent, int32_t above,
                        int32_t run) {
  Window upper{0, 0}, lower{0, 0};
  for (int64_t w = 0; w < sizes.words_per_row; ++w) {
    upper = {connected_pixels(row[w - sizes.words_per_row], w, sizes, unset), upper.word >> (kWordBits - 1)};
    lower = {connected_pixels(row[w], w, sizes, unset), lower.word >> (kWordBits - 1)};
    const uint64_t upper_starts = upper.starts(), lower_starts = lower.starts();
    for (uint64_t bits = touches(upper, lower, sizes.eight); bits; bits &= bits - 1) {
      const int bit = lowest_bit(bits);
      join(parent, above + starts_until(upper_starts, bit) - 1, run + starts_until(lower_starts, bit) - 1);
    }
    above += popcount(upper_starts);
    run += popcount(lower_starts);
  }
}

// List and join all runs. With `outside`, run 0 stands for what lies beyond the border, and touches the runs there.
S2D_LOOP void connect_loop(const uint64_t* words, const Sizes& sizes, bool unset, bool outside, Runs& runs) {
  runs.of_row.resize(sizes.height + 1);
  if (runs.component.empty()) {
    runs.edges.resize(2);
    runs.component.resize(1);
  }
  runs.edges[0] = runs.edges[1] = runs.component[0] = 0;
  int32_t above = 0, begin = outside ? 1 : 0;
  for (int64_t y = 0; y < sizes.height; ++y) {
    runs.of_row[y] = begin;
    const size_t most = begin + sizes.width / 2 + 1;
    if (runs.component.size() < most) {
      runs.component.resize(2 * most);
      runs.edges.resize(4 * most);
    }
    int32_t *edges = runs.edges.data(), *parent = runs.component.data();
    const uint64_t* row = words + y * sizes.words_per_row;
    const int32_t end = static_cast<int32_t>((list_edges(row, sizes, unset, edges + 2 * begin) - edges) / 2);
    for (int32_t run = begin; run < end; ++run) parent[run] = run;
    if (y > 0) join_rows(row, sizes, unset, parent, above, begin);
    if (outside) {
      const bool edge_row = y == 0 || y == sizes.height - 1;
      for (int32_t run = begin; run < end; ++run) {
        if (edge_row || edges[2 * run] == 0 || edges[2 * run + 1] == sizes.width) join(parent, run, 0);
      }
    }
    above = begin;
    begin = end;
  }
  runs.of_row[sizes.height] = begin;
}
S2D_MULTIVERSION(void, connect, (const uint64_t* words, const Sizes& sizes, bool unset, bool outside, Runs& runs),
                 (words, sizes, unset, outside, runs))

// Parents become components, counted from 0 in the order of their first runs, which is that of their first pixels.
void number_components(Runs& runs) {
  const int32_t number = runs.number();
  runs.areas.resize(number + 1);
  int32_t *component = runs.component.data(), *areas = runs.areas.data(), components = 0;
  for (int32_t run = 0; run < number; ++run) {
    const int32_t length = runs.edges[2 * run + 1] - runs.edges[2 * run], parent = component[run];
    const bool root = parent == run;  // in noise as often as not: no branch
    const int32_t own = root ? components : component[parent];
    areas[own] = length + (root ? 0 : areas[own]);
    component[run] = own;
    components += root;
  }
}

RunValues values_of(Runs& runs) {
  const int32_t number = runs.number();
  runs.labels_of_run.resize(number + 1 + kStore);
  runs.areas_of_run.resize(number + 1 + kStore);
  int32_t *labels = runs.labels_of_run.data() + 1, *areas = runs.areas_of_run.data() + 1;
  for (int32_t run = 0; run < number; ++run) {
    labels[run] = runs.component[run] + 1;
    areas[run] = runs.areas[runs.component[run]];
  }
  return {runs.edges.data(), runs.of_row.data(), labels, areas};
}

void flip(uint64_t* row, int64_t begin, int64_t end) {
  for (int64_t x = begin; x < end;) {
    const int64_t w = x / kWordBits, next = std::min((w + 1) * kWordBits, end);
    row[w] ^= bits_between(static_cast<int>(x % kWordBits), static_cast<int>(next - 1 - w * kWordBits));
    x = next;
  }
}

void select(const uint64_t* words, uint64_t* result, Task task, int64_t limit, const Sizes& sizes, Runs& runs) {
  const bool fill = task == Task::fill;
  connect(words, sizes, fill, fill, runs);
  // The run beyond the border begins no row, but is counted.
  number_components(runs);
  std::memcpy(result, words, sizes.words() * 8);
  for (int64_t y = 0; y < sizes.height; ++y) {
    for (int32_t run = runs.of_row[y]; run < runs.of_row[y + 1]; ++run) {
      const int32_t component = runs.component[run], area = runs.areas[component];
      if (fill ? component != 0 && area <= limit : area < limit) {
        flip(result + y * sizes.words_per_row, runs.edges[2 * run], runs.edges[2 * run + 1]);
      }
    }
  }
}

Tensor selected(const Tensor& words, int64_t width, int64_t limit, int64_t connectivity, Task task, const char* op) {
  const Call call(words, width, connectivity, op, task);
  Tensor result = torch::stable::empty_like(call.words);
  if (call.pixels() == 0) return result;
  auto* out = static_cast<uint64_t*>(result.mutable_data_ptr());
  const int64_t size = call.sizes.words();
  parallel_over(call.masks, size * 8, [&](int64_t begin, int64_t end) {
    Runs runs;
    for (int64_t mask = begin; mask < end; ++mask) {
      select(call.of(mask), out + mask * size, task, limit, call.sizes, runs);
    }
  });
  return result;
}

}  // namespace

std::tuple<Tensor, Tensor> connected_components(const Tensor& words, int64_t width, int64_t connectivity) {
  const Call call(words, width, connectivity, "connected_components");
  Tensor labels = call.image(), areas = call.image();
  if (call.pixels() == 0) return {labels, areas};
  const Images images{static_cast<int32_t*>(labels.mutable_data_ptr()),
                      static_cast<int32_t*>(areas.mutable_data_ptr())};
  prefer_large_pages(images.labels, call.pixels() * 4);
  prefer_large_pages(images.areas, call.pixels() * 4);
  const int64_t size = call.sizes.pixels();
  parallel_over(call.masks, size * 8, [&](int64_t begin, int64_t end) {
    Runs runs;
    for (int64_t mask = begin; mask < end; ++mask) {
      connect(call.of(mask), call.sizes, false, false, runs);
      number_components(runs);
      write_images(call.of(mask), values_of(runs), call.sizes,
                   {images.labels + mask * size, images.areas + mask * size});
    }
  });
  return {labels, areas};
}

Tensor fill_holes(const Tensor& words, int64_t width, int64_t largest, int64_t connectivity) {
  return selected(words, width, largest, connectivity, Task::fill, "fill_holes");
}

Tensor remove_small(const Tensor& words, int64_t width, int64_t smallest, int64_t connectivity) {
  return selected(words, width, smallest, connectivity, Task::remove, "remove_small");
}

}  // namespace s2d::connected_components

STABLE_TORCH_LIBRARY_FRAGMENT(s2d, library) {
  library.def("connected_components(Tensor words, int width, int connectivity) -> (Tensor, Tensor)");
  library.def("fill_holes(Tensor words, int width, int largest, int connectivity) -> Tensor");
  library.def("remove_small(Tensor words, int width, int smallest, int connectivity) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(s2d, CPU, library) {
  library.impl("connected_components", TORCH_BOX(&s2d::connected_components::connected_components));
  library.impl("fill_holes", TORCH_BOX(&s2d::connected_components::fill_holes));
  library.impl("remove_small", TORCH_BOX(&s2d::connected_components::remove_small));
}
