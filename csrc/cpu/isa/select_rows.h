// From a row of attribution to its bits: threshold, candidates, draw (Eq. 6 and 7 of AD-DROP).
#pragma once
#include "cpu/isa/row_keys.h"
#include "cpu/isa/scratch.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

constexpr int64_t BRACKET = 12;  // with this few keys left, finish among them instead of passing over the row

struct RowScratch {
  int32_t *keys, *bracket;
  int16_t* upper;
  uint32_t* candidates;
};

static inline void carve(Carver& carver, int64_t n_k, RowScratch& s) {
  const int64_t n = padded(n_k);
  carver.take(s.keys, n);
  carver.take(s.bracket, n + 32);
  carver.take(s.upper, n);
  carver.take(s.candidates, n / 32);
}

// The key at 0-based `rank` of `size` keys in [left, right), padded with KEY_NAN to a multiple of 32.
static inline int32_t select_in_bracket(const int32_t* keys, int64_t size, int32_t rank, int64_t left, int64_t right) {
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
static inline int32_t find_threshold(const RowScratch& s, int64_t columns, int32_t rank, int32_t not_nan, int32_t& guess) {
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
static inline void find_candidates(const KeepMaskProblem& p, const RowScratch& s, const float* values, const uint32_t* valid,
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

static inline void keep_row(const RowScratch& s, const uint32_t* valid, const uint32_t* dropped,
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

// The bits of one row. ties: it is equal everywhere, so that its values need not be known.
static inline void select_row(const KeepMaskProblem& p, const RowScratch& s, int64_t row, const float* values, bool ties,
                       const uint32_t* valid, const uint32_t* dropped, int64_t active_words, int32_t n_valid, int32_t& guess,
                       Counts& counts) {
  const int64_t words = word_count(p.n_k);
  uint32_t* out = p.rows + row * words;
  if (ties || n_valid == 0) {
    const bool none = row_rule(p.region, threshold_rank(n_valid, p.share_below), n_valid, 0).none;
    for (int64_t w = 0; w < active_words; ++w) s.candidates[w] = none ? 0u : valid[w];
  } else {
    find_candidates(p, s, values, valid, active_words, n_valid, guess);
  }
  for (int64_t w = active_words; w < words; ++w) out[w] = 0;
  keep_row(s, valid, dropped, active_words, n_valid, out, counts);
}

static inline bool all_zero(const float* x, int64_t d) {
  for (int64_t k = 0; k < d; ++k)
    if (x[k] != 0.0f) return false;
  return true;
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
