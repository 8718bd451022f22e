// temporal_drop_loss: its random points, and what they read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../common/bits.h"
#include "../common/logistic.h"

namespace s2d::temporal_drop_loss {

constexpr int kRun = 128;  // points that are handled, and summed in T, together

// Two words of each run of Philox4x32-10 make a point: x from the first, y from the second. Counter n of a row yields
// points n and n + half of its set, half the set's size rounded up (Salmon et al., Parallel Random Numbers, SC 2011).
enum Stream : uint32_t { kCandidates = 0, kUniform = 1 };

struct Words {
  uint32_t a, b, c, d;
};

S2D_LOOP Words philox(uint64_t seed, uint32_t counter, uint32_t row, uint32_t stream) {
  auto key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  Words words{counter, row, stream, 0};
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint64_t p = uint64_t{0xD2511F53} * words.a, q = uint64_t{0xCD9E8D57} * words.c;
    words = {static_cast<uint32_t>(q >> 32) ^ words.b ^ key0, static_cast<uint32_t>(q),
             static_cast<uint32_t>(p >> 32) ^ words.d ^ key1, static_cast<uint32_t>(p)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return words;
}

// In [0, 1), of 24 bits: every step is a float.
template <typename T>
S2D_LOOP T unit(uint32_t word) {
  return static_cast<T>(static_cast<int32_t>(word >> 8)) * static_cast<T>(0x1p-24);
}

// The map of a row with two zeros on every side: a point outside is moved to where all four pixels are zeros, and no
// weight has to save it from a pixel that is infinite.
template <typename T>
struct Map {
  int32_t height, width, pitch;
  std::vector<T> values;

  Map(int64_t rows, int64_t columns)
      : height(static_cast<int32_t>(rows)),
        width(static_cast<int32_t>(columns)),
        pitch(width + 4),
        values((rows + 4) * (columns + 4)) {}

  void fill(const T* dense) {
    for (int32_t y = 0; y < height; ++y)
      std::copy(dense + int64_t{y} * width, dense + int64_t{y + 1} * width, values.data() + (y + 2) * pitch + 2);
  }
};

// kRun points, and where they read a map: the top left of their four pixels, how far right of it and below it they are.
template <typename T>
struct Points {
  T x[kRun], y[kRun];
};

template <typename T>
struct Places {
  int32_t column[kRun], row[kRun];  // from -2 to the size
  T right[kRun], down[kRun];
};

template <typename T>
S2D_LOOP void place_along(const T* __restrict coordinate, int32_t size, int32_t* __restrict pixel, T* __restrict past) {
  for (int i = 0; i < kRun; ++i) {
    T p = coordinate[i] * static_cast<T>(size) - static_cast<T>(0.5);
    p = p > -1 ? p : static_cast<T>(-2);  // NaN too
    p = p < static_cast<T>(size) ? p : static_cast<T>(size);
    auto first = static_cast<int32_t>(p);
    first -= static_cast<T>(first) > p ? 1 : 0;
    pixel[i] = first;
    past[i] = p - static_cast<T>(first);
  }
}

template <typename T>
S2D_LOOP void place(const Points<T>& points, int32_t height, int32_t width, Places<T>& places) {
  place_along(points.x, width, places.column, places.right);
  place_along(points.y, height, places.row, places.down);
}

template <typename T>
S2D_LOOP T blend(T upper_left, T upper_right, T lower_left, T lower_right, T right, T down) {
  return upper_left * ((1 - right) * (1 - down)) + upper_right * (right * (1 - down)) +
         lower_left * ((1 - right) * down) + lower_right * (right * down);
}

template <typename T>
S2D_LOOP void read(const Map<T>& map, const Places<T>& places, T* __restrict out) {
  const T* __restrict values = map.values.data();
  const int32_t pitch = map.pitch;
  int32_t at[kRun];
  for (int i = 0; i < kRun; ++i) at[i] = (places.row[i] + 2) * pitch + places.column[i] + 2;
  // Neighbours of a row are moved together: half as many loads, and none of them goes into the middle of a register.
  T upper[2 * kRun], lower[2 * kRun];
  for (int i = 0; i < kRun; ++i) {
    std::memcpy(upper + 2 * i, values + at[i], 2 * sizeof(T));
    std::memcpy(lower + 2 * i, values + at[i] + pitch, 2 * sizeof(T));
  }
  for (int i = 0; i < kRun; ++i) {
    out[i] = blend(upper[2 * i], upper[2 * i + 1], lower[2 * i], lower[2 * i + 1], places.right[i], places.down[i]);
  }
}

// A mask's words are read by halves, the first of them in place of those outside.
template <typename T>
S2D_LOOP void read(const uint32_t* __restrict mask, int32_t height, int32_t width, const Places<T>& places,
                   T* __restrict out) {
  const auto halves = static_cast<int32_t>(2 * words_for(width));
  const auto bit = [=](int32_t x, int32_t y) __attribute__((always_inline)) {
    const int32_t inside = (x >= 0) & (x < width) & (y >= 0) & (y < height);
    return static_cast<T>(static_cast<int32_t>(mask[(y * halves + (x >> 5)) * inside] >> (x & 31)) & inside);
  };
  for (int i = 0; i < kRun; ++i) {
    const int32_t x = places.column[i], y = places.row[i];
    out[i] = blend(bit(x, y), bit(x + 1, y), bit(x, y + 1), bit(x + 1, y + 1), places.right[i], places.down[i]);
  }
}

}  // namespace s2d::temporal_drop_loss
