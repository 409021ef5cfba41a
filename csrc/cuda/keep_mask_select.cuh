// Rows of keys to bits: the exact threshold (Eq. 6), the draw (Eq. 7), and the words of the mask. A team of lanes holds
// one row in registers, WORDS words of 32 columns in each lane.
#pragma once
#include "bits.h"
#include "cuda/keys.cuh"
#include "cuda/warp.cuh"
#include "keep_mask_args.h"

namespace attrdrop {

// LANES lanes of a warp hold a row; the warp holds 32 / LANES rows. All 32 lanes call every function together.
template <int LANES>
struct WarpTeam {
  static constexpr int SIZE = LANES;
  __device__ __forceinline__ int lane() const { return threadIdx.x % LANES; }
  __device__ __forceinline__ uint32_t sum(uint32_t value) {
    if constexpr (LANES == 32) {
      return __reduce_add_sync(ALL_LANES, value);
    } else {
#pragma unroll
      for (int step = LANES / 2; step; step >>= 1) value += __shfl_xor_sync(ALL_LANES, value, step);
      return value;
    }
  }
  __device__ __forceinline__ int32_t max(int32_t value) {
    if constexpr (LANES == 32) {
      return __reduce_max_sync(ALL_LANES, value);
    } else {
#pragma unroll
      for (int step = LANES / 2; step; step >>= 1) {
        const int32_t other = __shfl_xor_sync(ALL_LANES, value, step);
        value = other > value ? other : value;
      }
      return value;
    }
  }
  // Whether any row of the warp needs another step.
  __device__ __forceinline__ bool any(bool mine) const { return LANES == 32 ? mine : __any_sync(ALL_LANES, mine); }
};

// All WARPS warps of a block hold one row.
template <int WARPS>
struct BlockTeam {
  static constexpr int SIZE = 32 * WARPS;
  uint32_t* slots;  // (2, WARPS) in shared memory, used in turns so that one barrier is enough
  int turn = 0;
  __device__ __forceinline__ int lane() const { return threadIdx.x; }
  __device__ __forceinline__ uint32_t exchange(uint32_t value, uint32_t neutral) {
    uint32_t* slot = slots + WARPS * turn;
    turn ^= 1;
    if (threadIdx.x % 32 == 0) slot[threadIdx.x / 32] = value;
    __syncthreads();
    return threadIdx.x % 32 < WARPS ? slot[threadIdx.x % 32] : neutral;
  }
  __device__ __forceinline__ uint32_t sum(uint32_t value) {
    return __reduce_add_sync(ALL_LANES, exchange(__reduce_add_sync(ALL_LANES, value), 0));
  }
  __device__ __forceinline__ int32_t max(int32_t value) {
    const uint32_t largest = exchange(static_cast<uint32_t>(__reduce_max_sync(ALL_LANES, value)), 0x80000000u);
    return __reduce_max_sync(ALL_LANES, static_cast<int32_t>(largest));
  }
  __device__ __forceinline__ bool any(bool mine) const { return mine; }
};

__device__ __forceinline__ float fast_divide(float a, float b) {
#if defined(__CUDACC__)
  return __fdividef(a, b);
#else
  return a / b;
#endif
}

struct Cut {
  int32_t ordered;  // columns strictly below it are the ones below the threshold
  RowRule rule;
};

// Finds a cut with the columns below it those of rank < `rank`, or the key at that rank: the result is the same. Starts
// between the smallest and the largest key; counts decide every step, so the path changes the cost and never the result.
template <class Keys, int WORDS, class Team>
__device__ __forceinline__ Cut find_cut(const typename Keys::Register (&keys)[WORDS][Keys::REGISTERS], Team& team,
                                        const KeepMaskArgs& args, int32_t rank, int32_t n_valid) {
  const auto count_less = [&](int32_t ordered) {
    const typename Keys::Pivot pivot = Keys::pivot(ordered);
    uint32_t sum = 0;
#pragma unroll
    for (int u = 0; u < WORDS; ++u) sum += Keys::template count<Compare::less>(keys[u], pivot);
    return Keys::decode(team.sum(sum));
  };
  KeyRange range = Keys::range(keys[0]);
#pragma unroll
  for (int u = 1; u < WORDS; ++u) {
    const KeyRange other = Keys::range(keys[u]);
    range.low = other.low < range.low ? other.low : range.low;
    range.high = other.high > range.high ? other.high : range.high;
  }
  const int32_t lowest = ~team.max(~range.low), highest = team.max(range.high);
  Cut cut{lowest, row_rule(args.region, rank, n_valid, highest < lowest ? 0 : n_valid)};
  const bool is_open = !cut.rule.all && !cut.rule.none;
  // count(key < low) <= rank, and count(key < high) > rank where high <= highest.
  int32_t low = is_open ? lowest : 0, high = is_open ? highest + 1 : 0, count_low = 0, count_high = n_valid;
  float guess = Keys::value(low) + args.first_guess * (Keys::value(high - 1) - Keys::value(low));
  for (int step = 0;; ++step) {
    const uint32_t width = static_cast<uint32_t>(high) - static_cast<uint32_t>(low);
    if (!team.any(width > 1u)) break;
    int32_t middle = static_cast<int32_t>(static_cast<uint32_t>(low) + (width >> 1));
    if (step < args.guesses) {
      const int32_t at = Keys::nearest(guess);
      middle = at <= low ? low + 1 : at >= high ? high - 1 : at;
    }
    const int32_t count = count_less(middle);
    const bool is_low = width > 1u && count <= rank, is_high = width > 1u && count >= rank;
    low = is_low ? middle : low;
    high = !is_high ? high : is_low ? middle + 1 : middle;
    if (step + 1 >= args.guesses) continue;
    count_low = is_low ? count : count_low;
    count_high = is_high ? count : count_high;
    const float left = Keys::value(low), step_up = Keys::value(high) - left;
    guess = left + step_up * fast_divide(rank - count_low + 0.5f, static_cast<float>(count_high - count_low));
  }
  cut.ordered = low;
  // At the largest key it is open whether the rank lies among the numbers or among the NaN after them.
  if (team.any(is_open && low == highest)) {
    uint32_t sum = 0;
#pragma unroll
    for (int u = 0; u < WORDS; ++u) sum += Keys::template count<Compare::less_equal>(keys[u], Keys::pivot(highest));
    const int32_t not_nan = Keys::decode(team.sum(sum));
    if (is_open && low == highest) cut.rule = row_rule(args.region, rank, n_valid, not_nan);
  }
  return cut;
}

// Per-thread part of the counts of a block.
struct RowCounts {
  uint32_t valid = 0, candidates = 0, dropped = 0, rescued = 0;

