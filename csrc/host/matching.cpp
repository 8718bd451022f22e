// COCO's matching of detections to ground truth, and the curves of precision over recall that follow from it.

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
  const double lowest = number_t ? std::min(*std::min_element(threshold, threshold + number_t), 1 - 1e-10) : 0;
  {
    const py::gil_scoped_release unlocked;
    on_threads(threads, groups.number, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> order;
      std::vector<uint8_t> outside;
      for (int64_t k = begin; k < end; ++k) {
        const int64_t d = groups.dt[k], g = groups.gt[k], number = groups.detections(k), truths = groups.truths(k);
        const double* own = values + groups.iou[k];
        // Most groups have no match at any threshold.
        const bool none = std::all_of(own, own + number * truths, [&](double overlap) { return overlap < lowest; });
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
          if (none) {
            for (int64_t i = 0; i < number; ++i) {
              std::fill_n(out.dt + (d + i) * step + a * number_t, number_t, -1);
              std::fill_n(out.dt_ignored + (d + i) * step + a * number_t, number_t, outside[i]);
            }
            for (int64_t i = 0; i < truths; ++i) std::fill_n(out.gt + (g + i) * step + a * number_t, number_t, -1);
            continue;
          }
          for (int64_t t = 0; t < number_t; ++t) {
            const int64_t lane = a * number_t + t;
            match_group(own, number, truths, threshold[t], order.data(), ignored, is_crowd + g, outside.data(), step,
                        out.dt + d * step + lane, out.dt_ignored + d * step + lane, out.gt + g * step + lane);
          }
        }
      }
    });
  }
  return py::make_tuple(dt, dt_ignored, gt, gt_ignored);
}

// A detection in one area range at one threshold.
enum : uint8_t { kWrong, kRight, kIgnored };

// Precision over recall at the true positives of a ranking, where precision is greatest at its recall.
struct Curve {
  explicit Curve(int64_t longest) : right(longest + 1), all(longest + 1), place(longest + 1), precision(longest + 1) {}

  // `states` and `weights` in the order of the ranking.
  void read(const uint8_t* states, const int64_t* weights, int64_t ranked) {
    number = found = 0;
    int64_t counted = 0;
    for (int64_t i = 0; i < ranked; ++i) {
      // Right and wrong ones come in no order a processor could guess: every one is written, and right ones stay.
      const int64_t weight = weights[i], is_right = states[i] == kRight;
      found += is_right ? weight : 0;
      counted += states[i] != kIgnored ? weight : 0;
      right[number] = found;
      all[number] = counted;
      place[number] = i;
      number += is_right;
    }
  }

  // The greatest precision at every recall or a higher one, and the score of the place where the recall is reached.
  void sample(int64_t wanted, const double* points, int64_t size, const double* scores, bool any, double* out,
              double* out_scores) {
    for (int64_t i = 0; i < number; ++i) {
      const auto hits = static_cast<double>(right[i]);
      // The last term is numpy's spacing(1), which the definition adds.
      precision[i] = hits / (static_cast<double>(all[i] - right[i]) + hits + 0x1p-52);
    }
    for (int64_t i = number - 1; i > 0; --i) precision[i - 1] = std::max(precision[i - 1], precision[i]);
    const auto total = static_cast<double>(wanted);
    int64_t i = 0;
    for (int64_t r = 0; r < size; ++r) {
      if (r && points[r] < points[r - 1]) i = 0;
      while (i < number && static_cast<double>(right[i]) / total < points[r]) ++i;
      out[r] = i < number ? precision[i] : 0;
      // A recall of nothing is reached by the first of the ranking, right or wrong.
      out_scores[r] = points[r] <= 0 && any ? scores[0] : i < number ? scores[place[i]] : 0;
    }
  }

  int64_t number = 0, found = 0;
  std::vector<int64_t> right, all, place;
  std::vector<double> precision;
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
        states(longest * all.areas * all.thresholds),
        weights(longest),
        scores(longest) {}

  void category(int64_t k) {
    const int64_t lanes = all.areas * all.thresholds;
    wanted.assign(all.areas, 0);
    for (int64_t a = 0; a < all.areas; ++a) {
      for (int64_t g = all.first_gt[k]; g < all.first_gt[k + 1]; ++g) {
        if (!all.gt_ignored[a * all.truths + g]) wanted[a] += all.gt_weights[g];
      }
    }
    int64_t before = -1;
    for (int64_t m = 0; m < all.limits; ++m) {
      int64_t ranked = 0;
      for (int64_t i = all.first_dt[k]; i < all.first_dt[k + 1]; ++i) {
        const int64_t d = all.order[i];
        if (all.ranks[d] >= all.most[m] || !all.weights[d]) continue;
        weights[ranked] = all.weights[d];
        scores[ranked] = all.scores[d];
        const uint8_t* own = all.states + d * lanes;
        for (int64_t lane = 0; lane < lanes; ++lane) states[lane * weights.size() + ranked] = own[lane];
        ++ranked;
      }
      for (int64_t a = 0; a < all.areas; ++a) {
        for (int64_t t = 0; t < all.thresholds; ++t) {
          const int64_t row = ((k * all.areas + a) * all.limits + m) * all.thresholds + t;
          // Where a greater limit lets no other in, nothing changes.
          if (ranked == before) {
            const int64_t same = row - all.thresholds;
            std::copy_n(all.precision + same * all.points, all.points, all.precision + row * all.points);
            std::copy_n(all.sampled + same * all.points, all.points, all.sampled + row * all.points);
            all.recall[row] = all.recall[same];
          } else {
            write(states.data() + (a * all.thresholds + t) * weights.size(), ranked, wanted[a], row);
          }
        }
      }
      before = ranked;
    }
  }

  void write(const uint8_t* lane, int64_t ranked, int64_t number, int64_t row) {
    double *out = all.precision + row * all.points, *out_scores = all.sampled + row * all.points;
    if (!number) {
      std::fill_n(out, all.points, -1.0);
      std::fill_n(out_scores, all.points, -1.0);
      all.recall[row] = -1;
      return;
    }
    curve.read(lane, weights.data(), ranked);
    all.recall[row] = static_cast<double>(curve.found) / static_cast<double>(number);
    curve.sample(number, all.recalls, all.points, scores.data(), ranked > 0, out, out_scores);
  }

  Rankings all;
  Curve curve;
  std::vector<uint8_t> states;
  std::vector<int64_t> weights, wanted;
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
