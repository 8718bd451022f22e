// A map of labels to the runs of every label.
//
// Where a label differs from the one above it is a bit, compared row by row; transposed to columns, the bits list the
// runs of all labels in COCO's order. Dealt out by label, they are the codes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "encoder.h"
#include "rle.h"

namespace s2d::rle {

template <typename Label>
S2D_LOOP void differ_loop(const Label* row, const Label* other, int64_t width, uint8_t* out) {
  for (int64_t x = 0; x < width; ++x) out[x] = row[x] != other[x];
}
#define S2D_DIFFER(Label)                                                                             \
  S2D_MULTIVERSION(void, differ, (const Label* row, const Label* other, int64_t width, uint8_t* out), \
                   (row, other, width, out))
S2D_DIFFER(uint8_t)
S2D_DIFFER(int8_t)
S2D_DIFFER(uint16_t)
S2D_DIFFER(int16_t)
S2D_DIFFER(int32_t)
S2D_DIFFER(int64_t)
#undef S2D_DIFFER

// Numbers for values in the order in which they come.
class Numbering {
 public:
  void clear() {
    values_.clear();
    table_.assign(std::max<size_t>(table_.size(), 64), -1);
  }

  int32_t number_of(int64_t value) {
    size_t place = hash(value);
    while (table_[place] >= 0) {
      if (values_[table_[place]] == value) return table_[place];
      place = (place + 1) & (table_.size() - 1);
    }
    const auto number = static_cast<int32_t>(values_.size());
    table_[place] = number;
    values_.push_back(value);
    if (2 * values_.size() > table_.size()) grow();
    return number;
  }

  const std::vector<int64_t>& values() const { return values_; }

 private:
  size_t hash(int64_t value) const {
    return (static_cast<uint64_t>(value) * 0x9e3779b97f4a7c15ull >> 32) & (table_.size() - 1);
  }

  void grow() {
    table_.assign(2 * table_.size(), -1);
    for (size_t number = 0; number < values_.size(); ++number) {
      size_t place = hash(values_[number]);
      while (table_[place] >= 0) place = (place + 1) & (table_.size() - 1);
      table_[place] = static_cast<int32_t>(number);
    }
  }

  std::vector<int64_t> values_;
  std::vector<int32_t> table_;
};

// The labels of some frames: runs one label after another, how many each has, and whose they are.
struct LabelRuns {
  std::vector<int32_t> counts;
  std::vector<int64_t> lengths, frames, values;
};

template <typename Label>
class LabelEncoder {
 public:
  LabelEncoder(int64_t height, int64_t width)
      : height_(height), width_(width), strip_(height), differs_(width), changes_(height * words_for(width)) {}

  // Append the codes of all labels of a frame but `background`, in ascending order.
  void encode(const Label* labels, int64_t frame, const int64_t* background, LabelRuns& out) {
    if (height_ * width_ == 0) return;
    find_changes_of(labels);
    list_runs(labels);
    const int64_t number = static_cast<int64_t>(numbering_.values().size());
    deal(number);
    order_.resize(number);
    for (int64_t l = 0; l < number; ++l) order_[l] = l;
    std::sort(order_.begin(), order_.end(),
              [&](int64_t a, int64_t b) { return numbering_.values()[a] < numbering_.values()[b]; });
    for (const int64_t l : order_) {
      const int64_t value = numbering_.values()[l];
      if (background && value == *background) continue;
      const size_t before = out.counts.size();
      int64_t position = 0;
      for (int64_t r = starts_[l]; r < starts_[l + 1]; ++r) {
        out.counts.push_back(static_cast<int32_t>(dealt_[r].begin - position));
        out.counts.push_back(static_cast<int32_t>(dealt_[r].end - dealt_[r].begin));
        position = dealt_[r].end;
      }
      if (position < height_ * width_) out.counts.push_back(static_cast<int32_t>(height_ * width_ - position));
      out.lengths.push_back(static_cast<int64_t>(out.counts.size() - before));
      out.frames.push_back(frame);
      out.values.push_back(value);
    }
  }

 private:
  struct Run {
    int64_t begin, end;
  };

  // One bit a pixel, in rows: whether it differs from the one before it down the columns.
  void find_changes_of(const Label* labels) {
    const PackRow pack = pack_row();
    const int64_t stride = words_for(width_);
    const Label* bottom = labels + (height_ - 1) * width_;
    differ(labels + 1, bottom, width_ - 1, differs_.data() + 1);
    differs_[0] = 1;
    pack(differs_.data(), changes_.data(), width_);
    for (int64_t y = 1; y < height_; ++y) {
      differ(labels + y * width_, labels + (y - 1) * width_, width_, differs_.data());
      pack(differs_.data(), changes_.data() + y * stride, width_);
    }
  }

  void list_runs(const Label* labels) {
    const int64_t stride = words_for(width_), blocks = strip_.blocks();
    numbering_.clear();
    starts_of_runs_.clear();
    labels_of_runs_.clear();
    for (int64_t w = 0; w < stride; ++w) {
      const int64_t left = w * kWordBits, columns = std::min(kWordBits, width_ - left);
      if (!strip_.read(changes_.data() + w, stride, columns, false)) continue;
      any_.assign((blocks + 63) / 64 * 64, 0);
      for (int64_t i = 0; i < blocks * 64; ++i) {
        any_[i / 4096 * 64 + i % 64] |= static_cast<uint64_t>(strip_.columns()[i] != 0) << (i / 64 % 64);
      }
      int64_t column = left, column_begin = left * height_;
      for_each_word(
          strip_.columns(), any_.data(), blocks, 64, columns, height_, column_begin,
          [&](uint64_t changes, int64_t position) {
            while (position - column_begin >= height_) ++column, column_begin += height_;
            for (; changes; changes &= changes - 1) {
              const int64_t begin = position + lowest_bit(changes);
              starts_of_runs_.push_back(begin);
              labels_of_runs_.push_back(numbering_.number_of(labels[(begin - column_begin) * width_ + column]));
            }
          });
    }
    starts_of_runs_.push_back(height_ * width_);
  }

  // The runs of label l, in order, become dealt_[starts_[l]] to dealt_[starts_[l + 1] - 1].
  void deal(int64_t number) {
    starts_.assign(number + 2, 0);
    for (const int32_t label : labels_of_runs_) ++starts_[label + 2];
    for (int64_t l = 0; l < number; ++l) starts_[l + 2] += starts_[l + 1];
    dealt_.resize(labels_of_runs_.size());
    for (size_t r = 0; r < labels_of_runs_.size(); ++r) {
      dealt_[starts_[labels_of_runs_[r] + 1]++] = {starts_of_runs_[r], starts_of_runs_[r + 1]};
    }
  }

  int64_t height_, width_;
  Strip strip_;
  Numbering numbering_;
  std::vector<uint8_t> differs_;
  std::vector<uint64_t> changes_, any_;
  std::vector<int64_t> starts_of_runs_, starts_, order_;
  std::vector<int32_t> labels_of_runs_;
  std::vector<Run> dealt_;
};

}  // namespace s2d::rle
