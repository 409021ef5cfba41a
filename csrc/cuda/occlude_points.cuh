// occlude_points_ on CUDA: one block of threads per cloud reads its relevance, ranks it where that is asked for, scores its
// points, and replaces those that are dropped.
#pragma once
#include "cuda/points.cuh"
#include "cuda/ranked.cuh"
#include "occlude_points.h"

namespace attrdrop {

struct PointArgs {
  PointProblem problem;
  uint32_t* scratch;  // (N, words); null: in shared memory
  int64_t words;
  uint32_t sorted;    // of them, keys of the relevance in order: a power of two, or 0
};

constexpr unsigned POINT_THREADS = 512;  // at most; at least RANKING_THREADS
constexpr uint32_t SHARED_POINTS = 8192;  // of a cloud whose scratch memory, 64 KiB at most, is shared memory

// Sum over the channels, -inf where it is not finite; 0 without relevance.
__device__ __forceinline__ float relevance_at(const PointProblem& p, int64_t cloud, uint32_t point) {
  const PointView& map = p.relevance;
  if (!map.data) return 0.0f;
  const int64_t at = cloud * map.cloud + point * map.point;
  float sum = load_widened(map.data, map.type, at);
  for (int32_t c = 1; c < p.relevance_channels; ++c) sum += load_widened(map.data, map.type, at + c * map.channel);
  return fabsf(sum) < INFINITY ? sum : -INFINITY;
}

struct PointRange {
  float low, high;  // of the finite relevance of valid points
  int32_t count;    // of valid points
};

__device__ __forceinline__ PointRange point_range(const PointProblem& p, int64_t cloud) {
  ATTRDROP_SHARED(int32_t, found, 3 * POINT_THREADS / 32);
  int32_t lowest = ~ordered_key(INFINITY), highest = ordered_key(-INFINITY);  // ~ turns the order round
  uint32_t count = 0;
  for (uint32_t point = threadIdx.x; point < p.size; point += blockDim.x) {
    if (!is_valid(p.valid, cloud, point)) continue;
    ++count;
    const float x = relevance_at(p, cloud, point);
    if (x == -INFINITY) continue;
    const int32_t key = ordered_key(x);
    lowest = ~key > lowest ? ~key : lowest;
    highest = key > highest ? key : highest;
  }
  lowest = __reduce_max_sync(ALL_LANES, lowest);
  highest = __reduce_max_sync(ALL_LANES, highest);
  count = __reduce_add_sync(ALL_LANES, count);
  int32_t* mine = found + 3 * (threadIdx.x / 32);
  if (threadIdx.x % 32 == 0) mine[0] = lowest, mine[1] = highest, mine[2] = static_cast<int32_t>(count);
  __syncthreads();
  int32_t total = 0;
  for (uint32_t warp = 0; warp < blockDim.x / 32; ++warp) {
    const int32_t* other = found + 3 * warp;
    lowest = other[0] > lowest ? other[0] : lowest;
    highest = other[1] > highest ? other[1] : highest;
    total += other[2];
  }
  return {ordered_value(~lowest), ordered_value(highest), total};
}

// keys [0, size) ascending, size a power of two: a bitonic network.
__device__ __forceinline__ void sort_keys(uint32_t* keys, uint32_t size) {
  for (uint32_t run = 2; run <= size; run *= 2)
    for (uint32_t step = run / 2; step; step /= 2) {
      __syncthreads();
      for (uint32_t i = threadIdx.x; i < size / 2; i += blockDim.x) {
        const uint32_t low = 2 * i - (i & (step - 1)), high = low + step;
        const uint32_t a = keys[low], b = keys[high];
        if ((a > b) == !(low & run)) keys[low] = b, keys[high] = a;
      }
    }
  __syncthreads();
}

// How many of the sorted keys, a power of two of them, lie below one that is among them.
__device__ __forceinline__ uint32_t count_smaller(const uint32_t* keys, uint32_t size, uint32_t key) {
  uint32_t below = 0;
  for (uint32_t step = size / 2; step; step /= 2)
    if (keys[below + step - 1] < key) below += step;
  return below;
}

// Places of the points for which is_listed(point) holds, in order; gives how many.
template <class IsListed>
__device__ __forceinline__ uint32_t list_points(IsListed is_listed, uint32_t size, uint32_t* list) {
  ATTRDROP_SHARED(uint32_t, counts, POINT_THREADS / 32);
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t total = 0;
  for (uint32_t begin = 0; begin < size; begin += blockDim.x) {
    const uint32_t point = begin + threadIdx.x;
    const bool is_mine = point < size && is_listed(point);
    const uint32_t votes = __ballot_sync(ALL_LANES, is_mine);
    if (lane == 0) counts[warp] = __popc(votes);
    __syncthreads();
    uint32_t place = total + __popc(votes & ((1u << lane) - 1));
    for (uint32_t other = 0; other < blockDim.x / 32; ++other) {
      if (other < warp) place += counts[other];
      total += counts[other];
    }
    if (is_mine) list[place] = point;
    __syncthreads();
  }
  return total;
}

// The word of a point, without an index into registers.
__device__ __forceinline__ uint32_t point_word(uint64_t seed, uint32_t purpose, uint32_t sample, uint32_t point) {
  const Philox4 r = point_words(seed, purpose, sample, point / 4);
  const uint32_t even = point & 2 ? r.word[2] : r.word[0], odd = point & 2 ? r.word[3] : r.word[1];
  return point & 1 ? odd : even;
}

// Scores of all points: to the mask, or to keys where their rank decides (0: no point).
__device__ __forceinline__ void score_points(const PointArgs& a, int64_t cloud, const PointRange& range, uint32_t sample,
                                             const uint32_t* sorted, uint32_t* keys, bool* dropped) {
  const PointProblem& p = a.problem;
  const Scale scale = relevance_scale(p.rule.norm, range.low, range.high, range.count);
  const double bound = score_bound(p.rule.beta);
  for (uint32_t point = threadIdx.x; point < p.size; point += blockDim.x) {
    const float x = relevance_at(p, cloud, point);
    const double r = normalised(scale, a.sorted ? count_smaller(sorted, a.sorted, score_key(x)) : x);
    const double score = point_score(p.rule.alpha, point_word(p.rule.seed, DRAW_POINT, sample, point), r);
    const bool counts = is_valid(p.valid, cloud, point);
    if (p.rule.calibrated) keys[point] = counts ? 1 + score_bits(score) : 0;
    else dropped[point] = counts && score >= bound;
  }
}

template <class T>
__device__ __forceinline__ void replace_points(const PointProblem& p, int64_t cloud, uint32_t sample, const bool* dropped,
                                               uint32_t* list) {
  const PointView& view = p.points;
  const bool is_copied = p.replacement != Replacement::number;
  uint32_t kept = 0;
  if (is_copied) {
    const auto is_kept = [&](uint32_t point) { return !dropped[point] && is_valid(p.valid, cloud, point); };
    kept = list_points(is_kept, p.size, list);
    if (kept == 0) list_points([&](uint32_t point) { return dropped[point]; }, p.size, list);  // that is, all valid ones
  }
  T* out = static_cast<T*>(const_cast<void*>(view.data)) + cloud * view.cloud;
  for (uint32_t point = threadIdx.x; point < p.size; point += blockDim.x) {
    if (!dropped[point]) continue;
    uint32_t rank = 0;
    if (p.replacement == Replacement::resample)
      rank = below(point_word(p.rule.seed, DRAW_RESAMPLE, sample, point), kept);
    const uint32_t from = is_copied ? list[rank] : 0;
    for (int32_t c = 0; c < p.channels; ++c) {
      const T value = is_copied ? out[from * view.point + c * view.channel] : constant_at<T>(p.constant, c);
      out[point * view.point + c * view.channel] = value;
    }
  }
}

// Grid: one block of threads per cloud. T has the size of a number of the points.
template <class T>
// Two blocks on a multiprocessor: for three, ptxas would spill.
__global__ void __launch_bounds__(POINT_THREADS, 2) occlude_points_kernel(PointArgs a) {
  ATTRDROP_DYNAMIC_SHARED(shared);
  const PointProblem& p = a.problem;
  const int64_t cloud = blockIdx.x;
  const uint32_t sample = sample_of(p.sample_ids, cloud), size = p.size;
  uint32_t* sorted = a.scratch ? a.scratch + cloud * a.words : reinterpret_cast<uint32_t*>(shared);  // (a.sorted)
  uint32_t* keys = sorted + a.sorted;                                                                // (P)
  bool* dropped = p.dropped + cloud * size;

  const PointRange range = point_range(p, cloud);
  if (a.sorted) {
    for (uint32_t i = threadIdx.x; i < a.sorted; i += blockDim.x) {
      const bool counts = i < size && is_valid(p.valid, cloud, i);
      sorted[i] = counts ? score_key(relevance_at(p, cloud, i)) : UINT32_MAX;
    }
    sort_keys(sorted, a.sorted);
  }
  score_points(a, cloud, range, sample, sorted, keys, dropped);
  __syncthreads();
  if (p.rule.calibrated) {
    const auto wanted = static_cast<uint32_t>(dropped_count(p.rule.beta, range.count));
    const uint64_t least = wanted ? ranked_key([=](uint32_t point) { return keys[point]; }, size, wanted - 1) : UINT64_MAX;
    for (uint32_t point = threadIdx.x; point < size; point += blockDim.x)
      dropped[point] = distinct_key(keys[point], point, size) >= least;
    __syncthreads();
  }
  replace_points<T>(p, cloud, sample, dropped, keys);
}

// new_scratch(bytes) gives device memory, which clouds of more than SHARED_POINTS need.
template <class NewScratch>
void launch_occlude_points(const PointProblem& p, NewScratch new_scratch, Stream stream) {
  if (p.count == 0 || p.size == 0) return;
  PointArgs a{p, nullptr, 0, 0};
  if (p.relevance.data && p.rule.norm == Norm::rank)
    for (a.sorted = 1; a.sorted < p.size;) a.sorted *= 2;
  a.words = a.sorted + (p.rule.calibrated || p.replacement != Replacement::number ? p.size : 0);
  int64_t shared = 4 * a.words;
  if (p.size > SHARED_POINTS && a.words) {
    a.scratch = static_cast<uint32_t*>(new_scratch(shared * p.count));
    shared = 0;
  }
  const unsigned threads = p.size > 1024 ? POINT_THREADS : RANKING_THREADS;
  const auto count = static_cast<unsigned>(p.count);
  if (p.points.type == Dtype::f32) ATTRDROP_LAUNCH(occlude_points_kernel<uint32_t>, count, threads, shared, stream, a);
  else ATTRDROP_LAUNCH(occlude_points_kernel<uint16_t>, count, threads, shared, stream, a);
}

}  // namespace attrdrop
