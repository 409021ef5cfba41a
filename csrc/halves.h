// float32 to and from bfloat16 and float16, by their bits; to nearest, ties to even.
#pragma once
#include <cstdint>
#include <cstring>

#include "philox.h"

namespace attrdrop {

ATTRDROP_HD float widen(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

ATTRDROP_HD uint16_t narrow(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

// Without a branch, so that loops over it become vectors; as is narrow_half.
ATTRDROP_HD float widen_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7FFFu;
  const float subnormal = static_cast<float>(static_cast<int32_t>(rest)) * 0x1p-24f;  // exact in float32
  uint32_t subnormal_bits;
  memcpy(&subnormal_bits, &subnormal, sizeof subnormal_bits);
  const uint32_t normal = (rest << 13) + ((rest >= 0x7C00u ? 224u : 112u) << 23);  // 224: infinity and NaN
  const uint32_t bits = sign | (rest >= 0x400u ? normal : subnormal_bits);
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

ATTRDROP_HD uint16_t narrow_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits & 0x80000000u, size = bits ^ sign;
  const uint32_t normal = (size - (112u << 23) + 0xFFFu + ((size >> 13) & 1u)) >> 13;
  float magnitude;
  memcpy(&magnitude, &size, sizeof magnitude);
  const float shifted = magnitude + 0.5f;  // a unit in the last place of 0.5 is the smallest half
  uint32_t subnormal;
  memcpy(&subnormal, &shifted, sizeof subnormal);
  uint32_t half = size < 0x38800000u ? subnormal - 0x3F000000u : normal;
  half = size >= 0x47800000u ? 0x7C00u : half;  // 2^16 and above
  half = size > 0x7F800000u ? 0x7E00u : half;
  return static_cast<uint16_t>(sign >> 16 | half);
}

}  // namespace attrdrop
