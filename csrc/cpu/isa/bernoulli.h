// Philox over vector lanes: each lane draws one word of 32 columns.
#pragma once
#include "cpu/isa/simd.h"
#include "cpu/kernels.h"
#include "philox.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

static inline void philox_lanes(uint64_t seed, vuint c[4]) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    vuint high0, low0, high1, low1;
    multiply_wide(c[0], PHILOX_M0, high0, low0);
    multiply_wide(c[2], PHILOX_M1, high1, low1);
    c[0] = high1 ^ c[1] ^ k0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ k1;
    c[3] = low0;
    k0 += PHILOX_W0;
    k1 += PHILOX_W1;
  }
}

// Dropped bits of rows [begin, end), `words` words a row, contiguous in out.
static void bernoulli_words(const Draw& draw, int64_t begin, int64_t end, int64_t words, uint32_t* out) {
  const int64_t total = (end - begin) * words;
  if (draw.threshold == 0 || draw.threshold > 0xFFFFu) {
    for (int64_t i = 0; i < total; ++i) out[i] = draw.threshold ? 0xFFFFFFFFu : 0u;
    return;
  }
  const int first_call = __builtin_ctz(draw.threshold) / 4;  // planes below the lowest set bit change nothing
  uint32_t row = static_cast<uint32_t>(begin), word = 0;
  for (int64_t i = 0; i < total; i += LANES) {
    vuint lane_word, lane_row, less = {};
    for (int lane = 0; lane < LANES; ++lane) {
      lane_word[lane] = word;
      lane_row[lane] = row;
      if (++word == words) {
        word = 0;
        ++row;
      }
    }
    for (int call = first_call; call < 4; ++call) {
      vuint r[4] = {4u * lane_word + static_cast<uint32_t>(call), lane_row, broadcast(draw.head_layer),
                    broadcast(draw.sample)};
      philox_lanes(draw.seed, r);
      for (int plane = 0; plane < 4; ++plane)
        less = (draw.threshold >> (4 * call + plane)) & 1u ? less | ~r[plane] : less & ~r[plane];
    }
    if (total - i >= LANES) {
      store(out + i, less);
    } else {
      for (int64_t lane = 0; lane < total - i; ++lane) out[i + lane] = less[lane];
    }
  }
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
