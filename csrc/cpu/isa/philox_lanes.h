// Philox over vector lanes.
#pragma once
#include "cpu/isa/simd.h"
#include "philox.h"

namespace attrdrop {
namespace ATTRDROP_ISA {

// Counters in, words out, one call for each lane.
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

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
