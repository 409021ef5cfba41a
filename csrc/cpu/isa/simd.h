// The vector type of the instruction set this file is compiled for. Every operation rounds as IEEE float32 does in
// every variant, fused multiply-add included, so all variants give the same bits.
#pragma once
#include <cstdint>
#include <cstring>

#include "halves.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace attrdrop {
namespace ATTRDROP_ISA {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef int32_t vint __attribute__((vector_size(4 * LANES)));
typedef uint32_t vuint __attribute__((vector_size(4 * LANES)));

template <class V, class T>
static inline V load(const T* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T>
static inline void store(T* p, V v) {
  memcpy(p, &v, sizeof v);
}
static inline vfloat broadcast(float x) { return x - vfloat{}; }
static inline vuint broadcast(uint32_t x) { return x + vuint{}; }

#if !defined(__AVX2__) && !defined(__FMA__) && !defined(__ARM_FEATURE_FMA)
// Exact float32 fused multiply-add without the instruction: the product is exact in double, the sum is rounded to odd,
// and then rounding once more to float is right (Boldo and Melquiond, 2008).
static inline float fused_scalar(float a, float b, float c) {
  const double product = static_cast<double>(a) * b, addend = c;
  double sum = product + addend;
  const double part = sum - product;
  const double error = (product - (sum - part)) + (addend - part);
  int64_t bits;
  memcpy(&bits, &sum, sizeof bits);
  if ((error > 0 || error < 0) && !(bits & 1)) {
    bits += ((error > 0) == (sum > 0)) ? 1 : -1;
    memcpy(&sum, &bits, sizeof bits);
  }
  return static_cast<float>(sum);
}
#else
static inline float fused_scalar(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#endif

// a * b + c, rounded once.
static inline vfloat fmadd(vfloat a, vfloat b, vfloat c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  for (int i = 0; i < LANES; ++i) c[i] = fused_scalar(a[i], b[i], c[i]);
  return c;
#endif
}

// High and low halves of 32 x 32 bit products.
static inline void multiply_wide(vuint a, uint32_t b, vuint& high, vuint& low) {
#if defined(__AVX512F__)
  const __m512i va = reinterpret_cast<__m512i>(a), vb = _mm512_set1_epi32(b);
  const __m512i even = _mm512_mul_epu32(va, vb), odd = _mm512_mul_epu32(_mm512_srli_epi64(va, 32), vb);
  high = reinterpret_cast<vuint>(_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd));
  low = reinterpret_cast<vuint>(_mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32)));
#elif defined(__AVX2__)
  const __m256i va = reinterpret_cast<__m256i>(a), vb = _mm256_set1_epi32(b);
  const __m256i even = _mm256_mul_epu32(va, vb), odd = _mm256_mul_epu32(_mm256_srli_epi64(va, 32), vb);
  high = reinterpret_cast<vuint>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA));
  low = reinterpret_cast<vuint>(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA));
#else
  for (int i = 0; i < LANES; ++i) {
    const uint64_t product = static_cast<uint64_t>(a[i]) * b;
    high[i] = static_cast<uint32_t>(product >> 32);
    low[i] = static_cast<uint32_t>(product);
  }
#endif
}

// Bit j: key[j] < threshold, for 32 keys.
static inline uint32_t less_word(const int32_t* key, int32_t threshold) {
#if defined(__AVX512F__)
  const __m512i t = _mm512_set1_epi32(threshold);
  const uint32_t low = _mm512_cmplt_epi32_mask(_mm512_loadu_si512(key), t);
  const uint32_t high = _mm512_cmplt_epi32_mask(_mm512_loadu_si512(key + 16), t);
  return low | high << 16;
#elif defined(__AVX2__)
  const __m256i t = _mm256_set1_epi32(threshold);
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const __m256i k = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(key + 8 * i));
    word |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(t, k)))) << (8 * i);
  }
  return word;
#else
  uint32_t word = 0;
  for (int j = 0; j < 32; ++j) word |= static_cast<uint32_t>(key[j] < threshold) << j;
  return word;
#endif
}

// Bit i: a[i] <= b[i]; 0 where one is NaN.
static inline uint32_t at_most_bits(vfloat a, vfloat b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < LANES; ++i) bits |= static_cast<uint32_t>(a[i] <= b[i]) << i;
  return bits;
#endif
}

// How many of n keys (a multiple of 32) lie below the threshold.
static inline int32_t count_less(const int16_t* key, int64_t n, int16_t threshold) {
#if defined(__AVX512F__)
  const __m512i t = _mm512_set1_epi16(threshold);
  const auto less = [=](int64_t j) { return _mm512_cmplt_epi16_mask(_mm512_loadu_si512(key + j), t); };
  int64_t count = 0, j = 0;
  for (; j + 128 <= n; j += 128)
    count += _mm_popcnt_u64(_mm512_kunpackd(less(j), less(j + 32))) +
             _mm_popcnt_u64(_mm512_kunpackd(less(j + 64), less(j + 96)));
  for (; j < n; j += 32) count += _mm_popcnt_u32(less(j));
  return static_cast<int32_t>(count);
#elif defined(__AVX2__)
  const __m256i t = _mm256_set1_epi16(threshold), one = _mm256_set1_epi16(1);
  int32_t count = 0;
  for (int64_t begin = 0; begin < n; begin += 1 << 18) {  // 16 lanes of at most 2^14 each
    const int64_t end = begin + (1 << 18) < n ? begin + (1 << 18) : n;
    __m256i sum = _mm256_setzero_si256();
    for (int64_t j = begin; j < end; j += 16)
      sum = _mm256_sub_epi16(sum, _mm256_cmpgt_epi16(t, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(key + j))));
    int32_t lanes[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), _mm256_madd_epi16(sum, one));
    for (int i = 0; i < 8; ++i) count += lanes[i];
  }
  return count;
