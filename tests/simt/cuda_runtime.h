// CUDA for the host compiler: stands in for <cuda_runtime.h>, so that a .cu compiles as C++ and runs on the CPU.
//
// Blocks run one after another, the threads of a block as fibers that switch only at barriers and warp operations, in
// an order that can be permuted (simt.cpp). The compiler reports every load and store (memory.cpp): one outside the
// buffers of the launch, a misaligned one, and two that race are errors that name the kernel's line. What is not here
// is not supported: using it does not compile.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// All blocks run on one thread of the host, so that what is local to it is shared by a block. No section of a name of
// its own: the compiler does not put a template's variables into one.
#define __shared__ static thread_local

// ---- types ----

#define SIMT_VECTOR(name, type, size, ...)   \
  struct alignas(sizeof(type) * size) name { \
    type __VA_ARGS__;                        \
  };                                         \
  inline name make_##name

SIMT_VECTOR(float2, float, 2, x, y)(float x, float y) { return {x, y}; }
SIMT_VECTOR(float4, float, 4, x, y, z, w)(float x, float y, float z, float w) { return {x, y, z, w}; }
SIMT_VECTOR(int2, int, 2, x, y)(int x, int y) { return {x, y}; }
SIMT_VECTOR(int4, int, 4, x, y, z, w)(int x, int y, int z, int w) { return {x, y, z, w}; }
SIMT_VECTOR(uint2, unsigned, 2, x, y)(unsigned x, unsigned y) { return {x, y}; }
SIMT_VECTOR(uint4, unsigned, 4, x, y, z, w)(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
SIMT_VECTOR(ulonglong2, unsigned long long, 2, x, y)
(unsigned long long x, unsigned long long y) { return {x, y}; }
#undef SIMT_VECTOR

struct uint3 {
  unsigned x, y, z;
};

struct dim3 : uint3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};

// Which thread runs.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// ---- the emulator ----

namespace simt {

// Where a warp operation or a barrier stands in the source.
struct Site {
  const char* file;
  int line;
  bool operator==(const Site&) const = default;
};
#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

enum class Barrier { plain, any, all, count };
enum class WarpOp { sync, shuffle, ballot, match, add, least, greatest, bit_and, bit_or, bit_xor };

int barrier(Barrier kind, int predicate, Site site);
// Deposits a value and returns the operation's result for this lane; `source` is the lane a shuffle reads.
uint64_t warp(WarpOp op, unsigned mask, uint64_t value, int source, Site site);
// Checks an atomic access.
void atomic(void* place, size_t bytes, Site site);
// Checks that a place is a multiple of an atomic vector's alignment.
void aligned(const void* place, size_t alignment, Site site);
void launch(dim3 blocks, dim3 threads, void* stream, const void* kernel, void (*body)(const void*),
            const void* closure);

inline int lane() { return static_cast<int>(threadIdx.x % 32); }

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T shuffle(unsigned mask, T value, int source, int width, Site site) {
  const int first = lane() & ~(width - 1);
  const bool outside = source < first || source >= first + width;
  return from_bits<T>(warp(WarpOp::shuffle, mask, to_bits(value), outside ? lane() : source, site));
}

}  // namespace simt

// ---- launching ----

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const auto call = [&] { kernel(arguments...); };
  simt::launch(
      config->gridDim, config->blockDim, config->stream, reinterpret_cast<const void*>(kernel),
      [](const void* closure) { (*static_cast<decltype(&call)>(closure))(); }, &call);
  return cudaSuccess;
}

// ---- barriers and warp operations ----

inline void __syncthreads(SIMT_SITE) { simt::barrier(simt::Barrier::plain, 0, {file, line}); }
inline int __syncthreads_or(int p, SIMT_SITE) { return simt::barrier(simt::Barrier::any, p, {file, line}); }
inline int __syncthreads_and(int p, SIMT_SITE) { return simt::barrier(simt::Barrier::all, p, {file, line}); }
inline int __syncthreads_count(int p, SIMT_SITE) { return simt::barrier(simt::Barrier::count, p, {file, line}); }

inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_SITE) {
  simt::warp(simt::WarpOp::sync, mask, 0, 0, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE) {
  return static_cast<unsigned>(simt::warp(simt::WarpOp::ballot, mask, predicate != 0, 0, {file, line}));
}
inline int __any_sync(unsigned mask, int predicate, SIMT_SITE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_SITE) {
  return __ballot_sync(mask, !predicate, file, line) == 0;
}

template <typename T>
unsigned __match_any_sync(unsigned mask, T value, SIMT_SITE) {
  return static_cast<unsigned>(simt::warp(simt::WarpOp::match, mask, simt::to_bits(value), 0, {file, line}));
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_SITE) {
  const int first = simt::lane() & ~(width - 1);
  return simt::shuffle(mask, value, first + (source & (width - 1)), width, {file, line});
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
  return simt::shuffle(mask, value, simt::lane() - static_cast<int>(delta), width, {file, line});
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
  return simt::shuffle(mask, value, simt::lane() + static_cast<int>(delta), width, {file, line});
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, SIMT_SITE) {
  return simt::shuffle(mask, value, simt::lane() ^ bits, width, {file, line});
}

#define SIMT_REDUCE(name, op, type)                                                                             \
  inline type name(unsigned mask, type value, SIMT_SITE) {                                                      \
    return static_cast<type>(simt::warp(simt::WarpOp::op, mask, static_cast<int64_t>(value), 0, {file, line})); \
  }
SIMT_REDUCE(__reduce_add_sync, add, unsigned)
SIMT_REDUCE(__reduce_add_sync, add, int)
SIMT_REDUCE(__reduce_min_sync, least, unsigned)
SIMT_REDUCE(__reduce_min_sync, least, int)
SIMT_REDUCE(__reduce_max_sync, greatest, unsigned)
SIMT_REDUCE(__reduce_max_sync, greatest, int)
SIMT_REDUCE(__reduce_and_sync, bit_and, unsigned)
SIMT_REDUCE(__reduce_or_sync, bit_or, unsigned)
SIMT_REDUCE(__reduce_xor_sync, bit_xor, unsigned)
#undef SIMT_REDUCE

// ---- atomics ----

// Uninstrumented: the plain load and store inside are one access to the outside.
#define SIMT_ATOMIC(name, result)                                                                               \
  template <typename T>                                                                                         \
  __attribute__((noinline, no_sanitize("thread"))) T name(T* place, std::type_identity_t<T> value, SIMT_SITE) { \
    simt::atomic(place, sizeof(T), {file, line});                                                               \
    const T old = *place;                                                                                       \
    *place = result;                                                                                            \
    return old;                                                                                                 \
  }
SIMT_ATOMIC(atomicAdd, old + value)
SIMT_ATOMIC(atomicSub, old - value)
SIMT_ATOMIC(atomicAnd, old& value)
SIMT_ATOMIC(atomicOr, old | value)
SIMT_ATOMIC(atomicXor, old ^ value)
SIMT_ATOMIC(atomicExch, value)
SIMT_ATOMIC(atomicMin, value < old ? value : old)
SIMT_ATOMIC(atomicMax, old < value ? value : old)
#undef SIMT_ATOMIC

// Of sm_90: each number by itself is added atomically, and the place is a multiple of sixteen bytes.
__attribute__((noinline, no_sanitize("thread"))) inline float4 atomicAdd(float4* place, float4 value, SIMT_SITE) {
  simt::aligned(place, alignof(float4), {file, line});
  auto* each = reinterpret_cast<float*>(place);
  return {atomicAdd(each, value.x, file, line), atomicAdd(each + 1, value.y, file, line),
          atomicAdd(each + 2, value.z, file, line), atomicAdd(each + 3, value.w, file, line)};
}

template <typename T>
__attribute__((noinline, no_sanitize("thread"))) T atomicCAS(T* place, std::type_identity_t<T> expected,
                                                             std::type_identity_t<T> value, SIMT_SITE) {
  simt::atomic(place, sizeof(T), {file, line});
  const T old = *place;
  if (old == expected) *place = value;
  return old;
}

// ---- bits and arithmetic ----

template <typename T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

template <typename T>
T __ldg(const T* place) {
  return *place;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1u) << (31 - bit);
  return reversed;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
