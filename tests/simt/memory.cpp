// The emulator's view of memory. Kernels are compiled with -fsanitize=thread, bounds and alignment, and the calls that
// the compiler puts before loads and stores come here instead of to a sanitizer's runtime: so an access is held
// against the exact bounds of the launch's buffers, and against the accesses of other threads since the last barrier.

#include <dlfcn.h>
#include <link.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "simt.h"

namespace simt {
namespace {

bool same_warp(const Moment& a, const Moment& b) { return a.block == b.block && a.thread / 32 == b.thread / 32; }

// The threads that have last touched one byte in one way.
class Track {
 public:
  // Whether something was waited for between all of them and a thread at this moment.
  bool ordered_before(const Moment& now) const {
    if (!any_) return true;
    if (last_.block != now.block) return false;
    if (last_.barriers != now.barriers) return true;
    if (beyond_warp_) return false;
    if (last_.thread == now.thread && !in_warp_) return true;
    return same_warp(last_, now) && last_.warp_ops < now.warp_ops;
  }

  void note(const Moment& now) {
    if (ordered_before(now)) {
      in_warp_ = beyond_warp_ = false;
    } else if (same_warp(last_, now) && last_.warp_ops == now.warp_ops) {
      in_warp_ = true;
    } else {
      beyond_warp_ = true;
    }
    last_ = now;
    any_ = true;
  }

  bool any() const { return any_; }
  const Moment& last() const { return last_; }

 private:
  Moment last_;
  bool any_ = false;
  bool in_warp_ = false;      // several lanes of the last one's warp, since its last operation
  bool beyond_warp_ = false;  // others too
};

struct Cell {
  Track reads, writes, atomics;
};

struct Region {
  const char* begin;
  size_t bytes;
  bool writable;
  std::vector<Cell> cells;
  bool holds(const char* place) const { return place >= begin && place < begin + bytes; }
};

std::vector<Region> buffers;
Region shared{nullptr, 0, true, {}};

thread_local volatile char first_use;  // memory that is local to a thread is there once some of it was used

// The __shared__ variables of this library: all that it keeps for the running thread of the host.
void find_shared() {
  first_use = 1;
  dl_iterate_phdr(
      [](dl_phdr_info* library, size_t, void*) {
        const auto here = reinterpret_cast<uintptr_t>(&find_shared);
        bool ours = false;
        size_t bytes = 0;
        for (int i = 0; i < library->dlpi_phnum; ++i) {
          const auto& part = library->dlpi_phdr[i];
          const uintptr_t begin = library->dlpi_addr + part.p_vaddr;
          ours |= part.p_type == PT_LOAD && here >= begin && here < begin + part.p_memsz;
          if (part.p_type == PT_TLS) bytes = part.p_memsz;
        }
        if (ours) {
          shared.begin = static_cast<const char*>(library->dlpi_tls_data);
          shared.bytes = bytes;
        }
        return ours ? 1 : 0;
      },
      nullptr);
}

// A volatile read is one of memory as it is now (CUDA's relaxed load): it may meet atomic updates, not plain writes.
enum class Kind { read, write, atomic, volatile_read };

std::string line_of(const void* code) {
  Dl_info info;
  if (!code || !dladdr(code, &info)) return "";
  char command[512], line[256] = "";
  std::snprintf(command, sizeof command, "addr2line -s -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
                static_cast<size_t>(static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase)) - 1);
  if (FILE* pipe = popen(command, "r")) {
    if (!std::fgets(line, sizeof line, pipe)) line[0] = 0;
    pclose(pipe);
  }
  line[std::strcspn(line, " \n")] = 0;
  return line[0] && line[0] != '?' ? std::string(" at ") + line : "";
}

Region* region_of(const char* place) {
  if (shared.holds(place)) return &shared;
  // The latest first: an earlier one at the same place was of memory that has been freed since.
  for (auto buffer = buffers.rbegin(); buffer != buffers.rend(); ++buffer) {
    if (buffer->holds(place)) return &*buffer;
  }
  return nullptr;
}

std::string name_of(const Region& region) {
  return &region == &shared ? "shared memory" : "a buffer of " + std::to_string(region.bytes) + " bytes";
}

// The buffer that an address outside all of them is nearest to.
std::string nearest_buffer(const char* place) {
  const Region* nearest = nullptr;
  auto distance = [place](const Region& r) {
    return static_cast<size_t>(place < r.begin ? r.begin - place : place - (r.begin + r.bytes));
  };
  for (const Region& buffer : buffers) {
    if (!nearest || distance(buffer) < distance(*nearest)) nearest = &buffer;
  }
  if (!nearest) return "there is no buffer";
  return std::to_string(distance(*nearest)) + (place < nearest->begin ? " bytes before " : " bytes past ") +
         name_of(*nearest);
}

bool is_index(const char* place) {
  auto within = [place](const auto& variable) {
    const auto* first = reinterpret_cast<const char*>(&variable);
    return place >= first && place < first + sizeof variable;
  };
  return within(threadIdx) || within(blockIdx) || within(blockDim) || within(gridDim);
}

// `where` gives the line of the access, for a report.
template <typename Where>
void check(const char* place, size_t bytes, Kind kind, const Where& where) {
  const Moment* moment = now();
  if (!moment || on_own_stack(place) || is_index(place)) return;
  if (kind == Kind::atomic || kind == Kind::volatile_read) interleave();

  const bool reads = kind == Kind::read || kind == Kind::volatile_read;
  const char* verb = reads ? "reads " : kind == Kind::write ? "writes " : "updates ";
  Region* region = region_of(place);
  if (!region || !region->holds(place + bytes - 1)) {
    fail("out of bounds: a thread " + std::string(verb) + std::to_string(bytes) + " bytes " +
         (region ? "over the end of " + name_of(*region) : nearest_buffer(place)) + where());
  }
  if (!region->writable) {
    if (reads) return;
    fail("a thread " + std::string(verb) + "an input: " + name_of(*region) + where());
  }
  const size_t first = static_cast<size_t>(place - region->begin);
  if (region->cells.empty()) region->cells.resize(region->bytes);
  for (size_t byte = first; byte < first + bytes; ++byte) {
    Cell& cell = region->cells[byte];
    if (region == &shared && kind != Kind::write && !cell.writes.any() && !cell.atomics.any()) {
      fail("a thread " + std::string(verb) + std::to_string(bytes) + " bytes of shared memory that nobody has written" +
           where());
    }
    auto race = [&](const Track& track, const char* has) {
      if (track.ordered_before(*moment)) return;
      fail("race: a thread " + std::string(verb) + "byte " + std::to_string(byte) + " of " + name_of(*region) +
           " that thread " + std::to_string(track.last().thread) + " of block " + std::to_string(track.last().block) +
           has + ", and nothing was waited for between them," + where());
    };
    race(cell.writes, " has written");
    if (kind == Kind::read || kind == Kind::write) race(cell.atomics, " has updated");
    if (kind != Kind::read) race(cell.reads, " has read");
    (kind == Kind::read ? cell.reads : kind == Kind::write ? cell.writes : cell.atomics).note(*moment);
  }
}

}  // namespace

