// COCO's matching of detections to ground truth, and the curves of precision over recall that follow from it.

#include <cmath>

#include "../common/simd.h"
#include "groups.h"
#include "host.h"
#include "threads.h"

namespace s2d::host {

namespace {

using Offsets = Array<int64_t>;
using Flags = Array<uint8_t>;

// What is written for every detection or ground truth, area range and threshold.
struct Matched {
  int32_t* dt;          // [D, A, T]: the ground truth of the group that is matched, or -1
  uint8_t* dt_ignored;  // [D, A, T]
  int32_t* gt;          // [G, A, T]: the detection of the group that was matched last, or -1
  uint8_t* gt_ignored;  // [A, G]
};

// One group in one area range, at one threshold; results lie `step` apart. `order` visits the ground truth, ignored
// ones last.
void match_group(const double* iou, int64_t number, int64_t truths, double threshold, const int64_t* order,
                 const uint8_t* ignored, const uint8_t* crowd, const uint8_t* dt_outside, int64_t step, int32_t* dt,
                 uint8_t* dt_ignored, int32_t* gt) {
  for (int64_t g = 0; g < truths; ++g) gt[g * step] = -1;
  for (int64_t d = 0; d < number; ++d, iou += truths) {
    double best = std::min(threshold, 1 - 1e-10);
    int64_t match = -1;
    for (int64_t i = 0; i < truths; ++i) {
      const int64_t g = order[i];
      if (gt[g * step] >= 0 && !crowd[g]) continue;
      // What counts is preferred to what is ignored, whatever the overlap.
      if (match >= 0 && !ignored[match] && ignored[g]) break;
      if (iou[g] < best) continue;
      best = iou[g];
      match = g;
    }
    dt[d * step] = static_cast<int32_t>(match);
    dt_ignored[d * step] = match >= 0 ? ignored[match] : dt_outside[d];
    if (match >= 0) gt[match * step] = static_cast<int32_t>(d);
  }
}

py::tuple match(const Array<double>& iou, const Offsets& dt_offsets, const Offsets& gt_offsets,
                const Array<double>& dt_areas, const Array<double>& gt_areas, const Flags& crowd,
                const Array<double>& ranges, const Array<double>& thresholds, int64_t threads) {
  const Groups groups(dt_offsets, gt_offsets);
  const int64_t number_a = ranges.size() / 2, number_t = thresholds.size();
  const int64_t number_d = dt_areas.size(), number_g = gt_areas.size();
  if (iou.size() != groups.iou.back() || groups.dt[groups.number] != number_d || groups.gt[groups.number] != number_g ||
      crowd.size() != number_g) {
    throw py::value_error("s2d::metrics: expected offsets that end at the numbers of annotations, got others");
  }
  Array<int32_t> dt({number_d, number_a, number_t}), gt({number_g, number_a, number_t});
  Flags dt_ignored({number_d, number_a, number_t}), gt_ignored({number_a, number_g});
  const Matched out{dt.mutable_data(), dt_ignored.mutable_data(), gt.mutable_data(), gt_ignored.mutable_data()};
  const double *values = iou.data(), *area_d = dt_areas.data(), *area_g = gt_areas.data();
  const double *range = ranges.data(), *threshold = thresholds.data();
  const uint8_t* is_crowd = crowd.data();
  {
    const py::gil_scoped_release unlocked;
    on_threads(threads, groups.number, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> order, fitting(number_t);
      std::vector<uint8_t> outside;
      for (int64_t k = begin; k < end; ++k) {
        const int64_t d = groups.dt[k], g = groups.gt[k], number = groups.detections(k), truths = groups.truths(k);
        const double* own = values + groups.iou[k];
        for (int64_t t = 0; t < number_t; ++t) {
          const double least = std::min(threshold[t], 1 - 1e-10);
          fitting[t] = std::count_if(own, own + number * truths, [&](double overlap) { return !(overlap < least); });
        }
        for (int64_t a = 0; a < number_a; ++a) {
          const auto is_outside = [&](double area) { return area < range[2 * a] || area > range[2 * a + 1]; };
          uint8_t* ignored = out.gt_ignored + a * number_g + g;
          order.clear();
          outside.clear();
          for (int64_t i = 0; i < truths; ++i) ignored[i] = is_crowd[g + i] || is_outside(area_g[g + i]);
          for (const bool last : {false, true}) {
            for (int64_t i = 0; i < truths; ++i) {
              if (static_cast<bool>(ignored[i]) == last) order.push_back(i);
            }
          }
          for (int64_t i = 0; i < number; ++i) outside.push_back(is_outside(area_d[d + i]));
          const int64_t step = number_a * number_t;
          for (int64_t t = 0; t < number_t; ++t) {
            const int64_t lane = a * number_t + t;
            int32_t *dt_lane = out.dt + d * step + lane, *gt_lane = out.gt + g * step + lane;
            uint8_t* ignored_lane = out.dt_ignored + d * step + lane;
            // Where no overlap lies between two thresholds both have one result.
            if (t && fitting[t] == fitting[t - 1] && threshold[t] >= threshold[t - 1]) {
              for (int64_t i = 0; i < number; ++i) {
                dt_lane[i * step] = dt_lane[i * step - 1];
                ignored_lane[i * step] = ignored_lane[i * step - 1];
              }
              for (int64_t i = 0; i < truths; ++i) gt_lane[i * step] = gt_lane[i * step - 1];
              continue;
            }
            match_group(own, number, truths, threshold[t], order.data(), ignored, is_crowd + g, outside.data(), step,
                        dt_lane, ignored_lane, gt_lane);
          }
        }
      }
    });
  }
  return py::make_tuple(dt, dt_ignored, gt, gt_ignored);
}

// A detection in one area range at one threshold.
enum : uint8_t { kWrong, kRight, kIgnored };

// The least number of hits out of `wanted` with which each recall is reached; one more than all where none is.
std::vector<int64_t> hits_for(const double* recalls, int64_t size, int64_t wanted) {
  const auto total = static_cast<double>(wanted);
  const auto reaches = [&](int64_t hits, double recall) { return !(static_cast<double>(hits) / total < recall); };
  std::vector<int64_t> hits(size);
  for (int64_t r = 0; r < size; ++r) {
    auto least = static_cast<int64_t>(std::clamp(std::ceil(recalls[r] * total), 0.0, total + 1));
    // The product may be rounded to either side.
    while (least > 0 && reaches(least - 1, recalls[r])) --least;
    while (least <= wanted && !reaches(least, recalls[r])) ++least;
    hits[r] = least;
  }
  return hits;
}

S2D_LOOP void precisions_loop(const double* right, const double* all, int64_t number, double* out) {
  // The last term is numpy's spacing(1), which the definition adds.
  for (int64_t i = 0; i < number; ++i) out[i] = right[i] / ((all[i] - right[i]) + right[i] + 0x1p-52);
}
S2D_MULTIVERSION(void, precisions, (const double* right, const double* all, int64_t number, double* out),
                 (right, all, number, out))

// Precision over recall at the true positives of a ranking, where precision is greatest at its recall.
struct Curve {
  explicit Curve(int64_t longest) : right(longest + 1), all(longest + 1), precision(longest + 1), place(longest + 1) {}

