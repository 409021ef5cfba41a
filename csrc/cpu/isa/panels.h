// Matrices as panels of PANEL rows or columns in float32, for products whose sums stay in registers.
#pragma once
#include "cpu/isa/scratch.h"
#include "cpu/isa/simd.h"
#include "cpu/kernels.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

constexpr int PANEL = 2 * LANES;

static inline int64_t to_panels(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

// Calls run with a typed pointer to the matrix.
template <class Run>
static inline void with_type(const Matrix& m, Run run) {
  switch (m.dtype) {
    case Dtype::f32: return run(static_cast<const float*>(m.data));
    case Dtype::bf16: return run(static_cast<const BFloat16*>(m.data));
    case Dtype::f16: return run(static_cast<const Float16*>(m.data));
    case Dtype::f64: return;  // kernel_dtype() refuses it
  }
}

// y (n, d) -> panels (padded(n) / PANEL, d, PANEL), zero past n.
static inline void pack_panels(const Matrix& y, int64_t n, int64_t d, float* panels) {
  with_type(y, [=](auto* data) {
    float* panel = panels;
    for (int64_t begin = 0; begin < padded(n); begin += PANEL, panel += d * PANEL)
      for (int64_t c = 0; c < PANEL; ++c) {
        if (begin + c >= n) {
          for (int64_t k = 0; k < d; ++k) panel[k * PANEL + c] = 0.0f;
          continue;
        }
        const auto* row = data + (begin + c) * y.row_stride;
        for (int64_t k = 0; k < d; ++k) panel[k * PANEL + c] = as_float(row[k]);
      }
  });
}

// Rows [begin, begin + count) of x (n, d) -> panels over its columns (to_panels(d) / PANEL, space, PANEL), zero past d.
static inline void pack_columns(const Matrix& x, int64_t begin, int64_t count, int64_t d, int64_t space, float* panels) {
  with_type(x, [=](auto* data) mutable {
    for (int64_t first = 0; first < d; first += PANEL, panels += space * PANEL)
      for (int64_t r = 0; r < count; ++r) {
        const auto* row = data + (begin + r) * x.row_stride + first;
        float* out = panels + r * PANEL;
        const int64_t width = d - first < PANEL ? d - first : PANEL;
        for (int64_t k = 0; k < width; ++k) out[k] = as_float(row[k]);
        for (int64_t k = width; k < PANEL; ++k) out[k] = 0.0f;
      }
  });
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
