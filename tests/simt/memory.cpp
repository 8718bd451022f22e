// The emulator's view of memory. Kernels are compiled with -fsanitize=thread and -fsanitize=bounds, and the calls that
// the compiler puts before every load and store come here instead of to a sanitizer's runtime: so an access is held
// against the exact bounds of the launch's buffers, and against the accesses of other threads since the last barrier.

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "simt.h"

// The linker gives the bounds of the section in which __shared__ variables lie.
extern "C" __attribute__((weak, visibility("hidden"))) char __start_simt_shared[], __stop_simt_shared[];

namespace simt {
namespace {

// The last accesses to one byte in this launch.
struct Cell {
  Moment writer, reader;
  bool written = false, read = false;
  bool atomic = false;     // the write was
  bool many_read = false;  // threads of several warps, or of none that has waited since
  bool warp_read = false;  // several lanes of the reader's warp
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

bool same_warp(const Moment& a, const Moment& b) { return a.block == b.block && a.thread / 32 == b.thread / 32; }

bool ordered(const Moment& earlier, const Moment& later) {
  if (earlier.block != later.block) return false;
  if (earlier.thread == later.thread || earlier.barriers != later.barriers) return true;
  return same_warp(earlier, later) && earlier.warp_ops < later.warp_ops;
}

bool ordered_after_readers(const Cell& cell, const Moment& later) {
  if (cell.reader.block == later.block && cell.reader.barriers != later.barriers) return true;
  if (cell.many_read) return false;
  if (cell.warp_read) return same_warp(cell.reader, later) && cell.reader.warp_ops < later.warp_ops;
  return ordered(cell.reader, later);
}

void note_read(Cell& cell, const Moment& moment) {
  const bool alone = !cell.read || ordered_after_readers(cell, moment);
  if (alone) {
    cell.reader = moment;
    cell.many_read = cell.warp_read = false;
  } else if (cell.reader.thread != moment.thread || cell.reader.block != moment.block) {
    const bool together = same_warp(cell.reader, moment) && cell.reader.warp_ops == moment.warp_ops;
    (together ? cell.warp_read : cell.many_read) = true;
  }
  cell.read = true;
}

enum class Kind { read, write, atomic };

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
void check(const char* place, size_t bytes, Kind kind, bool aligned, const Where& where) {
  const Moment* moment = now();
  if (!moment || on_own_stack(place) || is_index(place)) return;

  const char* verb = kind == Kind::read ? "reads " : kind == Kind::write ? "writes " : "updates ";
  Region* region = region_of(place);
  if (!region || !region->holds(place + bytes - 1)) {
    fail("out of bounds: a thread " + std::string(verb) + std::to_string(bytes) + " bytes " +
         (region ? "over the end of " + name_of(*region) : nearest_buffer(place)) + where());
  }
  if (aligned && reinterpret_cast<uintptr_t>(place) % bytes) {
    fail("misaligned: a thread " + std::string(verb) + std::to_string(bytes) +
         " bytes at an address that is no multiple" + where());
  }
  if (!region->writable) {
    if (kind == Kind::read) return;
    fail("a thread " + std::string(verb) + "an input: " + name_of(*region) + where());
  }
  const size_t first = static_cast<size_t>(place - region->begin);
  if (region->cells.empty()) region->cells.resize(region->bytes);
  for (size_t byte = first; byte < first + bytes; ++byte) {
    Cell& cell = region->cells[byte];
    if (!cell.written && kind != Kind::write && region == &shared) {
      fail("a thread " + std::string(verb) + std::to_string(bytes) + " bytes of shared memory that nobody has written" +
           where());
    }
    const bool both_atomic = kind == Kind::atomic && cell.atomic;
    const bool after_writer = !cell.written || both_atomic || ordered(cell.writer, *moment);
    const bool after_readers = kind == Kind::read || !cell.read || ordered_after_readers(cell, *moment);
    if (!after_writer || !after_readers) {
      const Moment& other = after_writer ? cell.reader : cell.writer;
      fail("race: a thread " + std::string(verb) + "byte " + std::to_string(byte) + " of " + name_of(*region) +
           " that thread " + std::to_string(other.thread) + " of block " + std::to_string(other.block) +
           (after_writer ? " has read" : " has written") + ", and nothing was waited for between them," + where());
    }
    if (kind == Kind::read) {
      note_read(cell, *moment);
    } else {
      cell.writer = *moment;
      cell.written = true;
      cell.atomic = kind == Kind::atomic;
    }
  }
}

}  // namespace

void begin_launch() {
  for (Region& buffer : buffers) buffer.cells.clear();
}

void begin_block() {
  if (!__start_simt_shared) return;
  shared.begin = __start_simt_shared;
  shared.bytes = static_cast<size_t>(__stop_simt_shared - __start_simt_shared);
  shared.cells.assign(shared.bytes, Cell{});
  std::memset(__start_simt_shared, 0xcb, shared.bytes);
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
  check(static_cast<const char*>(place), bytes, Kind::atomic, true, [&] { return at(site); });
}

}  // namespace simt

// ---- what the compiler calls ----

#define SIMT_CHECK(place, bytes, kind, aligned)                            \
  simt::check(static_cast<char*>(place), bytes, simt::Kind::kind, aligned, \
              [code = __builtin_return_address(0)] { return simt::line_of(code); })

#define SIMT_ACCESS(size)                                                                 \
  void __tsan_read##size(void* place) { SIMT_CHECK(place, size, read, true); }            \
  void __tsan_write##size(void* place) { SIMT_CHECK(place, size, write, true); }          \
  void __tsan_unaligned_read##size(void* place) { SIMT_CHECK(place, size, read, false); } \
  void __tsan_unaligned_write##size(void* place) { SIMT_CHECK(place, size, write, false); }

extern "C" {
void __tsan_init() {}
SIMT_ACCESS(1)
SIMT_ACCESS(2)
SIMT_ACCESS(4)
SIMT_ACCESS(8)
SIMT_ACCESS(16)
void __tsan_read_range(void* place, size_t bytes) {
  if (bytes) SIMT_CHECK(place, bytes, read, false);
}
void __tsan_write_range(void* place, size_t bytes) {
  if (bytes) SIMT_CHECK(place, bytes, write, false);
}

// -fsanitize=bounds: an index past the end of an array whose size the compiler knows.
void __ubsan_handle_out_of_bounds(void* data, uintptr_t index) {
  struct Where {
    const char* file;
    uint32_t line;
  };
  const auto* where = static_cast<const Where*>(data);
  simt::fail("out of bounds: index " + std::to_string(static_cast<intptr_t>(index)) + " of an array" +
             simt::at({where->file, static_cast<int>(where->line)}));
}
}
