// A tensor by its pointer and numbers, whether torch holds it or, for the emulator, NumPy.
#pragma once
#include <cstdint>
#include <optional>

#include "dtype.h"
#include "require.h"

namespace attrdrop {

enum class Type : int { u8, f16, bf16, f32, boolean, i32, i64, other };

constexpr int MOST_DIMS = 4;

struct TensorView {
  const void* data;
  Type type;
  int64_t dims;
  int64_t sizes[MOST_DIMS], strides[MOST_DIMS];  // of the first dimensions; strides count elements

  int64_t dim() const { return dims; }
  int64_t size(int64_t d) const { return sizes[d]; }
  int64_t stride(int64_t d) const { return strides[d]; }
  int64_t step(int64_t d) const { return sizes[d] == 1 ? 0 : strides[d]; }  // 0 where it is broadcast
  int64_t item() const {
    const bool is_byte = type == Type::u8 || type == Type::boolean;
    return is_byte ? 1 : type == Type::f16 || type == Type::bf16 ? 2 : type == Type::i64 ? 8 : 4;
  }
  int64_t numel() const {
    int64_t count = 1;
    for (int64_t d = 0; d < dims && d < MOST_DIMS; ++d) count *= sizes[d];
    return count;
  }
  bool is_contiguous() const {
    int64_t step = 1;
    for (int64_t d = dims - 1; d >= 0; step *= sizes[d--])
      if (sizes[d] != 1 && strides[d] != step) return numel() == 0;
    return true;
  }
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

template <class T>
TensorView view_of(const T& tensor);  // defined for what holds tensors

template <class T>
std::optional<TensorView> view_of(const std::optional<T>& tensor) {
  if (!tensor) return {};
  return view_of(*tensor);
}

template <class T>
void check_dim(const T& t, int64_t dim, const char* name) {
  require(t.dim() == dim, name, " must have ", dim, " dimensions, got ", t.dim());
}

inline Dtype kernel_dtype(const TensorView& t, const char* name) {
  require(t.type == Type::f32 || t.type == Type::bf16 || t.type == Type::f16, name,
          " must be float32, bfloat16 or float16 for the C++ kernel");
  return t.type == Type::f32 ? Dtype::f32 : t.type == Type::bf16 ? Dtype::bf16 : Dtype::f16;
}

}  // namespace attrdrop
