// Bits by query to bits by key.
#pragma once
#include "bits.h"
#include "cpu/isa/simd.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

// At most 32 rows of packed columns, to one word in each of the columns, which stand column_words apart.
static inline void transpose_group(const uint32_t* rows, int64_t row_stride, int64_t count, int64_t columns, uint32_t* cols,
                                   int64_t column_words) {
  const int64_t words = word_count(columns);
  for (int64_t w = 0; w < words; w += LANES) {
    vuint block[32] = {};
    const int64_t lanes = words - w < LANES ? words - w : LANES;
    for (int64_t r = 0; r < count; ++r) memcpy(&block[r], rows + r * row_stride + w, 4 * lanes);
    transpose_32x32(block);
    for (int64_t lane = 0; lane < lanes; ++lane)
      for (int64_t j = 0; j < 32 && 32 * (w + lane) + j < columns; ++j)
        cols[(32 * (w + lane) + j) * column_words] = block[j][lane];
  }
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