  // All threads of a block; shared (4) is zeroed and behind a barrier.
  __device__ __forceinline__ void add_to(unsigned* shared) const {
    const uint32_t mine[4] = {valid, candidates, dropped, rescued};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t sum = __reduce_add_sync(ALL_LANES, mine[i]);
      if (threadIdx.x % 32 == 0 && sum) atomicAdd(shared + i, sum);
    }
  }
};

// One row: keys (or null where nothing is ranked) -> words of the mask, of which this lane writes lane, lane + SIZE, ...
// A row past the end has row >= n_q: it takes part, writes zeros to `kept` and nothing to global memory. `kept` (words) in
// shared memory, which may lie over the keys, is null where nobody needs it.
template <class Keys, int WORDS, class Team>
__device__ __forceinline__ void select_row(const KeepMaskArgs& args, Team& team, const unsigned char* stored,
                                           const BlockPlace& place, int32_t row, uint32_t* kept, RowCounts& counts) {
  const int32_t words = static_cast<int32_t>(word_count(args.n_k));
  const int lane = opaque(team.lane());
  const bool exists = row < args.n_q;
  const int32_t end = !exists ? 0 : args.is_causal && row + 1 < args.n_k ? row + 1 : args.n_k;
  const uint32_t* given = args.valid ? args.valid + place.sample * args.valid_batch + place.head * args.valid_head +
                                           (exists ? row : 0) * args.valid_row
                                     : nullptr;
  typename Keys::Register keys[WORDS][Keys::REGISTERS];
  uint32_t valid[WORDS];
  uint32_t valid_here = 0;
#pragma unroll
  for (int u = 0; u < WORDS; ++u) {
    const int word = lane + Team::SIZE * u;
    valid[u] = word < words ? columns_below(word, end) & (given ? given[word] : 0xFFFFFFFFu) : 0u;
    valid_here += __popc(valid[u]);
    if (stored) {
      Keys::load(keys[u], stored, word < words ? word : 0);
      Keys::mask(keys[u], valid[u]);
    }
  }
  const int32_t n_valid = given ? static_cast<int32_t>(team.sum(valid_here)) : end;
  const int32_t rank = threshold_rank(n_valid, args.share);

  Cut cut{0, row_rule(args.region, rank, n_valid, n_valid)};
  if (stored) {
    cut = find_cut<Keys, WORDS>(keys, team, args, rank, n_valid);
  } else if (args.region == Region::high) {
    cut.rule.all = !cut.rule.none;  // all columns tie: none is below the threshold
  } else {
    cut.rule.none |= !cut.rule.all;
  }
  const uint32_t sample = static_cast<uint32_t>(
      args.sample_ids ? args.sample_ids[place.sample * args.sample_stride] : static_cast<int64_t>(place.sample));
  const DrawPlace draw{static_cast<uint32_t>(row), place.head + 65536u * args.layer, sample};
  uint32_t dropped[WORDS];  // at first the candidates
#pragma unroll
  for (int u = 0; u < WORDS; ++u) {
    dropped[u] = cut.rule.all ? valid[u] : 0u;
    if (cut.rule.all || cut.rule.none) continue;
    const typename Keys::Pivot pivot = Keys::pivot(cut.ordered);
    dropped[u] = valid[u] & ~(args.region == Region::high ? Keys::template word<Compare::less>(keys[u], pivot)
                                                          : Keys::template word<Compare::greater_equal>(keys[u], pivot));
  }
  uint32_t dropped_here = 0;
#pragma unroll
  for (int u = 0; u < WORDS; ++u) {
    counts.candidates += __popc(dropped[u]);
    const uint32_t word = static_cast<uint32_t>(lane + Team::SIZE * u);
    if (dropped[u]) dropped[u] &= bernoulli_word(args.seed, draw, word, args.threshold);
    dropped_here += __popc(dropped[u]);
  }
  const int32_t n_dropped = static_cast<int32_t>(team.sum(dropped_here));
  const bool is_rescued = n_valid > 0 && n_dropped == n_valid;
  counts.valid += valid_here;
  counts.dropped += is_rescued ? 0u : dropped_here;
  counts.rescued += is_rescued && lane == 0;
  __syncwarp();  // `kept` may lie over keys that another lane reads
  uint32_t* out = args.rows + (place.slice * args.n_q + row) * words;
#pragma unroll
  for (int u = 0; u < WORDS; ++u) {
    const int word = lane + Team::SIZE * u;
    if (word >= words) continue;
    const uint32_t keep = is_rescued ? valid[u] : valid[u] & ~dropped[u];
    if (exists) out[word] = keep;
    if (kept) kept[word] = keep;
  }
}

}  // namespace attrdrop
