// The k-th largest of many keys by one block of threads, a byte of the keys at a time.
#pragma once
#include "cuda/warp.cuh"

namespace attrdrop {

constexpr unsigned RANKING_THREADS = 256;  // at least, one for each bin

// The bin of 256 in which `rank` falls, counted from the last; rank becomes that in the bin. One warp.
__device__ __forceinline__ uint32_t bin_of_rank(const uint32_t* counts, uint32_t& rank, int lane) {
  uint32_t sum = 0;
  for (int i = 0; i < 8; ++i) sum += counts[255 - 8 * lane - i];
  uint32_t before = sum;  // becomes that of this lane and those below it
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    const uint32_t other = __shfl_sync(ALL_LANES, before, lane - step);
    if (lane >= step) before += other;
  }
  before -= sum;
  uint32_t bin = 0, left = rank - before;
  const uint32_t here = __ballot_sync(ALL_LANES, rank >= before && left < sum);
  for (int i = 0; i < 8; ++i) {
    bin = 255 - 8 * lane - i;
    if (left < counts[bin]) break;
    left -= counts[bin];
  }
  const int owner = __popc((here & (0u - here)) - 1);
  rank = __shfl_sync(ALL_LANES, left, owner);
  return __shfl_sync(ALL_LANES, bin, owner);
}

// Places of `count` items, with which keys are made distinct: the first of equal ones is the larger.
__device__ __forceinline__ int index_bits(uint32_t count) {
  return count > 0x1000000u ? 32 : count > 0x10000u ? 24 : count > 0x100u ? 16 : 8;
}
__device__ __forceinline__ uint64_t distinct_key(uint32_t key, uint32_t place, uint32_t count) {
  return static_cast<uint64_t>(key) << index_bits(count) | (count - 1 - place);
}

// The distinct key with `rank` larger ones among those of key_of(place), place < count: its bytes, from the first, each by
// counting.
template <class KeyOf>
__device__ __forceinline__ uint64_t ranked_key(KeyOf key_of, uint32_t count, uint32_t rank) {
  ATTRDROP_SHARED(uint32_t, counts, 256);
  ATTRDROP_SHARED(uint32_t, chosen, 2);
  uint64_t prefix = 0;
  for (int shift = 24 + index_bits(count); shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) counts[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t place = threadIdx.x; place < count; place += blockDim.x) {
      const uint64_t key = distinct_key(key_of(place), place, count);
      if (key >> shift >> 8 == prefix) atomicAdd(&counts[key >> shift & 255], 1u);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      const uint32_t bin = bin_of_rank(counts, rank, threadIdx.x);
      if (threadIdx.x == 0) chosen[0] = bin, chosen[1] = rank;
    }
    __syncthreads();
    prefix = prefix << 8 | chosen[0];
    rank = chosen[1];
  }
  return prefix;
}

}  // namespace attrdrop
