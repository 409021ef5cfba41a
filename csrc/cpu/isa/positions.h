// What positions are worth, eight rows at a time (Eq. 5; Eq. 3 where it is weighted by the attention probabilities).
#pragma once
#include "cpu/isa/tile.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

struct PositionScratch {
  float *y_panels, *k_panels, *x_block, *q_block, *values, *weights, *bias;
};

static void carve(Carver& carver, const Positions& p, PositionScratch& s) {
  const int64_t n = padded(p.n_k);
  const bool weighted = p.weight_lse != nullptr;
  carver.take(s.y_panels, n * p.d);
  carver.take(s.k_panels, weighted ? n * p.d_weight : 0);
  carver.take(s.x_block, BLOCK_ROWS * p.d);
  carver.take(s.q_block, weighted ? BLOCK_ROWS * p.d_weight : 0);
  carver.take(s.values, BLOCK_ROWS * n);
  carver.take(s.weights, weighted ? BLOCK_ROWS * n : 0);
  carver.take(s.bias, p.bias.data ? n : 0);
}

static void pack_operands(const Positions& p, const PositionScratch& s) {
  if (!p.is_weight_alone) pack_panels(p.y, p.n_k, p.d, s.y_panels);
  if (p.weight_lse) pack_panels(p.weight_k, p.n_k, p.d_weight, s.k_panels);
}

// The first `columns` columns (a multiple of 32) of a row of the bias, zero past the end.
static void load_bias(const Positions& p, int64_t row, int64_t columns, float* bias) {
  with_type(p.bias, [=, &p](auto* data) {
    const int64_t n = columns < p.n_k ? columns : p.n_k, step = p.bias_column_stride;
    const auto* first = data + row * p.bias.row_stride;
    if (step == 1)
      for (int64_t j = 0; j < n; ++j) bias[j] = as_float(first[j]);
    else
      for (int64_t j = 0; j < n; ++j) bias[j] = as_float(first[j * step]);
    for (int64_t j = n; j < columns; ++j) bias[j] = 0.0f;
  });
}

// scale * scores + bias, rounded once, for the first `columns` columns of a row. Room for the bias.
static void scale_and_add(const Positions& p, int64_t row, int64_t columns, float* bias, float* scores) {
  load_bias(p, row, columns, bias);
  const vfloat scale = broadcast(p.scale);
  for (int64_t j = 0; j < columns; j += LANES)
    store(scores + j, fmadd(load<vfloat>(scores + j), scale, load<vfloat>(bias + j)));
}

// BLOCK_ROWS rows over the first 32 * words columns, to s.values; those of x are in s.x_block.
static void position_block(const Positions& p, const PositionScratch& s, int64_t row, int64_t words, int64_t stride) {
  const int64_t rows = p.n_q - row < BLOCK_ROWS ? p.n_q - row : BLOCK_ROWS;
  if (p.d == 0 && p.bias.data && !p.weight_lse) {
    for (int64_t r = 0; r < rows; ++r) load_bias(p, row + r, 32 * words, s.values + r * stride);
    return;
  }
  if (!p.is_weight_alone) multiply(s.x_block, s.y_panels, p.d, 32 * words, s.values, stride);
  if (!p.weight_lse) {
    for (int64_t r = 0; p.bias.data && r < rows; ++r)
      scale_and_add(p, row + r, 32 * words, s.bias, s.values + r * stride);
    return;
  }
  load_rows(p.weight_q, row, p.n_q, p.d_weight, s.q_block);
  multiply(s.q_block, s.k_panels, p.d_weight, 32 * words, s.weights, stride);
  for (int64_t r = 0; r < rows; ++r) {
    if (p.bias.data) scale_and_add(p, row + r, 32 * words, s.bias, s.weights + r * stride);
    const vfloat lse = broadcast(p.weight_lse[row + r]), scale = broadcast(p.bias.data ? 1.0f : p.scale);
    for (int64_t j = r * stride; j < r * stride + 32 * words; j += LANES) {
      const vfloat z = fmadd(load<vfloat>(s.weights + j), scale, -lse);
      const vfloat weight = exponential(z > 88.0f ? broadcast(88.0f) : z);
      store(s.values + j, p.is_weight_alone ? weight : load<vfloat>(s.values + j) * weight);
    }
  }
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
