// Packed masks: column j is bit j % 32 of word j / 32, least significant first; unused bits are 0.
#pragma once
#include <cstdint>

#include "philox.h"

namespace attrdrop {

ATTRDROP_HD int64_t word_count(int64_t columns) { return (columns + 31) / 32; }

// Set bits of word `word` that lie below column `end`.
template <class Index>
ATTRDROP_HD uint32_t columns_below(Index word, Index end) {
  const Index left = end - 32 * word;
  return left >= 32 ? 0xFFFFFFFFu : left <= 0 ? 0u : (1u << left) - 1u;
}

// Columns of one word from a row of bytes (torch.bool).
ATTRDROP_HD uint32_t pack_word(const uint8_t* row, int64_t word, int64_t columns, int64_t column_stride) {
  uint32_t bits = 0;
  for (int j = 0; j < 32 && 32 * word + j < columns; ++j)
    bits |= static_cast<uint32_t>(row[(32 * word + j) * column_stride] != 0) << j;
  return bits;
}

// Calls run(index, row, word) for the words [begin, end) of rows of `words`, without a division for each.
template <class Run>
static inline void for_words(int64_t begin, int64_t end, int64_t words, Run run) {
  int64_t row = begin < end ? begin / words : 0, word = begin - row * words;
  for (int64_t i = begin; i < end; ++i) {
    run(i, row, word);
    if (++word == words) {
      word = 0;
      ++row;
    }
  }
}

ATTRDROP_HD bool test_bit(const uint32_t* row, int64_t column) { return (row[column / 32] >> (column % 32)) & 1u; }

// 32 x 32 bit transpose in place: bit j of word i becomes bit i of word j. Word is uint32_t or a vector of them.
template <class Word>
ATTRDROP_HD void transpose_32x32(Word* a) {
  uint32_t mask = 0x0000FFFFu;
  for (int j = 16; j != 0; j >>= 1, mask ^= mask << j)
    for (int k = 0; k < 32; k = (k + j + 1) & ~j) {
      const Word t = ((a[k] >> j) ^ a[k + j]) & mask;
      a[k] ^= t << j;
      a[k + j] ^= t;
    }
}

}  // namespace attrdrop
