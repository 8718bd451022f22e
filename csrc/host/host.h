// The parts of _host, a function each that adds its own.
#pragma once

#include <pybind11/pybind11.h>

namespace s2d::host {

void add_batch(pybind11::module_& module);
void add_masks(pybind11::module_& module);
void add_measures(pybind11::module_& module);
void add_iou(pybind11::module_& module);
void add_shapes(pybind11::module_& module);
void add_annotations(pybind11::module_& module);
void add_group_iou(pybind11::module_& module);
void add_matching(pybind11::module_& module);
void add_boundary(pybind11::module_& module);

}  // namespace s2d::host
