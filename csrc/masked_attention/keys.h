// masked_attention on the CPU: 64 keys at a time, one query after another, a register of keys in one step.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "../common/bits.h"
#include "../common/lanes.h"

// Functions that return registers are all inlined: there is no call whose convention could depend on the machine.
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace s2d::masked_attention {

// [B, heads, N, D] of any strides but that of D, which is 1.
template <typename T>
struct Rows {
  const T* data;
  int64_t clip_step, head_step, row_step;

  const T* at(int64_t clip, int64_t head, int64_t row) const {
    return data + clip * clip_step + head * head_step + row * row_step;
  }
};

// Zeros that begin at a cache line.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t size) : held_(size + kLine) {
    data_ = held_.data() + (kLine - reinterpret_cast<uintptr_t>(held_.data()) / sizeof(T) % kLine);
  }
  T* data() { return data_; }

 private:
  static constexpr uintptr_t kLine = 64 / sizeof(T);
  std::vector<T> held_;
  T* data_;
};

template <int kLanes, typename T>
S2D_LOOP Lanes<T, kLanes> load(const T* from) {
  return *reinterpret_cast<const typename Vector<T, kLanes>::InMemory*>(from);
}

template <int kLanes, typename T>
S2D_LOOP void store(T* to, const Lanes<T, kLanes>& values) {
  *reinterpret_cast<typename Vector<T, kLanes>::InMemory*>(to) = values;
}

template <int kBy, typename Values, int... kLane>
S2D_LOOP Values rotated(const Values& x, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(x, x, ((kLane + kBy) % sizeof...(kLane))...);
}

// Some other lane where one is NaN.
template <int kLanes, typename T, int kBy = kLanes / 2>
S2D_LOOP T largest(const Lanes<T, kLanes>& x) {
  if constexpr (kBy == 0) {
    return x[0];
  } else {
    const Lanes<T, kLanes> other = rotated<kBy>(x, std::make_integer_sequence<int, kLanes>());
    return largest<kLanes, T, kBy / 2>(x > other ? x : other);
  }
}

// 2^x for x <= 0 (a rounding above is no harm); under 2^-126 it is 0, NaN gives NaN. Minimax, to 2e-8.
template <int kLanes>
S2D_LOOP Lanes<float, kLanes> power_of_two(const Lanes<float, kLanes>& x) {
  using Values = Lanes<float, kLanes>;
  using Bits = typename Vector<float, kLanes>::Bits;
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  const Values shifted = x + kShift;
  const Values f = x - (shifted - kShift);
  Values p = f * 0.00015345811f + 0.0013399931f;
  p = p * f + 0.009618489f;
  p = p * f + 0.055503286f;
  p = p * f + 0.24022646f;
  p = p * f + 0.6931472f;
  p = p * f + 1.0f;
  const Values power = p * reinterpret_cast<Values>((reinterpret_cast<Bits>(shifted) << 23) + 0x3f800000);
  return x < -126.0f ? Values{} : power;
}

// Double is there to check by: libm's function.
template <int kLanes>
S2D_LOOP Lanes<double, kLanes> power_of_two(const Lanes<double, kLanes>& x) {
  Lanes<double, kLanes> power;
  for (int lane = 0; lane < kLanes; ++lane) power[lane] = std::exp2(x[lane]);
  return power;
}

// Rows of `count` keys close together, [64, pitch]; what is past them is left alone.
template <int kLanes, typename T>
S2D_LOOP void copy_rows(const Rows<T>& from, int64_t clip, int64_t head, int64_t first, int64_t count, int64_t channels,
                        int64_t pitch, T* rows) {
  for (int64_t key = 0; key < count; ++key) {
    const T* row = from.at(clip, head, first + key);
    int64_t d = 0;
    for (; d + kLanes <= channels; d += kLanes) store<kLanes>(rows + key * pitch + d, load<kLanes>(row + d));
    for (; d < channels; ++d) rows[key * pitch + d] = row[d];
  }
}

// Ask for the part of the next 64 keys that falls to one of many queries: short rows far apart are more than the
// hardware foresees.
template <typename T>
S2D_LOOP void prefetch_share(const Rows<T>& from, int64_t clip, int64_t head, int64_t first, int64_t end,
                             int64_t channels, int64_t query, int64_t queries) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t last = std::min(first + kWordBits * (query + 1) / queries, end);
  for (int64_t key = first + kWordBits * query / queries; key < last; ++key) {
    const T* row = from.at(clip, head, key);
    for (int64_t d = 0; d < channels; d += kLine) __builtin_prefetch(row + d);
  }
}

