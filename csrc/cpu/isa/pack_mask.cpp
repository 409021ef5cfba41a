// pack_mask of some words, and transpose_mask of some groups of 32 rows.
#include "cpu/isa/transpose.h"
#include "cpu/kernels.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

// 32 unit-stride bytes to a word.
static inline uint32_t pack_full_word(const uint8_t* bytes) {
#if defined(__AVX512BW__)
  const __m256i v = load<__m256i>(bytes);
  return _mm256_test_epi8_mask(v, v);
#elif defined(__AVX2__)
  return ~static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(load<__m256i>(bytes), _mm256_setzero_si256())));
#else
  // eight at a time, their top bits gathered by one multiplication
  constexpr uint64_t low_bits = 0x7F7F7F7F7F7F7F7Full, gather = 0x0102040810204080ull;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const uint64_t eight = load<uint64_t>(bytes + 8 * i);
    const uint64_t top = (((eight & low_bits) + low_bits) | eight) & ~low_bits;  // 0x80 where the byte is not 0
    word |= static_cast<uint32_t>((top >> 7) * gather >> 56) << (8 * i);
  }
  return word;
#endif
}

void pack_words(const PackProblem& p, int64_t begin, int64_t end) {
  for_words(begin, end, word_count(p.n), [&](int64_t i, int64_t row_index, int64_t word) {
    const uint8_t* row = p.mask + row_index * p.row_stride;
    const bool is_full = p.column_stride == 1 && 32 * word + 32 <= p.n;
    p.bits[i] = is_full ? pack_full_word(row + 32 * word) : pack_word(row, word, p.n, p.column_stride);
  });
}

void transpose_groups(const TransposeProblem& p, int64_t begin, int64_t end) {
  const int64_t column_words = word_count(p.n_q);
  for_words(begin, end, column_words, [&](int64_t, int64_t head, int64_t group) {
    const int64_t row = 32 * group, left = p.n_q - row;
    transpose_group(p.rows + head * p.head_stride + row * p.row_stride, p.row_stride, left < 32 ? left : 32, p.n_k,
                    p.cols + head * p.n_k * column_words + group, column_words);
  });
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
