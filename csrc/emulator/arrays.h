// NumPy arrays as the kernels want them.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <vector>

#include "occlusion.h"
#include "points.h"

namespace attrdrop {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;
template <class T>
using Optional = std::optional<py::array_t<T>>;
using Numbers = std::optional<Array<int64_t>>;

// float32 and float16 arrays, bfloat16 bits as uint16, bytes.
inline Element element_of(const py::array& a) {
  if (a.itemsize() == 1) return Element::u8;
  if (a.itemsize() == 4) return Element::f32;
  return a.dtype().kind() == 'f' ? Element::f16 : Element::bf16;
}

// The same without bytes.
inline Dtype dtype_of(const py::array& a) {
  if (a.itemsize() == 4) return Dtype::f32;
  return a.dtype().kind() == 'f' ? Dtype::f16 : Dtype::bf16;
}

inline int64_t step(const py::array& a, int dim) { return a.strides(dim) / a.itemsize(); }

inline PointView point_view(const py::array& a) {
  if (a.ndim() != 3) throw py::value_error("points, centres and relevance must have 3 dimensions");
  return {a.data(), step(a, 0), step(a, 1), step(a, 2), dtype_of(a)};
}

inline ValidView valid_view(const Optional<bool>& a) { return a ? ValidView{a->data(), step(*a, 0), step(*a, 1)} : ValidView{}; }

// An array of a type, poisoned.
inline py::array poisoned(const py::dtype& type, std::vector<py::ssize_t> shape) {
  py::array a(type, shape);
  std::memset(a.mutable_data(), 0xEE, a.nbytes());
  return a;
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
