// keep_mask on one (sample, head): rank x y^T per row, find the threshold, draw, pack (Eq. 5 to 7 of AD-DROP).
#include "cpu/isa/bernoulli.h"
#include "cpu/isa/tile.h"
#include "cpu/isa/transpose.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

constexpr int64_t BRACKET = 12;  // with this few keys left, finish among them instead of passing over the row

struct Scratch {
  float *y_panels, *k_panels, *x_block, *q_block, *values, *weights, *bias;
  int32_t *keys, *bracket;
  int16_t* upper;
  uint32_t *valid, *candidates, *dropped;
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
  carver.take(s.keys, n);
  carver.take(s.bracket, n + 32);
  carver.take(s.upper, n);
  carver.take(s.valid, BLOCK_ROWS * words);
  carver.take(s.candidates, words);
  carver.take(s.dropped, BLOCK_ROWS * words);
  return carver.next - base;
}

int64_t keep_mask_scratch(const KeepMaskProblem& p) {
  Scratch unused;
  return carve(p, nullptr, unused);
}

// The key at 0-based `rank` of `size` keys in [left, right), padded with KEY_NAN to a multiple of 32.
static int32_t select_in_bracket(const int32_t* keys, int64_t size, int32_t rank, int64_t left, int64_t right) {
  const int64_t padded_size = padded(size);
  if (size <= BRACKET) {  // it is the largest key with at most `rank` below it
    int32_t best = static_cast<int32_t>(left);
    for (int64_t i = 0; i < size; ++i)
      if (keys[i] > best && count_less(keys, padded_size, keys[i]) <= rank) best = keys[i];
    return best;
  }
  while (right - left > 1) {
    const int64_t middle = (left + right) >> 1;
    (count_less(keys, padded_size, static_cast<int32_t>(middle)) <= rank ? left : right) = middle;
  }
  return static_cast<int32_t>(left);
}

// A cut t with count(key < t) == rank, or else the key at 0-based `rank`: either way key < t picks the columns
// strictly below the threshold of Eq. 6. rank < not_nan. Bisects the upper halves, then the few keys left between.
//
// The search starts at `guess`, the upper half where the row before ended: rows of a head are often alike. It steps away
// in growing strides until the threshold lies between two probes. The guess changes the cost, never the result.
static int32_t find_threshold(const Scratch& s, int64_t columns, int32_t rank, int32_t not_nan, int32_t& guess) {
  constexpr int32_t lowest = -32641, highest = 0x7F81;  // upper halves of -inf and, exclusive, of +inf
  int32_t low = lowest, high = highest, stride = 16;
  int32_t count_low = 0, count_high = not_nan;
  while (high - low > 1 && count_high - count_low > BRACKET) {
    if (guess <= low || guess >= high || (low > lowest && high < highest)) guess = (low + high) >> 1;
    const int32_t count = count_less(s.upper, columns, static_cast<int16_t>(guess));
    if (count == rank) return guess * 65536;
    if (count < rank) {
      low = guess;
      count_low = count;
      guess += stride;
    } else {
      high = guess;
      count_high = count;
      guess -= stride;
    }
    if (stride < highest) stride *= 4;
  }
  guess = (low + high) >> 1;
  const int64_t left = low * INT64_C(65536), right = high * INT64_C(65536);
  int64_t size = 0;
  for (int64_t w = 0; w < columns / 32; ++w) {
    const uint32_t inside = less_word(s.keys + 32 * w, static_cast<int32_t>(right)) &
                            ~less_word(s.keys + 32 * w, static_cast<int32_t>(left));
    for (uint32_t rest = inside; rest; rest &= rest - 1) s.bracket[size++] = s.keys[32 * w + __builtin_ctz(rest)];
  }
  for (int i = 0; i < 32; ++i) s.bracket[size + i] = KEY_NAN;
  return select_in_bracket(s.bracket, size, rank - count_low, left, right);
}

// Candidate columns of one row from its keys, into s.candidates.
static void find_candidates(const KeepMaskProblem& p, const Scratch& s, const float* values, const uint32_t* valid,
                            int64_t words, int32_t n_valid, int32_t& guess) {
  const int32_t rank = threshold_rank(n_valid, p.share_below);
  int32_t not_nan = n_valid;
  if (ordered_keys(values, valid, 32 * words, p.round_to_bf16, s.keys, s.upper)) {
    not_nan = 0;
    for (int64_t w = 0; w < words; ++w) not_nan += __builtin_popcount(less_word(s.keys + 32 * w, KEY_NAN));
  }
  const RowRule rule = row_rule(p.region, rank, n_valid, not_nan);
  if (rule.all || rule.none) {
    for (int64_t w = 0; w < words; ++w) s.candidates[w] = rule.all ? valid[w] : 0u;
    return;
  }
  const int32_t threshold = find_threshold(s, 32 * words, rank, not_nan, guess);
  if (p.region == Region::high) {
    for (int64_t w = 0; w < words; ++w) s.candidates[w] = valid[w] & ~less_word(s.keys + 32 * w, threshold);
  } else {
    for (int64_t w = 0; w < words; ++w) {
      const uint32_t at_or_above = ~less_word(s.keys + 32 * w, threshold) & less_word(s.keys + 32 * w, KEY_NAN);
      s.candidates[w] = valid[w] & ~at_or_above;
    }
  }
}

static bool all_zero(const float* x, int64_t d) {
  for (int64_t k = 0; k < d; ++k)
    if (x[k] != 0.0f) return false;
  return true;
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

static void keep_row(const Scratch& s, const uint32_t* valid, const uint32_t* dropped,
                     int64_t active_words, int32_t n_valid, uint32_t* out, Counts& counts) {
  int64_t candidate_count = 0, dropped_count = 0;
  for (int64_t w = 0; w < active_words; ++w) {
    const uint32_t drop = s.candidates[w] & dropped[w];
    candidate_count += __builtin_popcount(s.candidates[w]);
    dropped_count += __builtin_popcount(drop);
    out[w] = valid[w] & ~drop;
  }
  counts.valid += n_valid;
  counts.candidates += candidate_count;
  if (n_valid > 0 && dropped_count == n_valid) {  // a row may not lose all its keys
    for (int64_t w = 0; w < active_words; ++w) out[w] = valid[w];
    ++counts.rescued_rows;
    dropped_count = 0;
  }
  counts.dropped += dropped_count;
}

static void transpose_rows(const KeepMaskProblem& p, int64_t begin, int64_t end) {
  const int64_t words = word_count(p.n_k);
  transpose_group(p.rows + begin * words, words, end - begin, p.n_k, p.cols + begin / 32, word_count(p.n_q));
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
    for (int64_t r = 0; r < rows; ++r) {
      const uint32_t* valid = s.valid + r * words;
      uint32_t* out = p.rows + (row + r) * words;
      if (dead[r] || n_valid[r] == 0) {
        const bool none = row_rule(p.region, threshold_rank(n_valid[r], p.share_below), n_valid[r], 0).none;
        for (int64_t w = 0; w < active_words; ++w) s.candidates[w] = none ? 0u : valid[w];
      } else {
        find_candidates(p, s, s.values + r * stride, valid, active_words, n_valid[r], guess);
      }
      for (int64_t w = active_words; w < words; ++w) out[w] = 0;
      keep_row(s, valid, s.dropped + r * words, active_words, n_valid[r], out, counts);
    }
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
