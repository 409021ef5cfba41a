// An array, whoever holds it: torch, or NumPy for the emulator.
#pragma once
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "dtype.h"

namespace attrdrop {

enum class Kind { f32, bf16, f16, i32, i64, other };

struct ArrayView {
  const void* data;
  Kind kind;
  int64_t dim, size[4], stride[4];  // strides count elements; of arrays of more than four dimensions only dim is known
  int64_t step(int d) const { return size[d] == 1 ? 0 : stride[d]; }  // 0 where it is broadcast
  int64_t item() const { return kind == Kind::f32 || kind == Kind::i32 ? 4 : kind == Kind::i64 ? 8 : 2; }
};

// Specialised beside each kind of array.
template <class Array>
ArrayView view_of(const Array& array);

template <class Array>
std::optional<ArrayView> view_of(const std::optional<Array>& array) {
  if (!array) return std::nullopt;
  return view_of(*array);
}

template <class... Parts>
void check_argument(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline Dtype float_type(const ArrayView& a, const char* name) {
  check_argument(a.kind == Kind::f32 || a.kind == Kind::bf16 || a.kind == Kind::f16, name,
                 " must be float32, bfloat16 or float16 for the compiled kernels");
  return a.kind == Kind::f32 ? Dtype::f32 : a.kind == Kind::bf16 ? Dtype::bf16 : Dtype::f16;
}

}  // namespace attrdrop
