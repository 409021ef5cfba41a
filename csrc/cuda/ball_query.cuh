// ball_query on CUDA: a warp for each centre reads the points in order, until every scale has its own.
#pragma once
#include <algorithm>
#include <numeric>

#include "cuda/points.cuh"
#include "cuda/warp.cuh"
#include "points_args.h"

namespace attrdrop {

struct QueryArgs {
  PointView points, centres;  // (N, P, C), (N, S, C)
  ValidView valid;
  int64_t clouds, centres_each;
  int32_t size, scales, columns;  // columns: sum of k
  float radius2[MAX_SCALES];
  int32_t k[MAX_SCALES];
  int64_t* out;  // (N, S, columns), one scale after the other
};

constexpr int QUERY_THREADS = 256;

// All but where the index goes.
inline QueryArgs query_args(const ArrayView& points, const ArrayView& centres, const std::vector<double>& radius,
                            const std::vector<int64_t>& k, const OptionalView& valid) {
  check_cloud(points, 3);
  check_centres(centres, points);
  check_scales(radius, k);
  QueryArgs a{};
  a.points = point_view(points, "points"), a.centres = point_view(centres, "centres");
  a.valid = valid_view(valid, points);
  a.clouds = points.size[0], a.centres_each = centres.size[1], a.size = static_cast<int32_t>(points.size[1]);
  a.scales = static_cast<int32_t>(k.size());
  a.columns = static_cast<int32_t>(std::accumulate(k.begin(), k.end(), int64_t{0}));
  const std::vector<float> radius2 = squared_radii(radius);
  std::copy(radius2.begin(), radius2.end(), a.radius2);
  std::copy(k.begin(), k.end(), a.k);
  return a;
}

// The nearest point, of equals the first; 0 where there is none. For a warp.
__device__ __forceinline__ int32_t nearest_point(const QueryArgs& a, int64_t cloud, const Point& centre, int lane) {
  unsigned long long key = ~0ull;
  for (int32_t i = lane; i < a.size; i += 32) {
    const Point point = load_point(a.points, cloud, i);
    const float distance = squared_distance(point, centre);
    const unsigned long long other = static_cast<unsigned long long>(__float_as_uint(distance)) << 32 | static_cast<uint32_t>(i);
    if (is_usable(a.valid, cloud, i, point) && distance == distance && other < key) key = other;
  }
#pragma unroll
  for (int step = 16; step; step >>= 1) {
    const unsigned long long other = __shfl_xor_sync(ALL_LANES, key, step);
    key = other < key ? other : key;
  }
  return key == ~0ull ? 0 : static_cast<int32_t>(static_cast<uint32_t>(key));
}

__global__ void __launch_bounds__(QUERY_THREADS) ball_query_kernel(QueryArgs a) {
  const int lane = threadIdx.x % 32;
  const int64_t centre = static_cast<int64_t>(blockIdx.x) * (QUERY_THREADS / 32) + threadIdx.x / 32;
  if (centre >= a.clouds * a.centres_each) return;
  const int64_t cloud = centre / a.centres_each;
  const Point from = load_point(a.centres, cloud, centre % a.centres_each);
  int64_t* rows = a.out + centre * a.columns;

  int32_t found = 0, first = 0;  // of the scale that has the number of this lane
  const int32_t wanted = lane < a.scales ? a.k[lane] : 0;
  for (int32_t block = 0; block < a.size && __any_sync(ALL_LANES, found < wanted); block += 32) {
    const int32_t i = block + lane;
    const Point point = i < a.size ? load_point(a.points, cloud, i) : Point{};
    const bool is_there = i < a.size && is_usable(a.valid, cloud, i, point);
    const float distance = squared_distance(point, from);
    int64_t* out = rows;
    for (int scale = 0; scale < a.scales; out += a.k[scale++]) {
      const bool is_within = is_there && distance <= a.radius2[scale];
      const uint32_t votes = __ballot_sync(ALL_LANES, is_within);
      const int32_t place = __shfl_sync(ALL_LANES, found, scale) + __popc(votes & ((1u << lane) - 1));
      if (is_within && place < a.k[scale]) out[place] = i;
      if (lane == scale) {
        if (found == 0 && votes) first = block + __popc((votes & (0u - votes)) - 1);
        found += __popc(votes);
      }
    }
  }
  if (__any_sync(ALL_LANES, lane < a.scales && found == 0)) {
    const int32_t nearest = nearest_point(a, cloud, from, lane);
    first = found == 0 ? nearest : first;
  }
  for (int scale = 0; scale < a.scales; rows += a.k[scale++]) {
    const int32_t begin = __shfl_sync(ALL_LANES, found, scale), rest = __shfl_sync(ALL_LANES, first, scale);
    for (int32_t place = begin + lane; place < a.k[scale]; place += 32) rows[place] = rest;
  }
}

inline void launch_ball_query(const QueryArgs& a, Stream stream) {
  const int64_t warps = a.clouds * a.centres_each;
  if (warps == 0) return;
  const auto blocks = static_cast<unsigned>((warps + QUERY_THREADS / 32 - 1) / (QUERY_THREADS / 32));
  ATTRDROP_LAUNCH(ball_query_kernel, blocks, QUERY_THREADS, 0, stream, a);
}

}  // namespace attrdrop
