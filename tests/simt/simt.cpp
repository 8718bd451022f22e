// The emulator's scheduler: blocks as a loop, threads as fibers, barriers and warp operations.
//
// A fiber runs until it waits, or comes to an atomic access. Once no fiber can run, a warp operation is complete when
// every lane that its mask names waits in it, a barrier when every thread of the block does. When nothing is complete,
// the kernel hangs, and each waiting thread's place is reported.

#include "simt.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {
namespace {

constexpr size_t kStack = 1 << 16, kPage = 1 << 12;
constexpr int kWarp = 32, kMostThreads = 1024;

enum class State { ready, at_barrier, in_warp_op, done };

struct Fiber {
  ucontext_t context;
  State state;
  Moment moment;
  uint3 index;
  Site site;
  // What it waits for.
  Barrier barrier;
  int predicate;
  WarpOp op;
  unsigned mask;
  uint64_t value, result;
  int source;
};

char* stacks = nullptr;
std::vector<Fiber> fibers;
Fiber* running = nullptr;
ucontext_t host;
const char* host_stack;  // where the host's stack was at the launch: the arguments lie above
void (*body)(const void*);
const void* closure;
std::string error;
uint64_t order_seed = 0, launches = 0;
std::minstd_rand chance;
std::set<const void*> launched;

char* stack_of(size_t thread) { return stacks + thread * kStack; }

void to_host() { swapcontext(&running->context, &host); }

void enter() {
  std::string thrown;
  try {
    body(closure);
  } catch (const std::exception& exception) {  // of the emulator itself: no memory is left
    thrown = exception.what();
  }
  if (!thrown.empty()) fail(thrown);
  running->state = State::done;
  to_host();
}

std::string place_of(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

// Ascending, descending or a permutation of the launch, as the seed says.
std::vector<size_t> visiting_order(size_t number, uint64_t salt) {
  std::vector<size_t> order(number);
  std::iota(order.begin(), order.end(), 0);
  if (order_seed == 1) std::reverse(order.begin(), order.end());
  if (order_seed > 1) std::shuffle(order.begin(), order.end(), std::mt19937_64(order_seed * 1000003 + salt));
  return order;
}

void prepare(const dim3& threads, uint32_t block) {
  const size_t number = static_cast<size_t>(threads.x) * threads.y * threads.z;
  fibers.resize(number);
  for (size_t t = 0; t < number; ++t) {
    Fiber& fiber = fibers[t];
    fiber.state = State::ready;
    fiber.moment = {block, static_cast<uint32_t>(t), 0, 0};
    const auto flat = static_cast<unsigned>(t);
    fiber.index = {flat % threads.x, flat / threads.x % threads.y, flat / threads.x / threads.y};
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack_of(t) + kPage;
    fiber.context.uc_stack.ss_size = kStack - kPage;
    makecontext(&fiber.context, enter, 0);
  }
}

void run(Fiber& fiber) {
  running = &fiber;
  threadIdx = fiber.index;
  swapcontext(&host, &fiber.context);
  running = nullptr;
}

uint64_t reduced(WarpOp op, uint64_t a, uint64_t b) {
  const auto x = static_cast<int64_t>(a), y = static_cast<int64_t>(b);
  switch (op) {
    case WarpOp::add:
      return a + b;
    case WarpOp::least:
      return x < y ? a : b;
    case WarpOp::greatest:
      return x < y ? b : a;
    case WarpOp::bit_and:
      return a & b;
    case WarpOp::bit_or:
      return a | b;
    default:
      return a ^ b;
  }
}

// Completes the operation that the lanes of `mask` wait in; `warp` is their first fiber.
void complete(Fiber* warp, unsigned lanes, WarpOp op) {
  uint64_t ballot = 0, total = 0;
  bool first = true;
  uint32_t latest = 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    const Fiber& fiber = warp[lane];
    ballot |= (fiber.value & 1) << lane;
    total = first ? fiber.value : reduced(op, total, fiber.value);
    first = false;
    latest = std::max(latest, fiber.moment.warp_ops);
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    Fiber& fiber = warp[lane];
    if (op == WarpOp::shuffle) {
      if (!(lanes >> fiber.source & 1)) {
        fail("lane " + std::to_string(lane) + " of a shuffle reads lane " + std::to_string(fiber.source) +
             ", which takes no part in it," + at(fiber.site));
        return;
      }
      fiber.result = warp[fiber.source].value;
    } else if (op == WarpOp::match) {
      fiber.result = 0;
      for (int other = 0; other < kWarp; ++other) {
        if (lanes >> other & 1) fiber.result |= static_cast<uint64_t>(warp[other].value == fiber.value) << other;
      }
    } else {
      fiber.result = op == WarpOp::ballot ? ballot : total;
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    warp[lane].moment.warp_ops = latest + 1;
    warp[lane].state = State::ready;
  }
}

// The lanes that wait with `fiber` in one operation, or 0 where one that its mask names is elsewhere.
unsigned gathered(const Fiber* warp, int lanes, const Fiber& fiber) {
  unsigned present = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    const Fiber& other = warp[lane];
    if (!(fiber.mask >> lane & 1) || other.state == State::done) continue;
    const bool same = other.state == State::in_warp_op && other.op == fiber.op && other.mask == fiber.mask &&
                      other.site == fiber.site;
    if (!same) return 0;
    present |= 1u << lane;
  }
  return present;
}

bool complete_warp_ops() {
  bool any = false;
  for (size_t first = 0; first < fibers.size(); first += kWarp) {
    const int lanes = static_cast<int>(std::min<size_t>(kWarp, fibers.size() - first));
    for (int lane = 0; lane < lanes; ++lane) {
      const Fiber& fiber = fibers[first + lane];
      if (fiber.state != State::in_warp_op) continue;
      if (const unsigned present = gathered(&fibers[first], lanes, fiber)) {
        complete(&fibers[first], present, fiber.op);
        any = true;
      }
    }
  }
  return any;
}

bool complete_barrier() {
  const Fiber& leader = fibers[0];
  int set = 0;
  for (const Fiber& fiber : fibers) {
    if (fiber.state != State::at_barrier || !(fiber.site == leader.site)) return false;
    set += fiber.predicate != 0;
  }
  const int all = set == static_cast<int>(fibers.size());
  const int result = leader.barrier == Barrier::any ? set > 0 : leader.barrier == Barrier::all ? all : set;
  for (Fiber& fiber : fibers) {
    fiber.result = static_cast<uint64_t>(result);
    ++fiber.moment.barriers;
    fiber.state = State::ready;
  }
  return true;
}

std::string where_threads_hang() {
  std::string text;
  std::set<std::string> told;
  for (const Fiber& fiber : fibers) {
    std::string one = "has ended";
    if (fiber.state == State::at_barrier) one = "waits at a barrier" + at(fiber.site);
    if (fiber.state == State::in_warp_op) one = "waits in a warp operation" + at(fiber.site);
    if (told.insert(one).second)
      text += std::string(text.empty() ? "" : "; ") + "thread " + place_of(fiber.index) + " " + one;
  }
  return text;
}

void run_block(const dim3& threads, uint32_t block) {
  prepare(threads, block);
  begin_block();
  const std::vector<size_t> order = visiting_order(fibers.size(), launches * 7919 + block);
  while (error.empty()) {
    bool ran = false;
    for (const size_t t : order) {
      if (fibers[t].state != State::ready) continue;
      run(fibers[t]);
      ran = true;
      if (!error.empty()) return;
    }
    if (complete_warp_ops() || complete_barrier() || ran) continue;
    if (std::any_of(fibers.begin(), fibers.end(), [](const Fiber& f) { return f.state != State::done; })) {
      fail("not every thread reaches the same point: " + where_threads_hang());
    }
    return;
  }
}

}  // namespace

