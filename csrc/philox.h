// Philox4x32-10 (Salmon et al., 2011) and the layout of the draws, shared by CPU kernels, CUDA kernels and tests.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define ATTRDROP_HD static __host__ __device__ __forceinline__
#else
#define ATTRDROP_HD static inline  // internal linkage: the variants of the CPU kernels must not share code
#endif

namespace attrdrop {

struct Philox4 {
  uint32_t word[4];
};

constexpr uint32_t PHILOX_M0 = 0xD2511F53u, PHILOX_M1 = 0xCD9E8D57u;
constexpr uint32_t PHILOX_W0 = 0x9E3779B9u, PHILOX_W1 = 0xBB67AE85u;
constexpr int PHILOX_ROUNDS = 10;

struct PhiloxKeys {
  uint32_t key[PHILOX_ROUNDS][2];
};

ATTRDROP_HD PhiloxKeys philox_keys(uint64_t seed) {
  PhiloxKeys keys;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < PHILOX_ROUNDS; ++round, k0 += PHILOX_W0, k1 += PHILOX_W1)
    keys.key[round][0] = k0, keys.key[round][1] = k1;
  return keys;
}

ATTRDROP_HD Philox4 philox4x32_10(const PhiloxKeys& keys, Philox4 counter) {
  uint32_t* c = counter.word;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(PHILOX_M0) * c[0], p1 = static_cast<uint64_t>(PHILOX_M1) * c[2];
    const uint32_t c1 = c[1], c3 = c[3];
    c[0] = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ keys.key[round][0];
    c[1] = static_cast<uint32_t>(p1);
    c[2] = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ keys.key[round][1];
    c[3] = static_cast<uint32_t>(p0);
  }
  return counter;
}

ATTRDROP_HD Philox4 philox4x32_10(uint64_t seed, Philox4 counter) { return philox4x32_10(philox_keys(seed), counter); }

// Where a 32-column word stands: its draws depend on nothing else.
struct DrawPlace {
  uint32_t row, head_layer, sample;  // head_layer = head + 65536 * layer
};

// q as a 16-bit threshold: a column is dropped where its 16-bit number is below it.
ATTRDROP_HD uint32_t drop_threshold(double rate) { return static_cast<uint32_t>(rate * 65536.0 + 0.5); }

// One bit plane of the numbers and of the threshold, least significant first, folded into "number < threshold".
ATTRDROP_HD uint32_t fold_plane(uint32_t less, uint32_t plane, uint32_t threshold) {
  return (less & ~plane) | (threshold & (less | ~plane));
}

// 32 Bernoulli(threshold / 65536) bits of one word; set = dropped.
ATTRDROP_HD uint32_t bernoulli_word(uint64_t seed, DrawPlace place, uint32_t word, uint32_t threshold) {
  if (threshold > 0xFFFFu) return 0xFFFFFFFFu;
  uint32_t less = 0;
  for (uint32_t call = 0; call < 4; ++call) {
    if (!(threshold & ((16u << 4 * call) - 1u))) continue;  // planes below the lowest set bit change nothing
    const Philox4 r = philox4x32_10(seed, {{4 * word + call, place.row, place.head_layer, place.sample}});
    for (int i = 0; i < 4; ++i) less = fold_plane(less, r.word[i], 0u - (threshold >> (4 * call + i) & 1u));
  }
  return less;
}

// What all words of a mask have in common: round keys, and the planes of the threshold (all ones or zero), the least
// significant first. A kernel's argument: constants cost it no registers.
struct Bernoulli {
  PhiloxKeys keys;
  uint32_t threshold, plane[16];
};

ATTRDROP_HD Bernoulli bernoulli(uint64_t seed, uint32_t threshold) {
  Bernoulli shared{philox_keys(seed), threshold, {}};
  for (int i = 0; i < 16; ++i) shared.plane[i] = 0u - (threshold >> i & 1u);
  return shared;
}

// Those bits of bernoulli_word that are set in `wanted`: from the most significant planes on, until each of them is known.
ATTRDROP_HD uint32_t bernoulli_subset(const Bernoulli& shared, DrawPlace place, uint32_t word, uint32_t wanted) {
  if (shared.threshold > 0xFFFFu) return wanted;
  uint32_t dropped = 0, open = wanted;  // open: equal to the threshold in all planes so far
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int call = 3; call >= 0; --call) {
    if (!open || !(shared.threshold & ((16u << 4 * call) - 1u))) break;  // no plane from here on is set in the threshold
    const Philox4 r = philox4x32_10(shared.keys, {{4 * word + call, place.row, place.head_layer, place.sample}});
    uint32_t less = 0, equal = open;
    for (int i = 0; i < 4; ++i) {
      const uint32_t plane = shared.plane[4 * call + i];
      less = fold_plane(less, r.word[i], plane);
      equal &= ~(r.word[i] ^ plane);
    }
    dropped |= open & less;
    open = equal;
  }
  return dropped;
}

}  // namespace attrdrop