  // `states` and `weights` in the order of the ranking.
  void read(const uint8_t* states, const int64_t* weights, int64_t ranked) {
    int64_t hits = 0, counted = 0, n = 0;
    for (int64_t i = 0; i < ranked; ++i) {
      // Right and wrong ones come in no order a processor could guess: every one is written, and right ones stay.
      const int64_t is_right = states[i] == kRight, counts = states[i] != kIgnored;
      hits += weights[i] & -is_right;
      counted += weights[i] & -counts;
      right[n] = static_cast<double>(hits);
      all[n] = static_cast<double>(counted);
      place[n] = i;
      n += is_right;
    }
    number = n;
    found = hits;
  }

  // The greatest precision at every recall or a higher one, and the score of the place where the recall is reached.
  void sample(const std::vector<int64_t>& hits, const double* points, const double* scores, bool any, double* out,
              double* out_scores) {
    precisions(right.data(), all.data(), number, precision.data());
    for (int64_t i = number - 1; i > 0; --i) precision[i - 1] = std::max(precision[i - 1], precision[i]);
    for (size_t r = 0; r < hits.size(); ++r) {
      // Where all weigh one, hit i + 1 is at i.
      int64_t i = std::max<int64_t>(hits[r] - 1, 0);
      if (found != number) {
        const auto reached = [&](double count) { return count < static_cast<double>(hits[r]); };
        i = std::partition_point(right.begin(), right.begin() + number, reached) - right.begin();
      }
      out[r] = i < number ? precision[i] : 0;
      // A recall of nothing is reached by the first of the ranking, right or wrong.
      out_scores[r] = points[r] <= 0 && any ? scores[0] : i < number ? scores[place[i]] : 0;
    }
  }

