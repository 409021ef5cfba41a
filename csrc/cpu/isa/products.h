// Products of small float32 matrices: a block of rows against packed panels, the sums in registers. Each element is one
// chain of fused multiply-adds in ascending order where the processor has them.
#pragma once
#include "cpu/isa/panels.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 12;  // 24 sums, 2 vectors of the panel and a broadcast in 32 registers
#else
constexpr int TILE_ROWS = 6;  // 12 sums in 16 registers
#endif

// EXACT: rounded once on every processor, however slow that is.
template <bool EXACT>
static inline vfloat accumulate(vfloat a, vfloat b, vfloat c) {
  if constexpr (EXACT) return fmadd(a, b, c);
#if defined(__AVX2__) || defined(__ARM_FEATURE_FMA)
  return fmadd(a, b, c);
#else
  return a * b + c;
#endif
}

// c (ROWS, PANEL) (+)= a panel, with panel (depth, PANEL). a (ROWS, depth) has rows `step` apart; transposed, its columns.
template <int ROWS, bool TRANSPOSED, bool EXACT>
static inline void product_tile(const float* a, int64_t step, const float* panel, int64_t depth, float* c, int64_t ldc,
                                bool add) {
  vfloat sum[ROWS][2] = {};
  for (int64_t k = 0; k < depth; ++k, panel += PANEL) {
    const vfloat b0 = load<vfloat>(panel), b1 = load<vfloat>(panel + LANES);
    for (int r = 0; r < ROWS; ++r) {
      const vfloat x = broadcast(TRANSPOSED ? a[k * step + r] : a[r * step + k]);
      sum[r][0] = accumulate<EXACT>(x, b0, sum[r][0]);
      sum[r][1] = accumulate<EXACT>(x, b1, sum[r][1]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    float* at = c + r * ldc;
    store(at, add ? load<vfloat>(at) + sum[r][0] : sum[r][0]);  // block by block: rounding grows with their number only
    store(at + LANES, add ? load<vfloat>(at + LANES) + sum[r][1] : sum[r][1]);
  }
}

// The tile of the last rows, fewer than ROWS.
template <int ROWS, bool TRANSPOSED, bool EXACT>
static inline void product_rest(int64_t rows, const float* a, int64_t step, const float* panel, int64_t depth, float* c,
                                int64_t ldc, bool add) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS - 1) return product_rest<ROWS - 1, TRANSPOSED, EXACT>(rows, a, step, panel, depth, c, ldc, add);
    product_tile<ROWS - 1, TRANSPOSED, EXACT>(a, step, panel, depth, c, ldc, add);
  }
}

// c (rows, columns) (+)= a b, b as panels `panel_step` floats apart that cover the columns, c padded to whole panels.
template <bool TRANSPOSED, bool EXACT = false>
static void product(const float* a, int64_t step, int64_t rows, const float* panels, int64_t panel_step, int64_t depth,
                    int64_t columns, float* c, int64_t ldc, bool add) {
  for (int64_t j = 0; j < columns; j += PANEL, panels += panel_step) {
    int64_t r = 0;
    for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
      product_tile<TILE_ROWS, TRANSPOSED, EXACT>(a + (TRANSPOSED ? r : r * step), step, panels, depth, c + r * ldc + j, ldc, add);
    if (r < rows)
      product_rest<TILE_ROWS, TRANSPOSED, EXACT>(rows - r, a + (TRANSPOSED ? r : r * step), step, panels, depth,
                                          c + r * ldc + j, ldc, add);
  }
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
