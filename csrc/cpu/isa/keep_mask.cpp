// keep_mask on one (sample, head): rank x y^T per row, find the threshold, draw, pack (Eq. 5 to 7 of AD-DROP).
#include "cpu/isa/bernoulli.h"
#include "cpu/isa/select_rows.h"
#include "cpu/isa/tile.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

struct Scratch {
  float *y_panels, *k_panels, *x_block, *q_block, *values, *weights, *bias;
  uint32_t *valid, *dropped;
  RowScratch row;
};

// Carves the buffers out of `base`; with base null only the size counts.
static int64_t carve(const KeepMaskProblem& p, char* base, Scratch& s) {
  const int64_t n = padded(p.n_k), words = n / 32;
  const bool weighted = p.weight_lse != nullptr;
  Carver carver{base};
  carver.take(s.y_panels, n * p.d);
  carver.take(s.k_panels, weighted ? n * p.d_weight : 0);
  carver.take(s.x_block, BLOCK_ROWS * p.d);
  carver.take(s.q_block, weighted ? BLOCK_ROWS * p.d_weight : 0);
  carver.take(s.values, BLOCK_ROWS * n);
  carver.take(s.weights, weighted ? BLOCK_ROWS * n : 0);
  carver.take(s.bias, p.bias.data ? n : 0);
  carver.take(s.valid, BLOCK_ROWS * words);
  carver.take(s.dropped, BLOCK_ROWS * words);
  carve(carver, p.n_k, s.row);
  return carver.next - base;
}

int64_t keep_mask_scratch(const KeepMaskProblem& p) {
  Scratch unused;
  return carve(p, nullptr, unused);
}

// The first `columns` columns (a multiple of 32) of a row of the bias, zero past the end.
static void load_bias(const KeepMaskProblem& p, int64_t row, int64_t columns, float* bias) {
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
static void scale_and_add(const KeepMaskProblem& p, int64_t row, int64_t columns, float* bias, float* scores) {
  load_bias(p, row, columns, bias);
  const vfloat scale = broadcast(p.scale);
  for (int64_t j = 0; j < columns; j += LANES)
    store(scores + j, fmadd(load<vfloat>(scores + j), scale, load<vfloat>(bias + j)));
}

// B of BLOCK_ROWS rows over the first 32 * words columns (Eq. 5; Eq. 3 when weighted).
static void attribution_block(const KeepMaskProblem& p, const Scratch& s, int64_t row, int64_t words, int64_t stride) {
  const int64_t rows = p.n_q - row < BLOCK_ROWS ? p.n_q - row : BLOCK_ROWS;
  if (p.d == 0 && p.bias.data && !p.weight_lse) {
    for (int64_t r = 0; r < rows; ++r) load_bias(p, row + r, 32 * words, s.values + r * stride);
    return;
  }
  multiply(s.x_block, s.y_panels, p.d, 32 * words, s.values, stride);
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
      store(s.values + j, load<vfloat>(s.values + j) * exponential(z > 88.0f ? broadcast(88.0f) : z));
    }
  }
}

void keep_mask(const KeepMaskProblem& p, int64_t begin, int64_t end, void* scratch, Counts& counts) {
  Scratch s;
  carve(p, static_cast<char*>(scratch), s);
  const int64_t words = word_count(p.n_k), stride = 32 * words;
  const bool has_bias = p.bias.data && !p.weight_lse;  // added to what is ranked
  const bool is_shared = !p.valid.is_causal && (!p.valid.data || p.valid.row_stride == 0);  // by all rows
  int32_t n_valid[BLOCK_ROWS] = {}, guess = 0;
  pack_panels(p.y, p.n_k, p.d, s.y_panels);
  if (p.weight_lse) pack_panels(p.weight_k, p.n_k, p.d_weight, s.k_panels);
  for (int64_t row = begin; row < end; row += BLOCK_ROWS) {
    const int64_t rows = end - row < BLOCK_ROWS ? end - row : BLOCK_ROWS;
    int64_t active_words = 0;  // no column past them is valid in any of the rows
    bool dead[BLOCK_ROWS], any_alive = false;
    load_rows(p.x, row, p.n_q, p.d, s.x_block);
    for (int64_t r = 0; r < rows; ++r) {
      uint32_t* valid = s.valid + r * words;
      if (row == begin || !is_shared) n_valid[r] = valid_words(p.valid, row + r, p.n_k, words, valid);
      for (int64_t w = words; w > active_words; --w)
        if (valid[w - 1]) active_words = w;
      // A row of zeros ties everywhere: nothing lies below its threshold.
      dead[r] = p.region == Region::high && !has_bias && all_zero(s.x_block + r * p.d, p.d);
      any_alive |= !dead[r] && n_valid[r] > 0;
    }
    if (any_alive) attribution_block(p, s, row, active_words, stride);
    bernoulli_words(p.draw, row, row + rows, words, s.dropped);
    for (int64_t r = 0; r < rows; ++r)
      select_row(p, s.row, row + r, s.values + r * stride, dead[r], s.valid + r * words, s.dropped + r * words, active_words,
                 n_valid[r], guess, counts);
    const int64_t group = row / 32 * 32;
    if (p.cols && (row + BLOCK_ROWS >= group + 32 || row + BLOCK_ROWS >= end))
      transpose_rows(p, group, end < group + 32 ? end : group + 32);
  }
}

void bernoulli(const Draw& draw, int64_t begin, int64_t end, int64_t words, uint32_t* out) {
  bernoulli_words(draw, begin, end, words, out);
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
