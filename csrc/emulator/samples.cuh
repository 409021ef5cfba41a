// Small kernels with a mistake that can be switched on, for the tests of the emulator.
#pragma once
#include "cuda/async_copy.cuh"
#include "cuda/warp.cuh"

namespace attrdrop {

constexpr int SAMPLE_THREADS = 128;

enum class Mistake : int {
  none,
  missing_barrier,
  missing_warp_barrier,
  divergent_barrier,
  barrier_after_exit,
  missing_lane,
  write_past_dynamic_shared,
  write_past_static_shared,
  missing_wait,
  copy_never_waited_for,
  misaligned_copy,
  unwritten_shared,
};

// out[i] = sum of in[0 .. SAMPLE_THREADS) for every thread, the long way round: cp.async, shared memory, shuffles.
__global__ void sample_kernel(const int* in, int* out, Mistake mistake) {
  ATTRDROP_DYNAMIC_SHARED(dynamic);
  int* values = reinterpret_cast<int*>(dynamic);  // (SAMPLE_THREADS)
  ATTRDROP_SHARED(int, sums, SAMPLE_THREADS / 32);
  ATTRDROP_SHARED(int, mirrored, SAMPLE_THREADS);
  const int i = threadIdx.x, lane = i % 32, warp = i / 32;

  if (i < SAMPLE_THREADS / 4) {
    const int* source = in + 4 * i + (mistake == Mistake::misaligned_copy);
    if (mistake != Mistake::unwritten_shared) async_copy(shared_address(values + 4 * i), source, 16);
    async_commit();
    if (mistake != Mistake::missing_wait && mistake != Mistake::copy_never_waited_for) async_wait<0>();
  }
  if (mistake == Mistake::barrier_after_exit && i >= 64) return;
  if (mistake == Mistake::divergent_barrier) {
    if (i < 64) __syncthreads();
  } else {
    __syncthreads();
  }
  if (mistake == Mistake::missing_wait) async_wait<0>();

  mirrored[32 * warp + 31 - lane] = values[i];  // within the warp
  if (mistake != Mistake::missing_warp_barrier) __syncwarp();
  int sum = mirrored[i];
  if (mistake == Mistake::missing_lane && lane == 7) return;
  for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, step);
  if (lane == 0) sums[warp] = sum;
  if (mistake == Mistake::write_past_dynamic_shared && i == 0) values[SAMPLE_THREADS] = 1;
  if (mistake == Mistake::write_past_static_shared && i == 0) sums[SAMPLE_THREADS / 32] = 1;
  if (mistake != Mistake::missing_barrier) __syncthreads();
  int total = 0;
  for (int w = 0; w < SAMPLE_THREADS / 32; ++w) total += sums[w];
  out[i] = total;
}

}  // namespace attrdrop
