// Rows of keys to bits: the exact threshold (Eq. 6), the draw (Eq. 7), and the words of the mask. A team of lanes holds
// one row in registers, WORDS words of 32 columns in each lane.
#pragma once
#include <cfloat>
#include <cmath>

#include "bits.h"
#include "cuda/keys.cuh"
#include "cuda/warp.cuh"
#include "keep_mask_args.h"

namespace attrdrop {

constexpr int SAMPLED = 16;  // numbers of a lane from which the first guess of a threshold is made

// The sum over each LANES neighbouring lanes, in all of them, where each FROM of them have theirs already.
template <int LANES, int FROM = 1, class Number>
__device__ __forceinline__ Number butterfly_sum(Number value) {
#pragma unroll
  for (int step = LANES / 2; step >= FROM; step >>= 1) value += __shfl_xor_sync(ALL_LANES, value, step);
  return value;
}

// LANES lanes of a warp hold a row; the warp holds 32 / LANES rows. All 32 lanes call every function together.
template <int LANES>
struct WarpTeam {
  static constexpr int SIZE = LANES;
  __device__ __forceinline__ int lane() const { return threadIdx.x % LANES; }
  __device__ __forceinline__ int32_t sum(int32_t value) {
    if constexpr (LANES == 32) return static_cast<int32_t>(__reduce_add_sync(ALL_LANES, static_cast<uint32_t>(value)));
    else return butterfly_sum<LANES>(value);
  }
  __device__ __forceinline__ float sum(float value) { return butterfly_sum<LANES>(value); }
  __device__ __forceinline__ float sum_of_quads(float value) { return butterfly_sum<LANES, 4>(value); }
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
  __device__ __forceinline__ uint32_t exchange(uint32_t value) {  // zeros after those of the warps
    uint32_t* slot = slots + WARPS * turn;
    turn ^= 1;
    if (threadIdx.x % 32 == 0) slot[threadIdx.x / 32] = value;
    __syncthreads();
    return threadIdx.x % 32 < WARPS ? slot[threadIdx.x % 32] : 0;
  }
  __device__ __forceinline__ int32_t sum(int32_t value) {
    const uint32_t mine = __reduce_add_sync(ALL_LANES, static_cast<uint32_t>(value));
    return static_cast<int32_t>(__reduce_add_sync(ALL_LANES, exchange(mine)));
  }
  template <int FROM = 1>
  __device__ __forceinline__ float sum(float value) {
    return butterfly_sum<32>(__uint_as_float(exchange(__float_as_uint(butterfly_sum<32, FROM>(value)))));
  }
  __device__ __forceinline__ float sum_of_quads(float value) { return sum<4>(value); }
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

// Where to look for the threshold of a row that is about normally distributed, from a sample of its numbers.
struct Guess {
  float threshold;
  float per_rank;  // by how much it moves for one more column below it
  bool is_usable;
};

template <class Keys, int WORDS, class Team>
__device__ __forceinline__ Guess guess_threshold(const typename Keys::Register (&keys)[WORDS][Keys::REGISTERS], Team& team,
                                                 const KeepMaskArgs& args, int32_t n_valid) {
  constexpr int STEP = WORDS * Keys::REGISTERS / SAMPLED;  // one number from every STEP registers
  float count = 0, sum = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < SAMPLED; ++i) {
    const float x = Keys::number(keys[i * STEP / Keys::REGISTERS][i * STEP % Keys::REGISTERS]);
    if (x == x) count += 1.0f, sum += x, squares = fmaf(x, x, squares);
  }
  count = team.sum(count), sum = team.sum(sum), squares = team.sum(squares);
  const float mean = fast_divide(sum, count), variance = fmaxf(fast_divide(squares, count) - mean * mean, 0.0f);
  const float deviation = sqrtf(variance);
  const float per_rank = fast_divide(deviation * args.normal_spacing, static_cast<float>(n_valid));
  return {fmaf(deviation, args.normal_quantile, mean), per_rank, count >= 2.0f && squares <= FLT_MAX};
}

// Finds a cut with the columns below it those of rank < `rank`, or the key at that rank: the result is the same. Counts
// decide every step, so the guesses change the cost and never the result.
template <class Keys, int WORDS, class Team>
__device__ __forceinline__ Cut find_cut(const typename Keys::Register (&keys)[WORDS][Keys::REGISTERS], Team& team,
                                        const KeepMaskArgs& args, int32_t rank, int32_t n_valid) {
  const int32_t bottom = Keys::ordered(-INFINITY), top = Keys::ordered(INFINITY);
  Cut cut{bottom, row_rule(args.region, rank, n_valid, n_valid)};
  const bool is_open = !cut.rule.all && !cut.rule.none;
  const float wanted = static_cast<float>(rank);
  // count(key < low) <= rank, and count(key < high) > rank where count_high is not 0. A row is done where high is low + 1.
  int32_t low = bottom, high = is_open ? top + 1 : bottom + 1;
  float count_low = 0.0f, count_high = 0.0f, value_low = 0.0f, value_high = 0.0f;
  Guess guess{};
  if (args.guesses) guess = guess_threshold<Keys, WORDS>(keys, team, args, n_valid);
  const int32_t guesses = guess.is_usable ? args.guesses : 0;
  for (int step = 0;; ++step) {
    const uint32_t width = static_cast<uint32_t>(high) - static_cast<uint32_t>(low);
    if (!team.any(width != 1u)) break;
    int32_t middle = static_cast<int32_t>(static_cast<uint32_t>(low) + (width >> 1));
    if (step < guesses) {
      const int32_t at = Keys::nearest(guess.threshold), least = low + 1, most = high - 1;
      middle = at < least ? least : at;
      middle = middle > most ? most : middle;
    }
    const float count = Keys::template count<Compare::less>(keys, Keys::pivot(middle), team), value = Keys::value(middle);
    const bool is_low = count <= wanted;
    high = !is_low ? middle : count == wanted ? middle + 1 : high;
    low = is_low ? middle : low;
    count_low = is_low ? count : count_low, value_low = is_low ? value : value_low;
    count_high = is_low ? count_high : count, value_high = is_low ? value_high : value;
    // Between two counts by interpolation; before there are two, by the slope of the normal distribution.
    const float share = fast_divide(wanted + 0.5f - count_low, count_high - count_low);
    guess.threshold = low > bottom && count_high > 0.0f ? fmaf(value_high - value_low, share, value_low)
                                                        : fmaf(wanted + 0.5f - count, guess.per_rank, value);
  }
  cut.ordered = low;
  // Where no number was seen to have a higher rank, the one at this rank may be NaN.
  const bool may_be_nan = is_open && count_high == 0.0f;
  if (team.any(may_be_nan)) {
    const float not_nan = Keys::template count<Compare::less_equal>(keys, Keys::pivot(top), team);
    if (may_be_nan) cut.rule = row_rule(args.region, rank, n_valid, static_cast<int32_t>(not_nan));
  }
  return cut;
}

// Adds what the lanes of a warp count of their rows to the block's counts (4) in shared memory.
__device__ __forceinline__ void add_to_block(unsigned* block_counts, uint32_t valid, uint32_t candidates, uint32_t dropped,
                                             uint32_t rescued) {
  const uint32_t mine[4] = {valid, candidates, dropped, rescued};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t sum = __reduce_add_sync(ALL_LANES, mine[i]);
    if (threadIdx.x % 32 == 0 && sum) atomicAdd(block_counts + i, sum);
  }
}

