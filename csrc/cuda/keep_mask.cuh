// keep_mask on CUDA: rank x y^T per row, find the threshold, draw, pack (Eq. 5 to 7 of AD-DROP).
//
// Rows of up to SHORT_ROW columns: one kernel, whose block keeps the keys of 16 to 64 rows of a head in shared memory.
// Rows that a warp can hold: one kernel, whose blocks write keys to a ring of scratch memory or select from it. Longer rows:
// one kernel writes keys to scratch memory, a second one selects. Both need a last one that transposes the bits.
#pragma once
#include "cuda/keep_mask_select.cuh"
#include "cuda/keep_mask_tile.cuh"
#include "cuda/ring.cuh"

namespace attrdrop {

constexpr int SHORT_ROW = 2048;

struct BlockGrid {
  int32_t block_rows, per_head;  // per_head: blocks of a head, a whole number of 32-row groups
  int32_t groups;                // heads of x that share one of y
  __device__ __forceinline__ BlockPlace place(int64_t block, int32_t heads) const {
    const int64_t slice = block / per_head;
    const int32_t head = static_cast<int32_t>(slice % heads);
    const int32_t row = static_cast<int32_t>(block % per_head) * block_rows;
    return {static_cast<int32_t>(slice / heads), head, head / groups, row, slice};
  }
};

// Bits of the block's rows, word w of row r at kept + r * stride + 4 w, to the columns of the mask.
__device__ __forceinline__ void write_columns(const KeepMaskArgs& args, const BlockPlace& place, int block_rows,
                                              const unsigned char* kept, int stride) {
  const int thread = opaque(threadIdx.x), lane = thread % 32, warp = thread / 32;  // not kept since the start of the kernel
  const int words = static_cast<int>(word_count(args.n_k));
  const int column_words = static_cast<int>(word_count(args.n_q));
  const auto column_of = [&](int row, int word) {
    return warp_transpose(row < block_rows ? *reinterpret_cast<const uint32_t*>(kept + row * stride + 4 * word) : 0u, lane);
  };
  const bool has_second = block_rows == 64 && place.row / 32 + 1 < column_words;
  const bool is_pair = has_second && column_words % 2 == 0;
  uint32_t* out = args.cols + (place.slice * args.n_k + 32 * warp + lane) * column_words + place.row / 32;
  const int64_t step = int64_t{column_words} * blockDim.x;
  for (int word = warp; word < words; word += blockDim.x / 32, out += step) {
    const uint32_t first = column_of(lane, word), second = has_second ? column_of(32 + lane, word) : 0u;
    if (32 * word + lane >= args.n_k) continue;
    if (is_pair) {
      *reinterpret_cast<uint2*>(out) = make_uint2(first, second);
    } else if (block_rows == 16) {  // half a word: the other block has the other half
      reinterpret_cast<uint16_t*>(out)[place.row % 32 / 16] = static_cast<uint16_t>(first);
    } else {
      out[0] = first;
      if (has_second) out[1] = second;
    }
  }
}

// All rows of the block, 32 / LANES of them in a warp at a time.
template <class Keys, int LANES, int WORDS>
__device__ __forceinline__ void select_rows(const KeepMaskArgs& args, const TilePlan& plan, const BlockPlace& place,
                                            unsigned char* strip, unsigned* block_counts) {
  constexpr int AT_ONCE = 32 / LANES;
  WarpTeam<LANES> team;
  for (int r = threadIdx.x / 32 * AT_ONCE; r < plan.block_rows; r += plan.threads / 32 * AT_ONCE) {
    unsigned char* row = strip + (r + threadIdx.x % 32 / LANES) * plan.key_bytes;
    select_row<Keys, WORDS>(args, team, args.is_ranked ? row : nullptr, place, place.row + r + threadIdx.x % 32 / LANES,
                            reinterpret_cast<uint32_t*>(row), block_counts);
  }
}

// The counts of the block (4) in shared memory: zero at first, later added to the total.
__device__ __forceinline__ void clear_counts(unsigned* block_counts) {
  if (threadIdx.x < 4) block_counts[threadIdx.x] = 0;
  __syncthreads();
}
__device__ __forceinline__ void add_to_total(const unsigned* block_counts, unsigned long long* total) {
  __syncthreads();
  if (threadIdx.x < 4 && block_counts[threadIdx.x])
    atomicAdd(total + threadIdx.x, static_cast<unsigned long long>(block_counts[threadIdx.x]));
}

// Two products, or wide keys, need more registers than 512 threads have.
template <class Keys, bool WEIGHTED>
constexpr int MOST_THREADS = WEIGHTED || Keys::REGISTERS > 16 ? 256 : 512;

template <class T, class Keys, int CHUNKS, bool WEIGHTED>
__global__ void __launch_bounds__(MOST_THREADS<Keys, WEIGHTED>, 1)
    keep_mask_kernel(const KeepMaskArgs args, const TilePlan plan, const BlockGrid grid) {
  ATTRDROP_DYNAMIC_SHARED(shared);
  ATTRDROP_SHARED(unsigned, block_counts, 4);
  ATTRDROP_SHARED(BlockPlace, kept_place, 1);  // the selection has no registers to spare for it
  const BlockPlace& place = *kept_place;
  if (threadIdx.x == 0) *kept_place = grid.place(blockIdx.x, args.heads);
  clear_counts(block_counts);
  if (args.is_ranked) {
    const int last = place.row + plan.block_rows;  // causal rows need no column past their own
    const int end = args.is_causal && last < args.n_k ? last : args.n_k;
    multiply_tiles<T, Keys, CHUNKS, WEIGHTED>(args, plan, place, 0, end, shared, shared, plan.key_bytes);
  }
  // The more words a lane holds, the less its share of the steps of the search costs.
  constexpr int MOST = Keys::MOST_WORDS, FULL = 128 * MOST;  // columns of four full lanes
  if (args.n_k <= 128) select_rows<Keys, 4, 1>(args, plan, place, shared, block_counts);
  else if (args.n_k <= 256) select_rows<Keys, 4, 2>(args, plan, place, shared, block_counts);
  else if (args.n_k <= FULL) select_rows<Keys, 4, MOST>(args, plan, place, shared, block_counts);
  else if (args.n_k <= 2 * FULL) select_rows<Keys, 8, MOST>(args, plan, place, shared, block_counts);
  else if (args.n_k <= 4 * FULL) select_rows<Keys, 16, MOST>(args, plan, place, shared, block_counts);
  else select_rows<Keys, 32, MOST>(args, plan, place, shared, block_counts);
  add_to_total(block_counts, args.counts);
  if (args.cols) write_columns(args, place, plan.block_rows, shared, plan.key_bytes);
}

// Long rows, first half: keys of BLOCK_ROWS rows and `span` columns to scratch memory, (blocks, block_rows, key_bytes).
template <class T, class Keys, int CHUNKS, bool WEIGHTED>
__global__ void __launch_bounds__(MOST_THREADS<Keys, WEIGHTED>, 1)
    keep_mask_keys_kernel(const KeepMaskArgs args, const TilePlan plan, const BlockGrid grid, int64_t first_block, int span,
                          unsigned char* scratch) {
  ATTRDROP_DYNAMIC_SHARED(shared);
  const BlockPlace place = grid.place(first_block + blockIdx.x, args.heads);
  const int last = place.row + plan.block_rows, wanted = args.is_causal && last < args.n_k ? last : args.n_k;
  const int first = blockIdx.y * span, end = first + span < wanted ? first + span : wanted;
  const int64_t row_bytes = plan.key_bytes;
  if (first < end)
    multiply_tiles<T, Keys, CHUNKS, WEIGHTED>(args, plan, place, first, end, shared,
                                              scratch + blockIdx.x * plan.block_rows * row_bytes, row_bytes);
}

// Long rows, second half: scratch (null where nothing is ranked) -> rows. WARPS == 1: eight rows a block, else one.
template <class Keys, int WORDS, int WARPS>
__global__ void __launch_bounds__(WARPS == 1 ? 256 : 32 * WARPS)
    keep_mask_select_kernel(const KeepMaskArgs args, const BlockGrid grid, int64_t first_block, int64_t key_bytes,
                            const unsigned char* scratch) {
  ATTRDROP_SHARED(unsigned, block_counts, 4);
  ATTRDROP_SHARED(uint32_t, slots, 2 * WARPS);
  const int64_t local = WARPS == 1 ? int64_t{blockIdx.x} * 8 + threadIdx.x / 32 : int64_t{blockIdx.x};
  const BlockPlace place = grid.place(first_block + local / grid.block_rows, args.heads);
  const int32_t row = place.row + static_cast<int32_t>(local % grid.block_rows);
  const unsigned char* keys = scratch ? scratch + local * key_bytes : nullptr;
  clear_counts(block_counts);
  if constexpr (WARPS == 1) {
    WarpTeam<32> team;
    select_row<Keys, WORDS>(args, team, keys, place, row, nullptr, block_counts);
  } else {
    BlockTeam<WARPS> team{slots};
    select_row<Keys, WORDS>(args, team, keys, place, row, nullptr, block_counts);
  }
  add_to_total(block_counts, args.counts);
}

// Rows that a warp holds: blocks that write the keys of `span` columns of a block of rows to a slot of the ring, and blocks
// that select eight of these rows, a warp each. The one waits for the second-level cache, the other for the arithmetic.
template <class T, class Keys, int CHUNKS, int WORDS>
__global__ void __launch_bounds__(256, 2)
    keep_mask_ring_kernel(const KeepMaskArgs args, const TilePlan plan, const BlockGrid grid, const Ring ring, int span,
                          unsigned char* scratch) {
  ATTRDROP_DYNAMIC_SHARED(shared);
  ATTRDROP_SHARED(unsigned, block_counts, 4);
  ATTRDROP_SHARED(RingTurn, turn, 1);
  ATTRDROP_SHARED(BlockPlace, kept_place, 1);
  if (threadIdx.x == 0) {
    *turn = ring.next_turn();
    *kept_place = grid.place(turn->item, args.heads);
  }
  clear_counts(block_counts);
  if (turn->item >= ring.items) return;
  const BlockPlace& place = *kept_place;
  unsigned char* slot = scratch + turn->slot * int64_t{plan.block_rows} * plan.key_bytes;
  if (turn->is_fill) {
    const int last = place.row + plan.block_rows, wanted = args.is_causal && last < args.n_k ? last : args.n_k;
    const int first = turn->part * span, end = first + span < wanted ? first + span : wanted;
    ring.wait_until_free(*turn);
    if (first < end)
      multiply_tiles<T, Keys, CHUNKS, false>(args, plan, place, first, end, shared, slot, plan.key_bytes);
    ring.end_fill(*turn);
  } else {
    const int row = turn->part * 8 + static_cast<int>(threadIdx.x / 32);
    ring.wait_until_filled(*turn);
    WarpTeam<32> team;
    select_row<Keys, WORDS>(args, team, slot + row * plan.key_bytes, place, place.row + row, nullptr, block_counts);
    ring.end_read(*turn);
    add_to_total(block_counts, args.counts);
  }
}

}  // namespace attrdrop