  int64_t number = 0, found = 0;
  std::vector<double> right, all, precision;
  std::vector<int64_t> place;
};

// What `accumulate` reads and writes, without Python's objects.
struct Rankings {
  int64_t areas, thresholds, points, limits, categories;
  const uint8_t* states;               // [D, A, T]
  const uint8_t* gt_ignored;           // [A, G]
  const double *scores, *recalls;      // [D], [R]
  const int64_t *ranks, *weights;      // [D]
  const int64_t* gt_weights;           // [G]
  const int64_t* order;                // [D]: by category, then by descending score
  const int64_t *first_dt, *first_gt;  // [K + 1]
  const int64_t* most;                 // [M]
  int64_t truths;
  double *precision, *recall, *sampled;  // [K, A, M, T, R], [K, A, M, T], [K, A, M, T, R]
};

struct Ranker {
  explicit Ranker(const Rankings& rankings, int64_t longest)
      : all(rankings),
        curve(longest),
        chosen(longest),
        states(longest * all.areas * all.thresholds),
        weights(longest),
        scores(longest) {}

  void category(int64_t k) {
    hits.resize(all.areas);
    wanted.assign(all.areas, 0);
    for (int64_t a = 0; a < all.areas; ++a) {
      for (int64_t g = all.first_gt[k]; g < all.first_gt[k + 1]; ++g) {
        if (!all.gt_ignored[a * all.truths + g]) wanted[a] += all.gt_weights[g];
      }
      if (wanted[a]) hits[a] = hits_for(all.recalls, all.points, wanted[a]);
    }
    int64_t before = -1;
    for (int64_t m = 0; m < all.limits; ++m) {
      int64_t ranked = 0;
      for (int64_t i = all.first_dt[k]; i < all.first_dt[k + 1]; ++i) {
        const int64_t d = all.order[i];
        if (all.ranks[d] < all.most[m] && all.weights[d]) chosen[ranked++] = d;
      }
      // Where a greater limit lets no other in, nothing changes.
      const bool same = ranked == before;
      if (!same) gather(ranked);
      before = ranked;
      for (int64_t a = 0; a < all.areas; ++a) {
        for (int64_t t = 0; t < all.thresholds; ++t) {
          const int64_t row = ((k * all.areas + a) * all.limits + m) * all.thresholds + t;
          if (same) {
            copy(row - all.thresholds, row);
          } else {
            write(states.data() + (a * all.thresholds + t) * chosen.size(), ranked, a, row);
          }
        }
      }
    }
  }

  void gather(int64_t ranked) {
    const int64_t lanes = all.areas * all.thresholds, stride = static_cast<int64_t>(chosen.size());
    for (int64_t i = 0; i < ranked; ++i) {
      const int64_t d = chosen[i];
      weights[i] = all.weights[d];
      scores[i] = all.scores[d];
      const uint8_t* own = all.states + d * lanes;
      uint8_t* to = states.data() + i;
      for (int64_t lane = 0; lane < lanes; ++lane, to += stride) *to = own[lane];
    }
  }

  void copy(int64_t from, int64_t to) {
    std::copy_n(all.precision + from * all.points, all.points, all.precision + to * all.points);
    std::copy_n(all.sampled + from * all.points, all.points, all.sampled + to * all.points);
    all.recall[to] = all.recall[from];
  }

