// IoU of all detections of a group with all its ground truth, for all groups at once.

#include "../rle/patch.h"
#include "../rle/spans.h"
#include "boxes.h"
#include "groups.h"
#include "host.h"
#include "threads.h"

namespace s2d::host {

namespace {

using Offsets = Array<int64_t>;
using Flags = Array<uint8_t>;

struct Mask {
  const int32_t* counts = nullptr;
  int64_t runs = 0, height = 0, width = 0;

  rle::Box box() const { return rle::box_of(counts, runs, height); }
};

// Masks of one side; a tube is the masks at some positions of `index`, one a frame, -1 where it has none.
struct Tubes {
  explicit Tubes(const py::tuple& parts)
      : counts(parts[0].cast<Array<int32_t>>()),
        offsets(parts[1].cast<Offsets>()),
        sizes(parts[2].cast<Array<int32_t>>()),
        index(parts[3].cast<Offsets>()) {}

  Mask mask(int64_t position) const {
    const int64_t n = index.data()[position];
    if (n < 0) return {};
    const int64_t begin = offsets.data()[n], end = offsets.data()[n + 1];
    return {counts.data() + begin, end - begin, sizes.data()[2 * n], sizes.data()[2 * n + 1]};
  }

  // Masks of images lie anywhere in memory: ask for the first kilobyte of one before its turn.
  void fetch(int64_t position) const {
    const Mask next = mask(position);
    const auto* line = reinterpret_cast<const char*>(next.counts);
    for (int64_t byte = 0; byte < std::min<int64_t>(4 * next.runs, 1024); byte += 64) __builtin_prefetch(line + byte);
  }

  Array<int32_t> counts;
  Offsets offsets;
  Array<int32_t> sizes;
  Offsets index;
};

// The masks of a group's tubes in one frame. Keeps its memory from one frame to the next.
struct Frame {
  // Their spans by column; false where a mask has too many.
  bool read_spans(const Tubes& tubes, int64_t first, int64_t frames, int64_t number) {
    if (static_cast<int64_t>(spans.size()) < number) spans.resize(number);
    for (int64_t n = 0; n < number; ++n) {
      const Mask mask = tubes.mask(first + n * frames);
      if (!reader.read(mask.counts, mask.runs, mask.height, spans[n])) return false;
    }
    return true;
  }

  void read_patches(const Tubes& tubes, int64_t first, int64_t frames, int64_t number) {
    patches.clear();
    int64_t total = 0;
    for (int64_t n = 0; n < number; ++n) {
      const Mask mask = tubes.mask(first + n * frames);
      patches.push_back(rle::patch_of(mask.counts, mask.runs, mask.height, mask.width));
      if (patches.back().wants_words()) total += patches.back().size();
    }
    words.assign(total, 0);
    uint64_t* own = words.data();
    for (rle::Patch& patch : patches) {
      if (!patch.wants_words()) continue;
      rle::draw(patch.counts, patch.runs, patch.height, patch.first_band(), patch.first_column(), patch.columns(), own);
      patch.words = own;
      own += patch.size();
    }
  }

  rle::SpansReader reader;
  std::vector<rle::Spans> spans;
  std::vector<rle::Patch> patches;
  std::vector<uint64_t> words;
};

struct Worker {
  // out[d, g] of one group whose first masks lie at the given positions.
  void measure(const Tubes& dt, int64_t first_dt, int64_t number, const Tubes& gt, int64_t first_gt, int64_t truths,
               int64_t frames, const uint8_t* crowd, double* out) {
    shared.assign(number * truths, 0);
    area_dt.assign(number, 0);
    area_gt.assign(truths, 0);
    for (int64_t t = 0; t < frames; ++t) {
      if (of_dt.read_spans(dt, first_dt + t, frames, number) && of_gt.read_spans(gt, first_gt + t, frames, truths)) {
        add(of_dt.spans, of_gt.spans);
        for (int64_t g = 0; g < truths; ++g) {
          for (int64_t d = 0; d < number; ++d) {
            shared[g * number + d] += rle::shared_spans(of_dt.spans[d], of_gt.spans[g]);
          }
        }
      } else {
        of_dt.read_patches(dt, first_dt + t, frames, number);
        of_gt.read_patches(gt, first_gt + t, frames, truths);
        add(of_dt.patches, of_gt.patches);
        for (int64_t g = 0; g < truths; ++g) {
          rle::add_shared(of_gt.patches[g], of_dt.patches.data(), number, shared.data() + g * number);
        }
      }
    }
    for (int64_t d = 0; d < number; ++d) {
      for (int64_t g = 0; g < truths; ++g, ++out) {
        const int64_t both = shared[g * number + d];
        const int64_t either = crowd[g] ? area_dt[d] : area_dt[d] + area_gt[g] - both;
        *out = both ? static_cast<double>(both) / static_cast<double>(either) : 0.0;
        if (frames != 1) continue;
        const Mask a = dt.mask(first_dt + d), b = gt.mask(first_gt + g);
        if (a.runs && b.runs && (a.height != b.height || a.width != b.width)) *out = a.box().meets(b.box()) ? -1.0 : 0;
      }
    }
  }

