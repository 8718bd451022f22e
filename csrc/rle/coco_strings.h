// COCO's strings: runs as characters from '0' to 'o'.
//
// A character holds five bits of a run, the lowest first, and a sixth that says 'more'; the last one's highest bit is
// the sign. From the fourth run on it is the difference to the run two before that is written. Most differences take
// one character or two, in no order a processor could guess: both lengths share one path without a branch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "../common/pack.h"

namespace s2d::rle {

// Append the string of the runs of one mask.
inline void append_string(const int32_t* counts, int64_t runs, std::string& out) {
  constexpr int kBuffer = 1024, kLongest = 7;
  char buffer[kBuffer];
  char* at = buffer;
  for (int64_t r = 0; r < runs; ++r) {
    if (at > buffer + kBuffer - kLongest) {
      out.append(buffer, at);
      at = buffer;
    }
    int64_t value = r > 2 ? static_cast<int64_t>(counts[r]) - counts[r - 2] : counts[r];
    const int64_t two = value + 16 < 0 || value + 16 >= 32;
    if (value + 512 >= 0 && value + 512 < 1024) {
      at[0] = static_cast<char>(((value & 31) | two << 5) + '0');
      at[1] = static_cast<char>((value >> 5 & 31) + '0');
      at += 1 + two;
      continue;
    }
    for (bool more = true; more;) {
      const int64_t chunk = value & 31;
      value >>= 5;
      more = value != (chunk & 16 ? -1 : 0);
      *at++ = static_cast<char>((more ? chunk | 32 : chunk) + '0');
    }
  }
  out.append(buffer, at);
}

namespace strings {

// No run of a mask under 2^31 pixels needs more bits.
constexpr int kLongestRun = 40;

// The bits of the run at `at`, which moves behind it; its shift says how many. The text must not end within the run.
inline int64_t read_run(const char*& at, int& shift) {
  uint64_t value = 0;
  unsigned chunk;
  shift = 0;
  do {
    chunk = static_cast<unsigned char>(*at++) - '0';
    if (shift < 60) value |= static_cast<uint64_t>(chunk & 31) << shift;
    shift += 5;
  } while (chunk & 32);
  if (shift > 60) return 0;
  return static_cast<int64_t>(value << (64 - shift)) >> (64 - shift);
}

// The runs that two characters of six bits hold, or the first of them alone: looked up, as that is half the work.
struct ShortRuns {
  constexpr ShortRuns() {
    for (int pair = 0; pair < 4096; ++pair) {
      const int low = pair & 31, high = pair >> 6 & 31;
      values[pair] = static_cast<int16_t>(pair & 32 ? ((low | high << 5) ^ 512) - 512 : (low ^ 16) - 16);
    }
  }
  int16_t values[4096] = {};
};
inline constexpr ShortRuns kShortRuns;

// What is wrong with a text that is no string of runs.
inline std::string explain(std::string_view text) {
  std::vector<int64_t> counts;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at < end) {
    for (const char* next = at;; ++next) {
      if (next == end) return "expected a complete last run, got a string that ends within it";
      const auto character = static_cast<unsigned char>(*next);
      if (character < '0' || character > 'o') {
        return "expected characters from '0' to 'o', got character code " + std::to_string(character);
      }
      if (!((character - '0') & 32)) break;
    }
    int shift = 0;
    int64_t value = read_run(at, shift);
    if (counts.size() > 2) value += counts[counts.size() - 2];
    if (shift > kLongestRun || value > INT32_MAX) return "expected runs of at most 2^31 - 1 pixels, got a longer one";
    if (value < 0) return "expected runs of at least 0 pixels, got " + std::to_string(value);
    counts.push_back(value);
  }
  return "";
}

}  // namespace strings

// Append the runs of a COCO string. Returns what is wrong with it, or nothing; `counts` is as it was where it is wrong.
//
// Where runs end is found for 64 characters at a time, so that no run waits for the length of the one before it.
inline std::string parse_string(std::string_view text, std::vector<int32_t>& counts) {
  constexpr size_t kChunk = 1024;
  const PackRow pack = pack_row();
  const size_t before = counts.size();
  counts.resize(before + text.size());
  int32_t* const first = counts.data() + before;
  int32_t* out = first;
  int64_t one_before = 0, two_before = 0;
  uint64_t all = 0;
  uint8_t strange = 0;
  bool too_long = false;
  const auto put = [&](int64_t value) {
    value += two_before;
    two_before = one_before;
    one_before = out == first ? 0 : value;  // The third run is not a difference.
    all |= static_cast<uint64_t>(value);
    *out++ = static_cast<int32_t>(value);
  };
  const char* at = text.data();
  for (size_t begin = 0; begin < text.size(); begin += kChunk) {
    const char* chunk = text.data() + begin;
    const size_t size = std::min(kChunk, text.size() - begin);
    uint8_t ends[kChunk];
    uint64_t words[kChunk / kWordBits];
    for (size_t i = 0; i < size; ++i) {
      const auto bits = static_cast<uint8_t>(chunk[i] - '0');
      strange |= bits & 0xc0;
      ends[i] = ~bits & 32;
    }
    pack(ends, words, static_cast<int64_t>(size));
    for (int64_t w = 0; w < words_for(static_cast<int64_t>(size)); ++w, chunk += kWordBits) {
      uint64_t word = words[w];
      // The outlines of large shapes are long stretches of single characters.
      if (word == ~0ull && at == chunk) {
        for (int i = 0; i < kWordBits; ++i) put((((chunk[i] - '0') & 31) ^ 16) - 16);
        at += kWordBits;
        continue;
      }
      for (; word; word &= word - 1) {
        const char* const last = chunk + lowest_bit(word);
        if (last - at > 1) {
          int shift;
          put(strings::read_run(at, shift));
          too_long |= shift > strings::kLongestRun;
          continue;
        }
        // Where the run is one character, that is read twice.
        const unsigned low = static_cast<unsigned char>(*at) - '0', high = static_cast<unsigned char>(*last) - '0';
        put(strings::kShortRuns.values[(low | high << 6) & 4095]);
        at = last + 1;
      }
    }
  }
  counts.resize(before + static_cast<size_t>(out - first));
  if (!strange && !too_long && all <= INT32_MAX && at == text.data() + text.size()) return "";
  counts.resize(before);
  return strings::explain(text);
}

}  // namespace s2d::rle
