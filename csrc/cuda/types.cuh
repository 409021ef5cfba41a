// Element types of the inputs, by their bits.
#pragma once
#include <cstdint>

#include "cuda/launch.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace attrdrop {

// The bits of two numbers rounded to bfloat16, the first in the low half; NaN stays NaN.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#if defined(__CUDACC__)
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  const auto round = [](float x) {
    const uint32_t bits = __float_as_uint(x);
    return x != x ? 0x7FFFu : (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  };
  return round(low) | round(high) << 16;
#endif
}

struct Bf16 {
  using Storage = uint16_t;
  static constexpr bool IS_BF16 = true;
  __device__ __forceinline__ static float widen(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }
  __device__ __forceinline__ static uint16_t narrow(float x) { return static_cast<uint16_t>(pack_bf16(x, 0.0f)); }
};

struct F16 {
  using Storage = uint16_t;
  static constexpr bool IS_BF16 = false;
#if defined(__CUDACC__)
  __device__ __forceinline__ static float widen(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
  __device__ __forceinline__ static uint16_t narrow(float x) { return __half_as_ushort(__float2half_rn(x)); }
#else
  static float widen(uint16_t bits) {
    const float magnitude = (bits & 0x7C00u) == 0x7C00u
                                ? ((bits & 0x3FFu) ? NAN : INFINITY)
                                : std::ldexp(static_cast<float>((bits & 0x7C00u) ? 0x400u | (bits & 0x3FFu) : bits & 0x3FFu),
                                             ((bits & 0x7C00u) ? (bits >> 10 & 0x1F) : 1) - 25);
    return bits >> 15 ? -magnitude : magnitude;
  }
  static uint16_t narrow(float x) {
    const float size = std::fabs(x);
    const uint32_t sign = std::signbit(x) ? 0x8000u : 0u;
    if (x != x) return 0x7FFFu;
    if (size >= 65520.0f) return static_cast<uint16_t>(sign | 0x7C00u);
    const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
    const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, 10 - exponent)));  // 2048: the next exponent
    return static_cast<uint16_t>(sign + (static_cast<uint32_t>(exponent + 14) << 10) + steps);
  }
#endif
};

struct F32 {
  using Storage = float;
  __device__ __forceinline__ static float widen(float x) { return x; }
  __device__ __forceinline__ static float narrow(float x) { return x; }
};

}  // namespace attrdrop