// The same keys side by side, [channels, 64].
template <int kLanes, typename T>
S2D_LOOP void turn_rows(const T* rows, int64_t count, int64_t channels, int64_t pitch, T* turned) {
  for (int64_t key = 0; key < count; key += kLanes) {
    for (int64_t d = 0; d < channels; d += kLanes) {
      Lanes<T, kLanes> square[kLanes];
      for (int k = 0; k < kLanes; ++k) square[k] = load<kLanes>(rows + (key + k) * pitch + d);
      turn<kLanes>(square);
      for (int k = 0; k < kLanes && d + k < channels; ++k) store<kLanes>(turned + (d + k) * kWordBits + key, square[k]);
    }
  }
}

// Products of a row with kBlocks blocks of kLanes keys each.
template <int kLanes, int kBlocks, typename T>
S2D_LOOP void multiply(const T* row, const T* turned, const int* block, int64_t channels, Lanes<T, kLanes>* out) {
  // Several sums a block, so that no addition waits for the one before it.
  constexpr int kChains = kBlocks == 1 ? 4 : kBlocks == 2 ? 2 : 1;
  Lanes<T, kLanes> sum[kBlocks][kChains] = {};
  int64_t d = 0;
  for (; d + kChains <= channels; d += kChains) {
    for (int chain = 0; chain < kChains; ++chain) {
      for (int b = 0; b < kBlocks; ++b) {
        sum[b][chain] += row[d + chain] * load<kLanes>(turned + (d + chain) * kWordBits + block[b] * kLanes);
      }
    }
  }
  for (; d < channels; ++d) {
    for (int b = 0; b < kBlocks; ++b) {
      sum[b][0] += row[d] * load<kLanes>(turned + d * kWordBits + block[b] * kLanes);
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    for (int chain = 1; chain < kChains; ++chain) sum[b][0] += sum[b][chain];
    out[b] = sum[b][0];
  }
}

template <int kLanes>
constexpr int kBlocks = kWordBits / kLanes;

// The blocks of a word that have a key; their number.
template <int kLanes>
S2D_LOOP int blocks_of(uint64_t bits, int* block) {
  constexpr uint64_t kBlock = (uint64_t{1} << kLanes) - 1;
  int count = 0;
  for (int b = 0; b < kBlocks<kLanes>; ++b) {
    block[count] = b;
    count += (bits >> b * kLanes & kBlock) != 0;
  }
  return count;
}

template <int kLanes, typename T>
S2D_LOOP void multiply_blocks(const T* row, const T* turned, const int* block, int count, int64_t channels,
                              Lanes<T, kLanes>* out) {
  int done = 0;
  for (; done + 4 <= count; done += 4) multiply<kLanes, 4>(row, turned, block + done, channels, out + done);
  switch (count - done) {
    case 3:
      return multiply<kLanes, 3>(row, turned, block + done, channels, out + done);
    case 2:
      return multiply<kLanes, 2>(row, turned, block + done, channels, out + done);
    case 1:
      return multiply<kLanes, 1>(row, turned, block + done, channels, out + done);
  }
}

template <int kLanes, typename T, int... kLane>
S2D_LOOP Lanes<T, kLanes> select(uint64_t bits, const Lanes<T, kLanes>& values, T other,
                                 std::integer_sequence<int, kLane...>) {
  using Bits = typename Vector<T, kLanes>::Bits;
  using Integer = typename Vector<T, kLanes>::Integer;
  const Bits own = {(Integer{1} << kLane)...};
  return ((own & static_cast<Integer>(bits)) != 0) ? values : Lanes<T, kLanes>{} + other;
}

// Values where the bits of a block are set, else another.
template <int kLanes, typename T>
S2D_LOOP Lanes<T, kLanes> select(uint64_t bits, int block, const Lanes<T, kLanes>& values, T other) {
  return select<kLanes, T>(bits >> block * kLanes, values, other, std::make_integer_sequence<int, kLanes>());
}

}  // namespace s2d::masked_attention
