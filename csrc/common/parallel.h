// Loops over independent items on torch's own threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace s2d {

// Bytes of work, some hundred microseconds, under which a second thread costs more than it gives: waking one takes a
// few microseconds on an idle machine and milliseconds on a busy one.
constexpr int64_t kGrainBytes = 1 << 20;

// Run body(begin, end) over [0, items), each item touching about bytes_per_item bytes.
template <typename Body>
void parallel_over(int64_t items, int64_t bytes_per_item, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, bytes_per_item));
  torch::stable::parallel_for(0, items, grain, body);
}

}  // namespace s2d
