// NumPy arrays as the kernels want them.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>

#include "occlusion.h"

namespace attrdrop {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;
using Numbers = std::optional<Array<int64_t>>;

// float32 and float16 arrays, bfloat16 bits as uint16, bytes.
inline Element element_of(const py::array& a) {
  if (a.itemsize() == 1) return Element::u8;
  if (a.itemsize() == 4) return Element::f32;
  return a.dtype().kind() == 'f' ? Element::f16 : Element::bf16;
}

inline SampleIds sample_ids_of(const Numbers& ids) {
  if (!ids) return {};
  return {ids->data(), 1};
}

// `bits`, or `values` where they are given.
inline Constant constant_of(uint32_t bits, const std::optional<py::array>& values) {
  if (!values) return {nullptr, 0, bits};
  return {values->data(), values->strides(0) / values->itemsize(), bits};
}

}  // namespace attrdrop