#else
  int32_t count = 0;
  for (int64_t j = 0; j < n; ++j) count += key[j] < threshold;
  return count;
#endif
}

static inline int32_t count_less(const int32_t* key, int64_t n, int32_t threshold) {  // n a multiple of 32
  int32_t count = 0;
  for (int64_t j = 0; j < n; j += 32) count += __builtin_popcount(less_word(key + j, threshold));
  return count;
}

static inline float horizontal_sum(vfloat v) {
  float total = 0;
  for (int i = 0; i < LANES; ++i) total += v[i];
  return total;
}

#if defined(__AVX2__)
// LANES halves to and from float32, by the processor.
static inline vfloat widen_halves(const uint16_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(load<__m256i>(p));
#else
  return _mm256_cvtph_ps(load<__m128i>(p));
#endif
}
static inline void narrow_halves(vfloat v, uint16_t* p) {
#if defined(__AVX512F__)
  store(p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  store(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#endif
}
#endif

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
static inline float as_float(float x) { return x; }
static inline float as_float(BFloat16 x) { return widen(x.bits); }
static inline float as_float(Float16 x) { return widen_half(x.bits); }
static inline void put(float* at, float value) { *at = value; }
static inline void put(BFloat16* at, float value) { at->bits = narrow(value); }
static inline void put(Float16* at, float value) { at->bits = narrow_half(value); }

// Bits [first, first + LANES) of a word choose between a (set) and b.
static inline vfloat choose(uint32_t word, int first, vfloat a, vfloat b) {
#if defined(__AVX512F__)
  return _mm512_mask_blend_ps(static_cast<__mmask16>(word >> first), b, a);
#elif defined(__AVX2__)
  const __m256i up = _mm256_sub_epi32(_mm256_set1_epi32(31 - first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_sllv_epi32(_mm256_set1_epi32(static_cast<int>(word)), up)));
#else
  vuint bit;
  for (int i = 0; i < LANES; ++i) bit[i] = 1u << (first + i);
  return (broadcast(word) & bit) == bit ? a : b;
#endif
}

// The larger of each pair; b where one is NaN.
static inline vfloat larger(vfloat a, vfloat b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// exp(x) to about 1 ulp for x below 88: x = n ln2 + r, |r| <= ln2 / 2, degree-6 polynomial. Below -87.3 gives 0, NaN stays
// NaN: it passes through the product with 2^n.
static inline vfloat exponential(vfloat x) {
  const vfloat least = broadcast(-87.3f);
  const vfloat clamped = larger(least, x);
  const vfloat shifter = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const vfloat shifted = fmadd(clamped, broadcast(1.44269504f), shifter);
  const vfloat n = shifted - shifter;
  vfloat r = fmadd(n, broadcast(-0.693359375f), clamped);
  r = fmadd(n, broadcast(2.12194440e-4f), r);
  vfloat p = broadcast(1.3888889e-3f);
  p = fmadd(p, r, broadcast(8.3333333e-3f));
  p = fmadd(p, r, broadcast(4.1666668e-2f));
  p = fmadd(p, r, broadcast(1.6666667e-1f));
  p = fmadd(p, r, broadcast(0.5f));
  p = fmadd(p, r, broadcast(1.0f));
  p = fmadd(p, r, broadcast(1.0f));
  const vint power = (reinterpret_cast<vint>(shifted) << 23) + (127 << 23);  // the shifter's own bits are shifted out
  const vfloat result = p * reinterpret_cast<vfloat>(power);
  return x < least ? vfloat{} : result;
}

// 2^x to 1.4 ulp for x below 128: 2^n 2^r, |r| <= 1/2, with the polynomial of degree 5 that errs least (9.2e-8) among those with
// 2^0 = 1. Below -126.5 gives 0, as 2^n is 0 there; NaN stays NaN.
static inline vfloat exponential2(vfloat x) {
  const vfloat shifter = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const vfloat clamped = larger(broadcast(-127.0f), x);
  const vfloat shifted = clamped + shifter;
  const vfloat r = clamped - (shifted - shifter);
  vfloat p = broadcast(1.32647276e-3f);
  p = fmadd(p, r, broadcast(9.67151264e-3f));
  p = fmadd(p, r, broadcast(5.55073374e-2f));
  p = fmadd(p, r, broadcast(2.40222421e-1f));
  p = fmadd(p, r, broadcast(6.93146978e-1f));
  p = fmadd(p, r, broadcast(1.0f));
  const vint power = (reinterpret_cast<vint>(shifted) << 23) + (127 << 23);  // the shifter's own bits are shifted out
  return p * reinterpret_cast<vfloat>(power);
}

}  // namespace ATTRDROP_ISA
}  // namespace attrdrop