// One row: keys (or null where nothing is ranked) -> words of the mask, of which this lane writes lane, lane + SIZE, ...
// A row past the end has row >= n_q: it takes part, writes zeros to `kept` and nothing to global memory. `kept` (words) in
// shared memory, which may lie over the keys, is null where nobody needs it. `block_counts`: valid, candidates, dropped, rescued.
template <class Keys, int WORDS, class Team>
__device__ __forceinline__ void select_row(const KeepMaskArgs& args, Team& team, const unsigned char* stored,
                                           const BlockPlace& place, int32_t row, uint32_t* kept, unsigned* block_counts) {
  const int32_t words = static_cast<int32_t>(word_count(args.n_k));
  const int lane = opaque(team.lane());
  const bool exists = row < args.n_q;
  const int32_t end = !exists ? 0 : args.is_causal && row + 1 < args.n_k ? row + 1 : args.n_k;
  const uint32_t* given = args.valid ? args.valid + place.sample * args.valid_batch + place.head * args.valid_head +
                                           (exists ? row : 0) * args.valid_row
                                     : nullptr;
  typename Keys::Register keys[WORDS][Keys::REGISTERS];
  uint32_t valid[WORDS];
  int32_t valid_here = 0;
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
  const int32_t n_valid = given ? team.sum(valid_here) : end;
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
  const DrawPlace draw{static_cast<uint32_t>(row), args.first_head + place.head, sample};
  uint32_t dropped[WORDS];  // at first the candidates
#pragma unroll
  for (int u = 0; u < WORDS; ++u) {
    dropped[u] = cut.rule.all ? valid[u] : 0u;
    if (cut.rule.all || cut.rule.none) continue;
    const typename Keys::Pivot pivot = Keys::pivot(cut.ordered);
    dropped[u] = valid[u] & ~(args.region == Region::high ? Keys::template word<Compare::less>(keys[u], pivot)
                                                          : Keys::template word<Compare::greater_equal>(keys[u], pivot));
  }
  int32_t candidates_here = 0, dropped_here = 0;
#pragma unroll
  for (int u = 0; u < WORDS; ++u) {
    candidates_here += __popc(dropped[u]);
    const uint32_t word = static_cast<uint32_t>(lane + Team::SIZE * u);
    dropped[u] = bernoulli_subset(args.bernoulli, draw, word, dropped[u]);
    dropped_here += __popc(dropped[u]);
  }
  const int32_t n_dropped = team.sum(dropped_here);
  const bool is_rescued = n_valid > 0 && n_dropped == n_valid;
  add_to_block(block_counts, valid_here, candidates_here, is_rescued ? 0 : dropped_here, is_rescued && lane == 0);
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
