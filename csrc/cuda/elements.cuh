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

// The bits of a number, rounded to the type.
template <Element ELEMENT>
__device__ __forceinline__ Bits<ELEMENT> narrow(float x) {
  if constexpr (ELEMENT == Element::f32) return __float_as_uint(x);
  else if constexpr (ELEMENT == Element::bf16) return Bf16::narrow(x);
  else return F16::narrow(x);
}

}  // namespace attrdrop
