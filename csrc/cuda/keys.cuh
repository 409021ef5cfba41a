// The keys of 32 columns (one word) in registers: how they are stored, counted and compared.
//
// Stored words are cut into units of 16 bytes whose order is turned by the index of the word, so that neighbouring lanes,
// which read neighbouring words, hit different banks of shared memory.
#pragma once
#include "cuda/mma.cuh"
#include "select.h"

namespace attrdrop {

enum class Compare { less, less_equal, greater_equal };

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define ATTRDROP_SET_BF16X2(compare, mask, a, b) \
  asm("set." compare ".u32.bf16x2 %0, %1, %2;" : "=r"(mask) : "r"(a), "r"(b))
#elif defined(__CUDA_ARCH__)
// One block, so that the halves of keys are not kept in registers of their own from one pass to the next.
#define ATTRDROP_SET_BF16X2(compare, mask, a, b)                                                  \
  asm("{.reg .b32 al, ah, bl, bh;\n"                                                              \
      "shl.b32 al, %1, 16; and.b32 ah, %1, 0xFFFF0000; shl.b32 bl, %2, 16; and.b32 bh, %2, 0xFFFF0000;\n" \
      "set." compare ".u32.f32 al, al, bl; set." compare ".u32.f32 ah, ah, bh; prmt.b32 %0, al, ah, 0x5410;}"  \
      : "=r"(mask)                                                                                \
      : "r"(a), "r"(b))
#endif

// All ones in each half of the result where the bfloat16 there compares so. False for NaN; -0 equals +0.
template <Compare COMPARE>
__device__ __forceinline__ uint32_t compare_bf16(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  uint32_t mask;
  if constexpr (COMPARE == Compare::less) ATTRDROP_SET_BF16X2("lt", mask, a, b);
  if constexpr (COMPARE == Compare::less_equal) ATTRDROP_SET_BF16X2("le", mask, a, b);
  if constexpr (COMPARE == Compare::greater_equal) ATTRDROP_SET_BF16X2("ge", mask, a, b);
  return mask;
#else
  const auto holds = [](uint32_t x, uint32_t y) {
    const float u = __uint_as_float(x), v = __uint_as_float(y);
    return COMPARE == Compare::less ? u < v : COMPARE == Compare::less_equal ? u <= v : u >= v;
  };
  return (holds(a << 16, b << 16) ? 0xFFFFu : 0u) | (holds(a & 0xFFFF0000u, b & 0xFFFF0000u) ? 0xFFFF0000u : 0u);
#endif
}

// 1.0 in each half of the result where the bfloat16 there compares so.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
template <Compare COMPARE>
__device__ __forceinline__ uint32_t compare_bf16_to_one(uint32_t a, uint32_t b) {
  uint32_t one;
  if constexpr (COMPARE == Compare::less) asm("set.lt.bf16x2.bf16x2 %0, %1, %2;" : "=r"(one) : "r"(a), "r"(b));
  else asm("set.le.bf16x2.bf16x2 %0, %1, %2;" : "=r"(one) : "r"(a), "r"(b));
  return one;
}
#endif

// bfloat16 keys: register j holds column j in its low half and column j + 16 in its high half.
struct Bf16Keys {
  static constexpr int MOST_WORDS = 4;  // of a row in one lane
  static constexpr int REGISTERS = 16, WORD_BYTES = 64, UNITS = 4;
  using Register = uint32_t;
  using Pivot = uint32_t;  // the same number in both halves

  __device__ __forceinline__ static int unit(int word, int unit) { return unit ^ (word >> 1 & 3); }

  __device__ __forceinline__ static void load(Register (&r)[REGISTERS], const unsigned char* row, int word) {
#pragma unroll
    for (int i = 0; i < UNITS; ++i) {
      const uint4 four = *reinterpret_cast<const uint4*>(row + word * WORD_BYTES + 16 * unit(word, i));
      r[4 * i] = four.x, r[4 * i + 1] = four.y, r[4 * i + 2] = four.z, r[4 * i + 3] = four.w;
    }
  }

  // Columns c, c + 1, c + 16, c + 17 (c < 16 and even) of one row.
  __device__ __forceinline__ static void store(unsigned char* row, int word, int c, const float (&v)[4]) {
    *reinterpret_cast<uint2*>(row + word * WORD_BYTES + 16 * unit(word, c / 4) + c % 4 * 4) =
        make_uint2(pack_bf16(v[0], v[2]), pack_bf16(v[1], v[3]));
  }

  // Columns that are not valid become NaN.
  __device__ __forceinline__ static void mask(Register (&r)[REGISTERS], uint32_t valid) {
    if (valid == 0xFFFFFFFFu) return;
#pragma unroll
    for (int j = 0; j < REGISTERS; ++j) r[j] |= (~valid >> j & 0x00010001u) * 0xFFFFu;
  }

