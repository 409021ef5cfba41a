// NumPy arrays as the packing of arguments sees them. bfloat16 is held as its bits, in uint16.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>
#include <vector>

#include "tensor_view.h"

namespace attrdrop {

namespace py = pybind11;

inline Type type_of(const py::array& a) {
  const auto is = [&](char kind, int size) { return a.dtype().kind() == kind && a.itemsize() == size; };
  if (is('u', 1)) return Type::u8;
  if (is('f', 2)) return Type::f16;
  if (is('u', 2)) return Type::bf16;
  if (is('f', 4)) return Type::f32;
  if (is('b', 1)) return Type::boolean;
  if (is('i', 4)) return Type::i32;
  return is('i', 8) ? Type::i64 : Type::other;
}

template <>
inline TensorView view_of(const py::array& a) {
  TensorView view{a.data(), type_of(a), a.ndim(), {}, {}};
  for (int64_t d = 0; d < view.dims && d < MOST_DIMS; ++d)
    view.sizes[d] = a.shape(d), view.strides[d] = a.strides(d) / a.itemsize();
  return view;
}

// An array of a type, poisoned.
inline py::array poisoned(const py::dtype& type, std::vector<py::ssize_t> shape) {
  py::array a(type, shape);
  std::memset(a.mutable_data(), 0xEE, a.nbytes());
  return a;
}

template <class T>
T* data_of(py::array& a) {
  return static_cast<T*>(a.mutable_data());
}

}  // namespace attrdrop