  void write(const uint8_t* lane, int64_t ranked, int64_t area, int64_t row) {
    double *out = all.precision + row * all.points, *out_scores = all.sampled + row * all.points;
    if (!wanted[area]) {
      std::fill_n(out, all.points, -1.0);
      std::fill_n(out_scores, all.points, -1.0);
      all.recall[row] = -1;
      return;
    }
    curve.read(lane, weights.data(), ranked);
    all.recall[row] = static_cast<double>(curve.found) / static_cast<double>(wanted[area]);
    curve.sample(hits[area], all.recalls, scores.data(), ranked > 0, out, out_scores);
  }

  Rankings all;
  Curve curve;
  std::vector<int64_t> chosen;
  std::vector<uint8_t> states;
  std::vector<int64_t> weights, wanted;
  std::vector<std::vector<int64_t>> hits;  // of each area range
  std::vector<double> scores;
};

py::tuple accumulate(const Array<int32_t>& dt_match, const Flags& dt_ignored, const Flags& gt_ignored,
                     const Array<double>& dt_scores, const Offsets& dt_ranks, const Offsets& dt_weights,
                     const Offsets& gt_weights, const Offsets& order, const Offsets& dt_categories,
                     const Offsets& gt_categories, const Array<double>& points, const Offsets& most, int64_t threads) {
  const int64_t number = dt_match.size(), categories = dt_categories.size() - 1;
  const int64_t areas = dt_match.shape(1), thresholds = dt_match.shape(2);
  std::vector<uint8_t> states(number);
  Array<double> precision({categories, areas, most.size(), thresholds, points.size()});
  Array<double> scores({categories, areas, most.size(), thresholds, points.size()});
  Array<double> recall({categories, areas, most.size(), thresholds});
  const Rankings rankings{areas,
                          thresholds,
                          points.size(),
                          most.size(),
                          categories,
                          states.data(),
                          gt_ignored.data(),
                          dt_scores.data(),
                          points.data(),
                          dt_ranks.data(),
                          dt_weights.data(),
                          gt_weights.data(),
                          order.data(),
                          dt_categories.data(),
                          gt_categories.data(),
                          most.data(),
                          gt_ignored.shape(1),
                          precision.mutable_data(),
                          recall.mutable_data(),
                          scores.mutable_data()};
  const int32_t* matched = dt_match.data();
  const uint8_t* ignored = dt_ignored.data();
  {
    const py::gil_scoped_release unlocked;
    for (int64_t i = 0; i < number; ++i) states[i] = ignored[i] ? kIgnored : matched[i] >= 0 ? kRight : kWrong;
    int64_t longest = 0;
    for (int64_t k = 0; k < categories; ++k) {
      longest = std::max(longest, rankings.first_dt[k + 1] - rankings.first_dt[k]);
    }
    on_threads(threads, categories, [&](int64_t begin, int64_t end) {
      Ranker ranker(rankings, longest);
      for (int64_t k = begin; k < end; ++k) ranker.category(k);
    });
  }
  return py::make_tuple(precision, recall, scores);
}

}  // namespace

void add_matching(py::module_& module) {
  module.def("match", &match, py::arg("iou"), py::arg("dt_offsets"), py::arg("gt_offsets"), py::arg("dt_areas"),
             py::arg("gt_areas"), py::arg("crowd"), py::arg("ranges"), py::arg("thresholds"), py::arg("threads"),
             "COCO's greedy matching: dt_match, dt_ignored [D, A, T], gt_match [G, A, T], gt_ignored [A, G].");
  module.def("accumulate", &accumulate, py::arg("dt_match"), py::arg("dt_ignored"), py::arg("gt_ignored"),
             py::arg("dt_scores"), py::arg("dt_ranks"), py::arg("dt_weights"), py::arg("gt_weights"), py::arg("order"),
             py::arg("dt_categories"), py::arg("gt_categories"), py::arg("points"), py::arg("most"), py::arg("threads"),
             "Precision [K, A, M, T, R], recall [K, A, M, T] and scores [K, A, M, T, R]; -1 where nothing is to be "
             "found.");
}

}  // namespace s2d::host
