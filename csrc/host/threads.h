// Loops over independent items on threads of their own: this module works without torch's.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace s2d::host {

// Run body(begin, end) over [0, items) on at most `threads` threads, the calling one among them.
template <typename Body>
void on_threads(int64_t threads, int64_t items, const Body& body) {
  threads = std::clamp<int64_t>(threads, 1, std::max<int64_t>(items, 1));
  if (threads == 1) return body(0, items);
  // Items differ in work, so each thread comes back for more.
  const int64_t step = std::max<int64_t>(1, items / (8 * threads));
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t begin; (begin = next.fetch_add(step)) < items;) body(begin, std::min(begin + step, items));
  };
  std::vector<std::thread> others;
  for (int64_t t = 1; t < threads; ++t) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
}

}  // namespace s2d::host
