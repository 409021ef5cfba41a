// Rows of attribution as ordered integer keys, and their valid columns.
#pragma once
#include "bits.h"
#include "cpu/isa/simd.h"
#include "cpu/kernels.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

// Valid columns of one row; returns how many there are.
static inline int32_t valid_words(const ValidBits& valid, int64_t row, int64_t n_k, int64_t words, uint32_t* out) {
  int32_t count = 0;
  const int64_t end = valid.is_causal && row + 1 < n_k ? row + 1 : n_k;
  for (int64_t w = 0; w < words; ++w) {
    out[w] = columns_below(w, end) & (valid.data ? valid.data[row * valid.row_stride + w] : 0xFFFFFFFFu);
    count += __builtin_popcount(out[w]);
  }
  return count;
}

typedef int16_t vshort __attribute__((vector_size(2 * LANES)));

// Ordered integer keys of the first `columns` values (a multiple of 32), NaN at masked columns, and their upper halves.
// True if any value is NaN.
static inline bool ordered_keys(const float* values, const uint32_t* valid, int64_t columns, bool round_to_bf16, int32_t* keys,
                         int16_t* upper) {
  vint any_nan = {};
  for (int64_t j = 0; j < columns; j += LANES) {
    vfloat value = load<vfloat>(values + j);
    const vint is_nan = value != value;
    if (round_to_bf16) {
      const vuint bits = reinterpret_cast<vuint>(value);
      value = reinterpret_cast<vfloat>((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u);
    }
    const vint bits = reinterpret_cast<vint>(value + vfloat{});  // -0 becomes +0
    const vint key = bits ^ ((bits >> 31) & 0x7FFFFFFF);
    const vint ranked = is_nan ? KEY_NAN + vint{} : key;
    store(keys + j, ranked);
    store(upper + j, __builtin_convertvector(ranked >> 16, vshort));
    any_nan |= is_nan;
  }
  for (int64_t w = 0; w < columns / 32; ++w)
    for (uint32_t masked = ~valid[w]; masked; masked &= masked - 1) {
      const int64_t j = 32 * w + __builtin_ctz(masked);
      keys[j] = KEY_NAN;
      upper[j] = KEY_NAN >> 16;
    }
  bool found = false;
  for (int i = 0; i < LANES; ++i) found |= any_nan[i] != 0;
  return found;
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
