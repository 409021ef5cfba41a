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

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
