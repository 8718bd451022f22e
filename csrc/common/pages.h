// Large pages for large results: a fresh tensor of many megabytes is otherwise paid for in page faults, 4 kB at a time.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace s2d {

// Ask for large pages under memory that is about to be written for the first time. A hint: nothing depends on it.
inline void prefer_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const auto begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) & ~(kPage - 1);
  const auto end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) & ~(kPage - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Memory that is read at random, not initialised: of large pages the processor keeps all addresses at hand.
template <typename T>
class Scattered {
 public:
  explicit Scattered(int64_t number) {
    constexpr size_t kPage = size_t{1} << 21;
    const size_t wanted = static_cast<size_t>(number) * sizeof(T);
    const size_t alignment = wanted < kPage / 2 ? size_t{64} : kPage;
    const size_t bytes = (wanted / alignment + 1) * alignment;
    memory_.reset(static_cast<T*>(std::aligned_alloc(alignment, bytes)));
    if (!memory_) throw std::bad_alloc();
    prefer_large_pages(memory_.get(), static_cast<int64_t>(bytes));
  }

  T* data() { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
};

}  // namespace s2d
