// Several masks of one size as one.
//
// Two are walked side by side. The union of many is drawn on one canvas of bits and read off it, where the canvas has
// few words for so many runs; a walk would pass over what it has found once more for every mask.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "encoder.h"
#include "patch.h"
#include "rle.h"

namespace s2d::rle {

struct RunsView {
  const int32_t* counts;
  int64_t runs;
};

// Append the union or the intersection of two masks. No run but the first is empty, whatever theirs are.
inline void merge_two(RunsView a, RunsView b, bool intersect, std::vector<int32_t>& counts) {
  const size_t before = counts.size();
  counts.resize(before + a.runs + b.runs + 1);
  int32_t* out = counts.data() + before;
  int64_t i = 0, j = 0, left_a = a.runs ? a.counts[0] : 0, left_b = b.runs ? b.counts[0] : 0;
  int64_t run = 0, value = 0;
  for (;;) {
    while (left_a == 0 && i + 1 < a.runs) left_a = a.counts[++i];
    while (left_b == 0 && j + 1 < b.runs) left_b = b.counts[++j];
    const int64_t step = std::min(left_a, left_b);
    if (step == 0) break;
    // Written whether the run has ended or not: nobody could guess it.
    const int64_t now = (intersect ? i & j : i | j) & 1;
    *out = static_cast<int32_t>(run);
    const bool ended = now != value;
    out += ended;
    run = (ended ? 0 : run) + step;
    value = now;
    left_a -= step;
    left_b -= step;
  }
  *out++ = static_cast<int32_t>(run);
  counts.resize(out - counts.data());
}

class Merger {
 public:
  // Append the runs of all masks as one; there is at least one.
  void merge(const std::vector<RunsView>& masks, int64_t height, int64_t width, bool intersect,
             std::vector<int32_t>& counts) {
    if (masks.size() > 2 && !intersect && by_canvas(masks, height, width, counts)) return;
    const RunsView first = masks.front();
    if (masks.size() == 1) return merge_two(first, first, true, counts);
    for (size_t n = 1; n + 1 < masks.size(); ++n) {
      next_.clear();
      merge_two(n == 1 ? first : view(merged_), masks[n], intersect, next_);
      std::swap(merged_, next_);
    }
    merge_two(masks.size() == 2 ? first : view(merged_), masks.back(), intersect, counts);
  }

 private:
  static RunsView view(const std::vector<int32_t>& counts) {
    return {counts.data(), static_cast<int64_t>(counts.size())};
  }

  bool by_canvas(const std::vector<RunsView>& masks, int64_t height, int64_t width, std::vector<int32_t>& counts) {
    int64_t runs = 0, first = height * width, end = 0;
    for (const RunsView& mask : masks) {
      runs += mask.runs;
      if (mask.runs < 2) continue;
      int64_t total = 0;
      for (int64_t r = 0; r < mask.runs; ++r) total += mask.counts[r];
      first = std::min<int64_t>(first, mask.counts[0]);
      end = std::max(end, total - (mask.runs % 2 ? mask.counts[mask.runs - 1] : 0));
    }
    if (first >= end) {
      counts.push_back(static_cast<int32_t>(height * width));
      return true;
    }
    const int64_t left = first / height, columns = (end - 1) / height + 1 - left, bands = (height + 63) / 64;
    if (bands * columns > std::max(kFewWords, kWordsPerRun * runs)) return false;
    canvas_.assign(bands * columns, 0);
    for (const RunsView& mask : masks) draw(mask.counts, mask.runs, height, 0, left, columns, canvas_.data());
    Runs out{counts};
    Changes changes(height);
    const bool last = changes.append(canvas_.data(), columns, columns, left * height, false, out);
    if (last && left + columns < width) out.append(1, (left + columns) * height);
    out.finish(height * width);
    return true;
  }

  std::vector<int32_t> merged_, next_;
  std::vector<uint64_t> canvas_;
};

}  // namespace s2d::rle
