// An array, whoever holds it: torch, or NumPy for the emulator.
#pragma once
#include <cstdint>
#include <optional>

#include "dtype.h"
#include "require.h"

namespace attrdrop {

enum class Kind : int { u8, f16, bf16, f32, boolean, i32, i64, other };

struct ArrayView {
  const void* data;
  Kind kind;
  int64_t dim, size[4], stride[4];  // strides count elements; of arrays of more than four dimensions only dim is known

  int64_t step(int d) const { return size[d] == 1 ? 0 : stride[d]; }  // 0 where it is broadcast
  int64_t item() const {
    if (kind == Kind::u8 || kind == Kind::boolean) return 1;
    return kind == Kind::f32 || kind == Kind::i32 ? 4 : kind == Kind::i64 ? 8 : 2;
  }
  int64_t numel() const {
    int64_t count = 1;
    for (int64_t d = 0; d < dim && d < 4; ++d) count *= size[d];
    return count;
  }
  bool is_contiguous() const {
    int64_t expected = 1;
    for (int64_t d = dim - 1; d >= 0; expected *= size[d--])
      if (size[d] != 1 && stride[d] != expected) return numel() == 0;
    return true;
  }
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

using OptionalView = std::optional<ArrayView>;

// Specialised beside each kind of array.
template <class Array>
ArrayView view_of(const Array& array);

template <class Array>
OptionalView view_of(const std::optional<Array>& array) {
  if (!array) return std::nullopt;
  return view_of(*array);
}

inline void check_dim(const ArrayView& a, int64_t dim, const char* name) {
  require(a.dim == dim, name, " must have ", dim, " dimensions, got ", a.dim);
}

inline Dtype float_type(Kind kind, const char* name) {
  require(kind == Kind::f32 || kind == Kind::bf16 || kind == Kind::f16, name,
          " must be float32, bfloat16 or float16 for the C++ kernel");
  return kind == Kind::f32 ? Dtype::f32 : kind == Kind::bf16 ? Dtype::bf16 : Dtype::f16;
}

}  // namespace attrdrop