  template <typename Masks>
  void add(const Masks& detected, const Masks& true_masks) {
    for (size_t d = 0; d < area_dt.size(); ++d) area_dt[d] += detected[d].area;
    for (size_t g = 0; g < area_gt.size(); ++g) area_gt[g] += true_masks[g].area;
  }

  Frame of_dt, of_gt;
  std::vector<int64_t> shared, area_dt, area_gt;
};

Array<double> mask_iou(const py::tuple& dt_parts, const py::tuple& gt_parts, const Offsets& dt_offsets,
                       const Offsets& gt_offsets, const Offsets& frames, const Flags& crowd, int64_t threads) {
  const Tubes dt(dt_parts), gt(gt_parts);
  const Groups groups(dt_offsets, gt_offsets);
  std::vector<int64_t> first_dt(groups.number + 1), first_gt(groups.number + 1);
  for (int64_t k = 0; k < groups.number; ++k) {
    first_dt[k + 1] = first_dt[k] + groups.detections(k) * frames.data()[k];
    first_gt[k + 1] = first_gt[k] + groups.truths(k) * frames.data()[k];
  }
  if (first_dt.back() != dt.index.size() || first_gt.back() != gt.index.size()) {
    throw py::value_error("s2d::metrics: expected an index for every frame of every tube, got another number");
  }
  Array<double> result(groups.iou.back());
  double* out = result.mutable_data();
  const int64_t* length = frames.data();
  const uint8_t* is_crowd = crowd.data();
  const py::gil_scoped_release unlocked;
  on_threads(threads, groups.number, [&](int64_t begin, int64_t end) {
    Worker worker;
    for (int64_t k = begin; k < end; ++k) {
      const int64_t number = groups.detections(k), truths = groups.truths(k);
      if (k + 1 < end && groups.detections(k + 1) && groups.truths(k + 1)) {
        dt.fetch(first_dt[k + 1]);
        gt.fetch(first_gt[k + 1]);
      }
      if (!number || !truths) continue;
      worker.measure(dt, first_dt[k], number, gt, first_gt[k], truths, length[k], is_crowd + groups.gt[k],
                     out + groups.iou[k]);
    }
  });
  return result;
}

Array<double> box_iou(const Array<double>& dt_boxes, const Array<double>& gt_boxes, const Offsets& dt_offsets,
                      const Offsets& gt_offsets, const Flags& crowd) {
  const Groups groups(dt_offsets, gt_offsets);
  const Boxes dt(dt_boxes.data(), dt_boxes.shape(0)), gt(gt_boxes.data(), gt_boxes.shape(0));
  Array<double> result(groups.iou.back());
  double* out = result.mutable_data();
  for (int64_t k = 0; k < groups.number; ++k) {
    for (int64_t g = groups.gt[k]; g < groups.gt[k + 1]; ++g) {
      box_iou_loop(dt, groups.dt[k], groups.dt[k + 1], gt, g, crowd.data()[g], out + groups.iou[k] + g - groups.gt[k],
                   groups.truths(k));
    }
  }
  return result;
}

}  // namespace

void add_group_iou(py::module_& module) {
  module.def("mask_iou", &mask_iou, py::arg("dt"), py::arg("gt"), py::arg("dt_offsets"), py::arg("gt_offsets"),
             py::arg("frames"), py::arg("crowd"), py::arg("threads"),
             "IoU of masks (one frame) or tubes, group by group; a side is (counts, offsets, sizes, index).");
  module.def("box_iou", &box_iou, py::arg("dt"), py::arg("gt"), py::arg("dt_offsets"), py::arg("gt_offsets"),
             py::arg("crowd"), "IoU of boxes, group by group.");
}

}  // namespace s2d::host
