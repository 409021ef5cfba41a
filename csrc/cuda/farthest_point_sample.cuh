// farthest_point_sample on CUDA: one block of threads per cloud, which holds its points in registers.
#pragma once
#include <climits>

#include "cuda/points.cuh"
#include "cuda/warp.cuh"
#include "points_args.h"

namespace attrdrop {

struct SampleArgs {
  PointView points;  // (N, P, C)
  ValidView valid;
  StartView start;
  int32_t clouds, size;
  int64_t n;
  float* nearest;  // (N, P) scratch where a cloud is too large for the registers
  int64_t* out;    // (N, n)
};

constexpr int FARTHEST_THREADS = 512, FARTHEST_FEW = 4, FARTHEST_MANY = 16;  // points that a thread holds
constexpr int32_t FARTHEST_MOST_HELD = FARTHEST_THREADS * FARTHEST_MANY;

// All but the scratch memory and where the points go.
inline SampleArgs sample_args(const ArrayView& points, int64_t n, const OptionalView& valid,
                              const OptionalView& start) {
  check_cloud(points, 3);
  return {point_view(points, "points"), valid_view(valid, points), start_view(start, points.size[0]),
          static_cast<int32_t>(points.size[0]), static_cast<int32_t>(points.size[1]), n, nullptr, nullptr};
}

// The point with the highest score, of equals the first.
struct Ranked {
  int32_t score, index;
};

__device__ __forceinline__ Ranked first_of_warp(Ranked mine) {
  const int32_t score = __reduce_max_sync(ALL_LANES, mine.score);
  return {score, -__reduce_max_sync(ALL_LANES, mine.score == score ? -mine.index : -INT_MAX)};
}

// The same of a block, for all its threads. `turn` alternates between calls: one barrier is enough then.
__device__ __forceinline__ int32_t first_of_block(Ranked mine, int turn) {
  ATTRDROP_SHARED(int32_t, scores, 2 * 32);
  ATTRDROP_SHARED(int32_t, indices, 2 * 32);
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const Ranked best = first_of_warp(mine);
  if (lane == 0) scores[32 * turn + threadIdx.x / 32] = best.score, indices[32 * turn + threadIdx.x / 32] = best.index;
  __syncthreads();
  const Ranked theirs = lane < warps ? Ranked{scores[32 * turn + lane], indices[32 * turn + lane]} : Ranked{INT_MIN, INT_MAX};
  return first_of_warp(theirs).index;
}

// Squared distances are not negative: their bits rank as they do. That of padding is -1.
struct Farthest {
  Ranked best = {INT_MIN, INT_MAX};
  __device__ __forceinline__ void see(float distance, int32_t index) {
    const auto score = static_cast<int32_t>(__float_as_uint(distance));
    if (score > best.score) best = {score, index};
  }
};

// Points threadIdx.x, threadIdx.x + blockDim.x, ... of a cloud and their distances to the points chosen, in registers.
template <int HELD>
struct HeldPoints {
  Point point[HELD];
  float nearest[HELD];

  __device__ __forceinline__ Ranked load(const SampleArgs& a, int32_t cloud) {
    Ranked first = {0, 0};
#pragma unroll
    for (int j = HELD - 1; j >= 0; --j) {
      const int32_t i = threadIdx.x + j * blockDim.x;
      point[j] = i < a.size ? load_point(a.points, cloud, i) : Point{};
      const bool is_valid = i < a.size && is_usable(a.valid, cloud, i, point[j]);
      nearest[j] = is_valid ? INFINITY : -1.0f;
      if (is_valid) first = {1, i};
    }
    return first;
  }
  __device__ __forceinline__ Ranked take(const SampleArgs&, int32_t, const Point& chosen) {
    Farthest farthest;
#pragma unroll
    for (int j = 0; j < HELD; ++j) {
      const float distance = squared_distance(point[j], chosen);
      nearest[j] = distance < nearest[j] ? distance : nearest[j];
      farthest.see(nearest[j], threadIdx.x + j * blockDim.x);
    }
    return farthest.best;
  }
};

// Any number of points, where they stand in memory.
template <>
struct HeldPoints<0> {
  __device__ __forceinline__ Ranked load(const SampleArgs& a, int32_t cloud) {
    Ranked first = {0, 0};
    for (int32_t i = threadIdx.x; i < a.size; i += blockDim.x) {
      const bool is_valid = is_usable(a.valid, cloud, i, load_point(a.points, cloud, i));
      a.nearest[int64_t{cloud} * a.size + i] = is_valid ? INFINITY : -1.0f;
      if (is_valid && first.score == 0) first = {1, i};
    }
    return first;
  }
  __device__ __forceinline__ Ranked take(const SampleArgs& a, int32_t cloud, const Point& chosen) {
    Farthest farthest;
    for (int32_t i = threadIdx.x; i < a.size; i += blockDim.x) {
      float& nearest = a.nearest[int64_t{cloud} * a.size + i];
      const float before = nearest, distance = squared_distance(load_point(a.points, cloud, i), chosen);
      if (distance < before) nearest = distance;
      farthest.see(distance < before ? distance : before, i);
    }
    return farthest.best;
  }
};

// Grid: one block of threads per cloud.
template <int HELD>
__global__ void __launch_bounds__(FARTHEST_THREADS, 1) farthest_point_sample_kernel(SampleArgs a) {
  const int32_t cloud = blockIdx.x;
  int64_t* out = a.out + cloud * a.n;
  HeldPoints<HELD> points;
  int32_t chosen = first_of_block(points.load(a, cloud), 1);
  if (a.start.data) {
    const int32_t start = moved_into_range(a.start.data[cloud * a.start.cloud], a.size);
    if (is_usable(a.valid, cloud, start, load_point(a.points, cloud, start))) chosen = start;
  }
  for (int64_t step = 0; step < a.n; ++step) {
    if (threadIdx.x == 0) out[step] = chosen;
    if (step + 1 == a.n) break;
    const Point point = load_point(a.points, cloud, chosen);  // the cloud is in the nearest cache
    chosen = first_of_block(points.take(a, cloud, point), step % 2);
  }
}

inline void launch_farthest_point_sample(const SampleArgs& a, Stream stream) {
  if (a.clouds == 0 || a.n == 0) return;
  const auto clouds = static_cast<unsigned>(a.clouds);
  if (a.size <= FARTHEST_THREADS * FARTHEST_FEW) {
    const unsigned warps = static_cast<unsigned>(a.size + 32 * FARTHEST_FEW - 1) / (32 * FARTHEST_FEW);
    ATTRDROP_LAUNCH(farthest_point_sample_kernel<FARTHEST_FEW>, clouds, 32 * warps, 0, stream, a);
  } else if (a.size <= FARTHEST_MOST_HELD) {
    ATTRDROP_LAUNCH(farthest_point_sample_kernel<FARTHEST_MANY>, clouds, FARTHEST_THREADS, 0, stream, a);
  } else {
    ATTRDROP_LAUNCH(farthest_point_sample_kernel<0>, clouds, FARTHEST_THREADS, 0, stream, a);
  }
}

}  // namespace attrdrop
