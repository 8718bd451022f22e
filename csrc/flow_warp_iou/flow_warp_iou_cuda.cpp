// flow_warp_iou: binds the CUDA launchers to torch's CUDA dispatch key.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>

#include "../common/binding.h"
#include "checks.h"

namespace s2d::flow_warp_iou {
namespace {

std::tuple<Tensor, Tensor, Tensor> flow_warp_counts(const Tensor& source, const Tensor& target, int64_t width,
                                                    const Tensor& flow, std::optional<Tensor> visible,
                                                    std::optional<Tensor> reverse, int64_t mode) {
  check_counts(source, target, width, flow, visible, reverse, mode);
  const DeviceGuard guard(flow.get_device_index());
  const Tensor from = torch::stable::contiguous(source), onto = torch::stable::contiguous(target);
  const Tensor there = as_vectors(flow);
  std::optional<Tensor> shown, back;
  if (visible) shown = torch::stable::contiguous(*visible);
  if (reverse) back = as_vectors(*reverse);
  const Warp warp{words_of(from),
                  words_of(onto),
                  floats_of(there),
                  shown ? words_of(*shown) : nullptr,
                  back ? floats_of(*back) : nullptr,
                  flow.size(0),
                  source.size(1),
                  target.size(1),
                  flow.size(1),
                  width,
                  static_cast<Mode>(mode)};
  Tensor intersection = torch::stable::new_zeros(from, {warp.pairs, warp.sources, warp.targets}, ScalarType::Long);
  Tensor warped = torch::stable::new_zeros(from, {warp.pairs, warp.sources}, ScalarType::Long);
  Tensor area = torch::stable::new_zeros(from, {warp.pairs, warp.targets}, ScalarType::Long);
  Tensor scratch = torch::stable::new_empty(from, {scratch_size(warp)}, ScalarType::Int);
  launch_counts(warp, out_of<uint32_t>(scratch), out_of<int64_t>(intersection), out_of<int64_t>(warped),
                out_of<int64_t>(area), current_stream(from));
  return {intersection, warped, area};
}

Tensor flow_consistency(const Tensor& flow, const Tensor& reverse) {
  check_flow(flow, "flow_consistency", "flow");
  check_same(flow, reverse, "flow_consistency", "reverse");
  const DeviceGuard guard(flow.get_device_index());
  const Tensor there = as_vectors(flow), back = as_vectors(reverse);
  Tensor result = torch::stable::new_empty(there, {flow.size(0), flow.size(1), flow.size(2)}, ScalarType::Byte);
  launch_consistency(floats_of(there), floats_of(back), out_of<uint8_t>(result), flow.size(0), flow.size(1),
                     flow.size(2), current_stream(there));
  return result;
}

Tensor flow_compose(const Tensor& first, const Tensor& second) {
  check_flow(first, "flow_compose", "first");
  check_same(first, second, "flow_compose", "second");
  const DeviceGuard guard(first.get_device_index());
  const Tensor step = as_vectors(first), onward = as_vectors(second);
  Tensor result = torch::stable::empty_like(step);
  launch_compose(floats_of(step), floats_of(onward), out_of<float>(result), first.size(0), first.size(1), first.size(2),
                 current_stream(step));
  return result;
}

}  // namespace
}  // namespace s2d::flow_warp_iou

STABLE_TORCH_LIBRARY_IMPL(s2d, CUDA, library) {
  library.impl("flow_warp_counts", TORCH_BOX(&s2d::flow_warp_iou::flow_warp_counts));
  library.impl("flow_consistency", TORCH_BOX(&s2d::flow_warp_iou::flow_consistency));
  library.impl("flow_compose", TORCH_BOX(&s2d::flow_warp_iou::flow_compose));
}
