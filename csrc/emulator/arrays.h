// NumPy arrays as the packing of arguments sees them. bfloat16 is held as its bits, in uint16.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>
#include <vector>

#include "array_view.h"

namespace attrdrop {

namespace py = pybind11;

template <>
inline ArrayView view_of(const py::array& a) {
  const auto is = [&](char kind, int size) { return a.dtype().kind() == kind && a.itemsize() == size; };
  const auto kind = [&] {
    if (is('u', 1)) return Kind::u8;
    if (is('f', 2)) return Kind::f16;
    if (is('u', 2)) return Kind::bf16;
    if (is('f', 4)) return Kind::f32;
    if (is('b', 1)) return Kind::boolean;
    if (is('i', 4)) return Kind::i32;
    return is('i', 8) ? Kind::i64 : Kind::other;
  };
  ArrayView view{a.data(), kind(), a.ndim(), {}, {}};
  for (int64_t d = 0; d < view.dim && d < 4; ++d) view.size[d] = a.shape(d), view.stride[d] = a.strides(d) / a.itemsize();
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