std::string at(const Site& site) {
  const std::string path = site.file;
  return " at " + path.substr(path.rfind('/') + 1) + ":" + std::to_string(site.line);
}

const Moment* now() { return running ? &running->moment : nullptr; }

void interleave() {
  if (order_seed > 1 && chance() % 4) return;
  to_host();
}

bool on_own_stack(const void* place) {
  const auto* byte = static_cast<const char*>(place);
  const char* stack = stack_of(running->moment.thread);
  return (byte >= stack && byte < stack + kStack) || (byte >= host_stack && byte < host_stack + kStack);
}

void fail(const std::string& what) {
  error = what;
  if (running) {
    error += ", thread " + place_of(threadIdx);
    to_host();
  }
}

int barrier(Barrier kind, int predicate, Site site) {
  running->barrier = kind;
  running->predicate = predicate;
  running->site = site;
  running->state = State::at_barrier;
  to_host();
  return static_cast<int>(running->result);
}

uint64_t warp(WarpOp op, unsigned mask, uint64_t value, int source, Site site) {
  if (!(mask >> (running->moment.thread % kWarp) & 1)) {
    fail("the mask of a warp operation" + at(site) + " does not name the lane that calls it");
  }
  running->op = op;
  running->mask = mask;
  running->value = value;
  running->source = source;
  running->site = site;
  running->state = State::in_warp_op;
  to_host();
  return running->result;
}

