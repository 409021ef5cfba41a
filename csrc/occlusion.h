// RelDrop (Eq. 1, I' = M * I + (1 - M) * s): what occluding images and occluding points share, for CPU and CUDA.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "halves.h"
#include "philox.h"
#include "select.h"

namespace attrdrop {

// Counter 1 of the draws. No row of an attention matrix has such a number, so one seed serves masks and occlusion.
constexpr uint32_t DRAW_BLOCK = 0x80000000u, DRAW_BATCH = 0x80000001u, DRAW_ELEMENT = 0x80000002u;
constexpr uint32_t DRAW_POINT = 0x80000003u, DRAW_RESAMPLE = 0x80000004u;

enum class Element : int { u8, f16, bf16, f32 };

// The bits of a number in a type.
ATTRDROP_HD uint32_t value_bits(double value, Element type) {
  const float rounded = static_cast<float>(value);
  if (type == Element::u8) return static_cast<uint8_t>(value);
  if (type == Element::f16) return narrow_half(rounded);
  if (type == Element::bf16) return narrow(rounded);
  uint32_t bits;
  memcpy(&bits, &rounded, sizeof bits);
  return bits;
}

// Global numbers of the samples of a batch.
struct SampleIds {
  const int64_t* data;  // (N); null: the sample's place in the batch
  int64_t stride;
};

ATTRDROP_HD uint32_t sample_of(const SampleIds& ids, int64_t n) {
  return static_cast<uint32_t>(ids.data ? ids.data[n * ids.stride] : n);
}

// A number, or one for each channel, in the type of what it replaces.
struct Constant {
  const void* values;  // (C); null: `bits` in every channel
  int64_t stride;
  uint32_t bits;
};

// In channel c; T is that type, or an integer of its size.
template <class T>
ATTRDROP_HD T constant_at(const Constant& constant, int64_t c) {
  if (constant.values) return static_cast<const T*>(constant.values)[c * constant.stride];
  T value;
  memcpy(&value, &constant.bits, sizeof value);
  return value;
}

ATTRDROP_HD double uniform(uint32_t word) { return static_cast<double>(word) * 0x1p-32; }

// A number below n, from a word.
ATTRDROP_HD int32_t below(uint32_t word, int64_t n) {
  return static_cast<int32_t>(static_cast<uint64_t>(word) * static_cast<uint64_t>(n) >> 32);
}

// a + b * c rounded twice: nvcc would fuse it, and every backend must find the same.
ATTRDROP_HD double add_product(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, __dmul_rn(b, c));
#else
  return a + b * c;
#endif
}

// Larger for a larger score; NaN as -inf, -0 as +0.
ATTRDROP_HD uint32_t score_key(float score) {
  return static_cast<uint32_t>(ordered_key(score != score ? -INFINITY : score)) ^ 0x80000000u;
}

}  // namespace attrdrop
