// Tiles of x y^T in float32: eight rows at a time against packed panels of y. Every product is one chain of fused
// multiply-adds over d in ascending order, whatever the vector length, so all variants give the same keys.
#pragma once
#include "cpu/isa/panels.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

constexpr int BLOCK_ROWS = 8;
#if defined(__AVX512F__)
constexpr int MICRO_ROWS = 8;
#else
constexpr int MICRO_ROWS = 4;
#endif

// Rows [begin, begin + BLOCK_ROWS) of x as float32 (BLOCK_ROWS, d), zero past n.
static void load_rows(const Matrix& x, int64_t begin, int64_t n, int64_t d, float* out) {
  with_type(x, [=](auto* data) {
    for (int64_t r = 0; r < BLOCK_ROWS; ++r) {
      const bool exists = begin + r < n;
      const auto* row = data + (exists ? begin + r : 0) * x.row_stride;
      for (int64_t k = 0; k < d; ++k) out[r * d + k] = exists ? as_float(row[k]) : 0.0f;
    }
  });
}

// c (BLOCK_ROWS, columns) = x (BLOCK_ROWS, d) y^T for the first `columns` columns, a multiple of 32; c has stride ldc.
static void multiply(const float* x, const float* panels, int64_t d, int64_t columns, float* c, int64_t ldc) {
  for (int64_t begin = 0; begin < columns; begin += PANEL, panels += d * PANEL)
    for (int row = 0; row < BLOCK_ROWS; row += MICRO_ROWS) {
      vfloat sum[MICRO_ROWS][2] = {};
      for (int64_t k = 0; k < d; ++k) {
        const vfloat y0 = load<vfloat>(panels + k * PANEL), y1 = load<vfloat>(panels + k * PANEL + LANES);
        for (int r = 0; r < MICRO_ROWS; ++r) {
          const vfloat xr = broadcast(x[(row + r) * d + k]);
          sum[r][0] = fmadd(xr, y0, sum[r][0]);
          sum[r][1] = fmadd(xr, y1, sum[r][1]);
        }
      }
      for (int r = 0; r < MICRO_ROWS; ++r) {
        store(c + (row + r) * ldc + begin, sum[r][0]);
        store(c + (row + r) * ldc + begin + LANES, sum[r][1]);
      }
    }
}

// Valid columns of one row; returns how many there are.
static int32_t valid_words(const ValidBits& valid, int64_t row, int64_t n_k, int64_t words, uint32_t* out) {
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
static bool ordered_keys(const float* values, const uint32_t* valid, int64_t columns, bool round_to_bf16, int32_t* keys,
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
