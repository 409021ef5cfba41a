// Elements of the occluding kernels by their bits.
#pragma once
#include "cuda/types.cuh"
#include "occlusion.h"

namespace attrdrop {

template <Element ELEMENT>
struct ElementBits {
  using Type = uint16_t;
};
template <>
struct ElementBits<Element::u8> {
  using Type = uint8_t;
};
template <>
struct ElementBits<Element::f32> {
  using Type = uint32_t;
};
template <Element ELEMENT>
using Bits = typename ElementBits<ELEMENT>::Type;

template <Element ELEMENT>
__device__ __forceinline__ float widen(uint32_t bits) {
  if constexpr (ELEMENT == Element::f32) return __uint_as_float(bits);
  else if constexpr (ELEMENT == Element::bf16) return Bf16::widen(static_cast<uint16_t>(bits));
  else return F16::widen(static_cast<uint16_t>(bits));
}

// The bits of a finite number below 65504, rounded to the type.
template <Element ELEMENT>
__device__ __forceinline__ Bits<ELEMENT> narrow(float x) {
  if constexpr (ELEMENT == Element::f32) {
    return __float_as_uint(x);
  } else if constexpr (ELEMENT == Element::bf16) {
    return static_cast<uint16_t>(pack_bf16(x, 0.0f));
  } else {
#if defined(__CUDACC__)
    return __half_as_ushort(__float2half_rn(x));
#else
    const float size = std::fabs(x);
    const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
    const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, 10 - exponent)));  // 2048: the next exponent
    return static_cast<uint16_t>((x < 0 ? 0x8000u : 0u) + (static_cast<uint32_t>(exponent + 14) << 10) + steps);
#endif
  }
}

}  // namespace attrdrop