  // How many keys of the team's row compare so.
  template <Compare COMPARE, int WORDS, class Team>
  __device__ __forceinline__ static float count(const Register (&r)[WORDS][REGISTERS], Pivot pivot, Team& team) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    // A product with ones adds up four lanes: 4 g to 4 g + 3 hold rows g and g + 8 of its left operand.
    float sums[2][4] = {};
#pragma unroll
    for (int i = 0; i < WORDS * REGISTERS; i += 4) {
      uint32_t ones[4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
        ones[k] = compare_bf16_to_one<COMPARE>(r[i / REGISTERS][i % REGISTERS + k], pivot);
      mma_m16n8k16<Bf16>(sums[i / 4 % 2], ones, {0x3F803F80u, 0x3F803F80u});
    }
    return team.sum_of_quads(sums[0][0] + sums[0][2] + (sums[1][0] + sums[1][2]));
#else
    uint32_t sum = 0;
#pragma unroll
    for (int u = 0; u < WORDS; ++u)
#pragma unroll
      for (int j = 0; j < REGISTERS; ++j) sum -= compare_bf16<COMPARE>(r[u][j], pivot);
    const int32_t mine = (2 * sum + (sum >> 16)) & 0xFFFFu;  // a mask is -1 in its low and -65536 in its high half
    return static_cast<float>(team.sum(mine));
#endif
  }

  // About the number in the high half.
  __device__ __forceinline__ static float number(Register r) { return __uint_as_float(r); }

  template <Compare COMPARE>
  __device__ __forceinline__ static uint32_t word(const Register (&r)[REGISTERS], Pivot pivot) {
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < REGISTERS; ++j) bits |= compare_bf16<COMPARE>(r[j], pivot) & (0x00010001u << j);
    return bits;
  }

  // Numbers are cut, not rounded, to bfloat16.
  __device__ __forceinline__ static int32_t ordered(float value) { return ordered_key(value) >> 16; }
  __device__ __forceinline__ static int32_t nearest(float value) {  // for numbers only
    const int32_t upper = static_cast<int32_t>(__float_as_uint(value)) >> 16;
    return upper ^ (upper >> 31 & 0x7FFF);
  }
  __device__ __forceinline__ static uint32_t bits(int32_t ordered) { return (ordered ^ (ordered >> 31 & 0x7FFF)) & 0xFFFF; }
  __device__ __forceinline__ static Pivot pivot(int32_t ordered) { return bits(ordered) * 0x00010001u; }
  __device__ __forceinline__ static float value(int32_t ordered) { return __uint_as_float(bits(ordered) << 16); }
};

// float32 keys in the order of their columns.
struct F32Keys {
  static constexpr int MOST_WORDS = 2;
  static constexpr int REGISTERS = 32, WORD_BYTES = 128, UNITS = 8;
  using Register = float;
  using Pivot = float;

  __device__ __forceinline__ static int unit(int word, int unit) { return unit ^ (word & 7); }

  __device__ __forceinline__ static void load(Register (&r)[REGISTERS], const unsigned char* row, int word) {
#pragma unroll
    for (int i = 0; i < UNITS; ++i) {
      const float4 four = *reinterpret_cast<const float4*>(row + word * WORD_BYTES + 16 * unit(word, i));
      r[4 * i] = four.x, r[4 * i + 1] = four.y, r[4 * i + 2] = four.z, r[4 * i + 3] = four.w;
    }
  }

  __device__ __forceinline__ static void store(unsigned char* row, int word, int c, const float (&v)[4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<uint2*>(row + word * WORD_BYTES + 16 * unit(word, c / 4 + 4 * half) + c % 4 * 4) =
          make_uint2(__float_as_uint(v[2 * half]), __float_as_uint(v[2 * half + 1]));
  }

  __device__ __forceinline__ static void mask(Register (&r)[REGISTERS], uint32_t valid) {
    if (valid == 0xFFFFFFFFu) return;
#pragma unroll
    for (int j = 0; j < REGISTERS; ++j)
      if (!(valid >> j & 1u)) r[j] = __uint_as_float(0x7FFFFFFFu);
  }

  template <Compare COMPARE>
  __device__ __forceinline__ static bool holds(float a, float b) {
    return COMPARE == Compare::less ? a < b : COMPARE == Compare::less_equal ? a <= b : a >= b;
  }

  template <Compare COMPARE, int WORDS, class Team>
  __device__ __forceinline__ static float count(const Register (&r)[WORDS][REGISTERS], Pivot pivot, Team& team) {
    int32_t sum = 0;
#pragma unroll
    for (int u = 0; u < WORDS; ++u)
#pragma unroll
      for (int j = 0; j < REGISTERS; ++j) sum += holds<COMPARE>(r[u][j], pivot);
    return static_cast<float>(team.sum(sum));
  }

  __device__ __forceinline__ static float number(Register r) { return r; }

  template <Compare COMPARE>
  __device__ __forceinline__ static uint32_t word(const Register (&r)[REGISTERS], Pivot pivot) {
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < REGISTERS; ++j) bits |= holds<COMPARE>(r[j], pivot) ? 1u << j : 0u;
    return bits;
  }

  __device__ __forceinline__ static int32_t ordered(float value) { return ordered_key(value); }
  __device__ __forceinline__ static int32_t nearest(float value) {
    const int32_t bits = static_cast<int32_t>(__float_as_uint(value));
    return bits ^ (bits >> 31 & 0x7FFFFFFF);
  }
  __device__ __forceinline__ static float value(int32_t ordered) {
    return ordered_value(ordered);
  }
  __device__ __forceinline__ static Pivot pivot(int32_t ordered) { return value(ordered); }
};

}  // namespace attrdrop