void launch(dim3 blocks, dim3 threads, void* stream, const void* kernel, void (*call)(const void*),
            const void* arguments) {
  const uint64_t number = static_cast<uint64_t>(threads.x) * threads.y * threads.z;
  if (number == 0 || number > kMostThreads || blocks.x == 0 || blocks.y == 0 || blocks.z == 0 ||
      blocks.x > 0x7fffffff || blocks.y > 0xffff || blocks.z > 0xffff) {
    throw std::runtime_error("simt: expected a grid up to 2^31-1 x 65535 x 65535 of 1 to 1024 threads, got " +
                             place_of(blocks) + " of " + std::to_string(number));
  }
  if (!guarded()) throw std::runtime_error("simt: expected a device guard around the launch, got none");
  if (stream != current_stream()) throw std::runtime_error("simt: expected the current stream, got another");
  if (!stacks) {
    stacks = static_cast<char*>(mmap(nullptr, kStack * kMostThreads, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks == MAP_FAILED) throw std::runtime_error("simt: no memory for the stacks of the threads");
    // A page that cannot be touched below each stack: an overflow ends at once.
    for (size_t t = 0; t < kMostThreads; ++t) mprotect(stack_of(t), kPage, PROT_NONE);
  }
  body = call;
  closure = arguments;
  host_stack = static_cast<const char*>(__builtin_frame_address(0));
  blockDim = threads;
  gridDim = blocks;
  launched.insert(kernel);
  ++launches;
  error.clear();
  chance.seed(static_cast<unsigned>(order_seed * 1000003 + launches));
  begin_launch();
  for (const size_t flat : visiting_order(static_cast<size_t>(blocks.x) * blocks.y * blocks.z, launches)) {
    const auto b = static_cast<unsigned>(flat);
    blockIdx = {b % blocks.x, b / blocks.x % blocks.y, b / blocks.x / blocks.y};
    run_block(threads, b);
    if (!error.empty()) throw std::runtime_error("simt: " + error + ", block " + place_of(blockIdx));
  }
}

}  // namespace simt

// 0: threads and blocks in ascending order, 1: descending, more: a permutation drawn from this seed.
extern "C" void simt_set_order(uint64_t seed) { simt::order_seed = seed; }

// Writes up to `room` addresses of kernels launched so far; how many there are.
extern "C" int64_t simt_launched(const void** kernels, int64_t room) {
  int64_t number = 0;
  for (const void* kernel : simt::launched) {
    if (number < room) kernels[number] = kernel;
    ++number;
  }
  return number;
}
