// Bernoulli bits: each vector lane draws one word of 32 columns.
#pragma once
#include "cpu/isa/philox_lanes.h"
#include "cpu/kernels.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

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