void begin_launch() {
  for (Region& buffer : buffers) buffer.cells.clear();
}

void begin_block() {
  find_shared();
  shared.cells.assign(shared.bytes, Cell{});
  std::memset(const_cast<char*>(shared.begin), 0xcb, shared.bytes);
}

void forget_buffers() { buffers.clear(); }

void add_buffer(const void* begin, size_t bytes, bool writable) {
  const auto* first = static_cast<const char*>(begin);
  for (Region& buffer : buffers) {
    if (buffer.begin == first && buffer.bytes == bytes) {
      buffer.writable |= writable;
      return;
    }
  }
  if (bytes) buffers.push_back({first, bytes, writable, {}});
}

void atomic(void* place, size_t bytes, Site site) {
  check(static_cast<const char*>(place), bytes, Kind::atomic, [&] { return at(site); });
}

void aligned(const void* place, size_t alignment, Site site) {
  if (reinterpret_cast<uintptr_t>(place) % alignment) fail("misaligned: an atomic vector" + at(site));
}

}  // namespace simt

// ---- what the compiler calls ----

#define SIMT_CHECK(place, bytes, kind)                            \
  simt::check(static_cast<char*>(place), bytes, simt::Kind::kind, \
              [code = __builtin_return_address(0)] { return simt::line_of(code); })

#define SIMT_ACCESS(size)                                                                  \
  void __tsan_read##size(void* place) { SIMT_CHECK(place, size, read); }                   \
  void __tsan_write##size(void* place) { SIMT_CHECK(place, size, write); }                 \
  void __tsan_volatile_read##size(void* place) { SIMT_CHECK(place, size, volatile_read); } \
  void __tsan_volatile_write##size(void* place) { SIMT_CHECK(place, size, write); }        \
  void __tsan_unaligned_read##size(void* place) { SIMT_CHECK(place, size, read); }         \
  void __tsan_unaligned_write##size(void* place) { SIMT_CHECK(place, size, write); }

extern "C" {
void __tsan_init() {}
SIMT_ACCESS(1)
SIMT_ACCESS(2)
SIMT_ACCESS(4)
SIMT_ACCESS(8)
SIMT_ACCESS(16)
void __tsan_read_range(void* place, size_t bytes) {
  if (bytes) SIMT_CHECK(place, bytes, read);
}
void __tsan_write_range(void* place, size_t bytes) {
  if (bytes) SIMT_CHECK(place, bytes, write);
}

struct SourceLine {
  const char* file;
  uint32_t line, column;
};

// -fsanitize=bounds: an index past the end of an array whose size the compiler knows.
void __ubsan_handle_out_of_bounds(const SourceLine* where, uintptr_t index) {
  simt::fail("out of bounds: index " + std::to_string(static_cast<intptr_t>(index)) + " of an array" +
             simt::at({where->file, static_cast<int>(where->line)}));
}

// -fsanitize=alignment: an access through a pointer that is no multiple of its type's alignment, such as a uint4's.
void __ubsan_handle_type_mismatch_v1(const SourceLine* where, uintptr_t) {
  simt::fail("misaligned: a pointer is no multiple of what it points to" +
             simt::at({where->file, static_cast<int>(where->line)}));
}
}
