// Element types of the inputs, by their bits.
#pragma once
#include <cstdint>

#include "cuda/launch.h"
#include "halves.h"

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
  static float widen(uint16_t bits) { return widen_half(bits); }
  static uint16_t narrow(float x) { return x != x ? 0x7FFF : narrow_half(x); }
#endif
};

struct F32 {
  using Storage = float;
  __device__ __forceinline__ static float widen(float x) { return x; }
  __device__ __forceinline__ static float narrow(float x) { return x; }
};

}  // namespace attrdrop
