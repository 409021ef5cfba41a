// Work that the lanes of a warp share.
#pragma once
#include <cstdint>

#include "cuda/launch.h"

namespace attrdrop {

constexpr uint32_t ALL_LANES = 0xFFFFFFFFu;

// The same number, of which the compiler knows nothing: what follows from it is not kept in registers over a loop.
__device__ __forceinline__ int opaque(int value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

__device__ __forceinline__ uint32_t rotate_left(uint32_t bits, int by) {
#if defined(__CUDA_ARCH__)
  return __funnelshift_l(bits, bits, by);
#else
  return bits << by | bits >> (32 - by);
#endif
}

// 32 x 32 bit transpose, one row per lane: bit j of lane i becomes bit i of lane j.
__device__ __forceinline__ uint32_t warp_transpose(uint32_t row, int lane) {
  uint32_t low = 0x0000FFFFu;  // columns whose index has the bit of this step clear
#pragma unroll
  for (int step = 16; step; step >>= 1) {
    const uint32_t other = __shfl_xor_sync(ALL_LANES, row, step);
    const bool is_upper = lane & step;
    const uint32_t mine = is_upper ? ~low : low;  // what stays; the rest comes from the other lane, turned to its place
    row = (row & mine) | (rotate_left(other, is_upper ? 32 - step : step) & ~mine);
    low ^= low << (step >> 1);
  }
  return row;
}

}  // namespace attrdrop
