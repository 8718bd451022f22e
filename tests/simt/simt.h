// What the files of the emulator share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda_runtime.h"

namespace simt {

// How far a thread has come; two accesses are ordered only by what was waited for between them.
struct Moment {
  uint32_t block = 0, thread = 0;
  uint32_t barriers = 0;  // that the block has passed
  uint32_t warp_ops = 0;  // that the thread has shared with others of its warp
};

// The moment of the running thread, or nullptr outside a kernel.
const Moment* now();

// Before an atomic access: lets other threads of the block come first, so that code without locks meets what it is to
// stand. In the orders of a seed by chance, else always.
void interleave();

// Whether an address lies on the stack of the running thread, or where the host keeps a launch's arguments.
bool on_own_stack(const void* place);

// " at file.cu:12".
std::string at(const Site& site);

// Ends the launch: its error is thrown once the host runs again. From a kernel's thread this does not return.
void fail(const std::string& what);

// Shadow memory: forget the accesses of the last launch; fill what a block shares with garbage.
void begin_launch();
void begin_block();

// ---- what torch hands to a launcher (torch.cpp) ----

// Buffers are known between the first device guard of an operator and the next operator's.
void forget_buffers();
void add_buffer(const void* begin, size_t bytes, bool writable);

// The stream that the emulated torch calls current, and whether a device guard is held.
void* current_stream();
bool guarded();

}  // namespace simt
