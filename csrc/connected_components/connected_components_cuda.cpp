// connected_components: binds the CUDA launchers to torch's CUDA dispatch key.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "../common/binding.h"
#include "call.h"

namespace s2d::connected_components {
namespace {

// Scratch memory in three tensors: each costs the host a microsecond.
class Workspace {
 public:
  explicit Workspace(const Call& call) {
    const int64_t words = call.masks * call.sizes.words(), segments = call.masks * segments_of(call.sizes);
    const int64_t tiles = call.masks * tiles_of(call.sizes), groups = call.masks * groups_of(call.sizes);
    halves_ = torch::stable::new_empty(call.words, {segments + words}, ScalarType::Short);
    parts_ = torch::stable::new_empty(call.words, {3 * segments}, ScalarType::Int);
    tiles_ = torch::stable::new_empty(call.words, {2 * tiles + groups}, ScalarType::Int);
    auto* halves = static_cast<uint16_t*>(halves_.mutable_data_ptr());
    auto* part = static_cast<uint32_t*>(parts_.mutable_data_ptr());
    auto* tile = static_cast<uint32_t*>(tiles_.mutable_data_ptr());
    scratch_ = {halves + segments,   halves, part,         part + segments,
                part + 2 * segments, tile,   tile + tiles, tile + 2 * tiles};
  }

  const Scratch& scratch() const { return scratch_; }

 private:
  Tensor halves_, parts_, tiles_;
  Scratch scratch_;
};

std::tuple<Tensor, Tensor> connected_components(const Tensor& words, int64_t width, int64_t connectivity) {
  const DeviceGuard guard(words.get_device_index());
  const Call call(words, width, connectivity, "connected_components");
  Tensor labels = call.image(), areas = call.image();
  if (call.pixels() == 0) return {labels, areas};
  const Workspace workspace(call);
  launch_components(call.of(0), static_cast<int32_t*>(labels.mutable_data_ptr()),
                    static_cast<int32_t*>(areas.mutable_data_ptr()), workspace.scratch(), call.masks, call.sizes,
                    current_stream(call.words));
  return {labels, areas};
}

Tensor selected(const Tensor& words, int64_t width, int64_t limit, int64_t connectivity, Task task, const char* op) {
  const DeviceGuard guard(words.get_device_index());
  const Call call(words, width, connectivity, op, task);
  Tensor result = torch::stable::empty_like(call.words);
  if (call.pixels() == 0) return result;
  const Workspace workspace(call);
  launch_select(call.of(0), static_cast<uint64_t*>(result.mutable_data_ptr()), task, limit, workspace.scratch(),
                call.masks, call.sizes, current_stream(call.words));
  return result;
}

Tensor fill_holes(const Tensor& words, int64_t width, int64_t largest, int64_t connectivity) {
  return selected(words, width, largest, connectivity, Task::fill, "fill_holes");
}

Tensor remove_small(const Tensor& words, int64_t width, int64_t smallest, int64_t connectivity) {
  return selected(words, width, smallest, connectivity, Task::remove, "remove_small");
}

}  // namespace
}  // namespace s2d::connected_components

STABLE_TORCH_LIBRARY_IMPL(s2d, CUDA, library) {
  library.impl("connected_components", TORCH_BOX(&s2d::connected_components::connected_components));
  library.impl("fill_holes", TORCH_BOX(&s2d::connected_components::fill_holes));
  library.impl("remove_small", TORCH_BOX(&s2d::connected_components::remove_small));
}
