// The CUDA vocabulary for a host compiler, on top of the emulator.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator/emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

#define threadIdx (attrdrop::emulator::thread_index())
#define blockIdx (attrdrop::emulator::block_index())
#define blockDim (attrdrop::emulator::block_dim())
#define gridDim (attrdrop::emulator::grid_dim())

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }

namespace attrdrop::emulator {

template <class T>
struct Exchange {
  T value;
  int source;  // lane whose value this lane receives; for a vote, unused
  uint32_t mask;
};

template <class T>
void combine_shuffle(void* const* arguments) {
  T values[32];
  for (int i = 0; i < 32; ++i)
    if (arguments[i]) values[i] = static_cast<Exchange<T>*>(arguments[i])->value;
  for (int i = 0; i < 32; ++i)
    if (arguments[i]) {
      auto* mine = static_cast<Exchange<T>*>(arguments[i]);
      if (!arguments[mine->source & 31]) fail("a shuffle reads a lane that takes no part in it");
      mine->value = values[mine->source & 31];
    }
}

template <class T>
T shuffle(uint32_t mask, T value, int source, Site site) {
  Exchange<T> mine{value, source, 0};
  collective(mask, &mine, &combine_shuffle<T>, site);
  return mine.value;
}

inline void combine_ballot(void* const* arguments) {
  uint32_t votes = 0;
  for (int i = 0; i < 32; ++i)
    if (arguments[i] && static_cast<Exchange<uint32_t>*>(arguments[i])->value) votes |= 1u << i;
  for (int i = 0; i < 32; ++i)
    if (arguments[i]) static_cast<Exchange<uint32_t>*>(arguments[i])->value = votes;
}

inline void combine_sum(void* const* arguments) {
  uint32_t sum = 0;
  for (int i = 0; i < 32; ++i)
    if (arguments[i]) sum += static_cast<Exchange<uint32_t>*>(arguments[i])->value;
  for (int i = 0; i < 32; ++i)
    if (arguments[i]) static_cast<Exchange<uint32_t>*>(arguments[i])->value = sum;
}

inline void combine_max(void* const* arguments) {
  int32_t largest = INT32_MIN;
  for (int i = 0; i < 32; ++i)
    if (arguments[i] && static_cast<Exchange<int32_t>*>(arguments[i])->value > largest)
      largest = static_cast<Exchange<int32_t>*>(arguments[i])->value;
  for (int i = 0; i < 32; ++i)
    if (arguments[i]) static_cast<Exchange<int32_t>*>(arguments[i])->value = largest;
}

inline void combine_nothing(void* const*) {}

}  // namespace attrdrop::emulator

#define ATTRDROP_SITE attrdrop::emulator::Site site = attrdrop::emulator::Site::current()

inline void __syncthreads(ATTRDROP_SITE) { attrdrop::emulator::block_barrier(site); }

inline void __syncwarp(uint32_t mask = ~0u, ATTRDROP_SITE) {
  char unused;
  attrdrop::emulator::collective(mask, &unused, &attrdrop::emulator::combine_nothing, site);
}

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, ATTRDROP_SITE) {
  const int lane = attrdrop::emulator::lane();
  return attrdrop::emulator::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), site);
}

template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, ATTRDROP_SITE) {
  (void)width;
  return attrdrop::emulator::shuffle(mask, value, attrdrop::emulator::lane() ^ bits, site);
}

inline uint32_t __ballot_sync(uint32_t mask, bool vote, ATTRDROP_SITE) {
  attrdrop::emulator::Exchange<uint32_t> mine{vote, 0, mask};
  attrdrop::emulator::collective(mask, &mine, &attrdrop::emulator::combine_ballot, site);
  return mine.value;
}
inline bool __any_sync(uint32_t mask, bool vote, ATTRDROP_SITE) { return __ballot_sync(mask, vote, site) != 0; }
inline bool __all_sync(uint32_t mask, bool vote, ATTRDROP_SITE) { return __ballot_sync(mask, vote, site) == mask; }

inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t value, ATTRDROP_SITE) {
  attrdrop::emulator::Exchange<uint32_t> mine{value, 0, mask};
  attrdrop::emulator::collective(mask, &mine, &attrdrop::emulator::combine_sum, site);
  return mine.value;
}

inline int32_t __reduce_max_sync(uint32_t mask, int32_t value, ATTRDROP_SITE) {
  attrdrop::emulator::Exchange<int32_t> mine{value, 0, mask};
  attrdrop::emulator::collective(mask, &mine, &attrdrop::emulator::combine_max, site);
  return mine.value;
}

template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}

inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

#define ATTRDROP_DYNAMIC_SHARED(name) auto* const name = static_cast<unsigned char*>(attrdrop::emulator::dynamic_shared())
#define ATTRDROP_SHARED(type, name, count) \
  static const char name##_key = 0;        \
  type* const name = static_cast<type*>(attrdrop::emulator::static_shared(&name##_key, sizeof(type) * (count)))
