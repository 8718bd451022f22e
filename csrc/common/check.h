// Argument checks that say what was expected and what was found, in the words of DESIGN: s2d::<op>: expected ..., got
// ...
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <sstream>
#include <string>

#define S2D_CHECK(condition, op, expected, got) \
  STD_TORCH_CHECK(condition, "s2d::", op, ": expected ", expected, ", got ", got)

namespace s2d {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) text << (dim ? ", " : "") << tensor.size(dim);
  text << ']';
  return text.str();
}

// Product of the sizes of dimensions [begin, end).
inline int64_t product_of(const Tensor& tensor, int64_t begin, int64_t end) {
  int64_t product = 1;
  for (int64_t dim = begin; dim < end; ++dim) product *= tensor.size(dim);
  return product;
}

}  // namespace s2d
