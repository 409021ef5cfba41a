// How keep_mask is cut into blocks and launched.
#pragma once
#include <cmath>

#include "cuda/keep_mask.cuh"
#include "cuda/pack_mask.cuh"

namespace attrdrop {

// What a launch may use. The result does not depend on it.
struct Limits {
  int shared_bytes;       // that a block may ask for
  int64_t scratch_bytes;  // for the keys of long rows
};

constexpr int64_t SCRATCH_BYTES = int64_t{40} << 20;  // so that keys stay in the second-level cache (A100 40, H100 50 MB)
constexpr int KEY_SPAN = 512;                         // columns of a block that writes keys to scratch memory

// Rows that 16 warps hold in registers. Counts of bfloat16 keys are 16 bits wide.
inline int64_t longest_row(const KeepMaskArgs& args) { return args.is_ranked && !args.bf16_keys ? 32768 : 65535; }

// The threshold of a row like a normal one is found in about four guesses, that of the slowest of eight in seven. Rows
// weighted by a softmax have long tails: there halving is faster.
constexpr int GUESSES = 10;

// Where the threshold of a normally distributed row with this share below it lies, in standard deviations from the mean,
// and by how many of them it moves for a share more.
struct NormalThreshold {
  double quantile, spacing;
};

inline NormalThreshold normal_threshold(double share) {
  const double wanted = share < 0.001 ? 0.001 : share > 0.999 ? 0.999 : share;
  double low = -8, high = 8;
  for (int i = 0; i < 40; ++i) {
    const double middle = (low + high) / 2;
    (std::erfc(-middle / std::sqrt(2.0)) / 2 < wanted ? low : high) = middle;
  }
  return {low, std::sqrt(2 * std::acos(-1.0)) * std::exp(low * low / 2)};
}

// The first cut that fits; tile_columns is 0 where none does.
template <class T, class Keys, bool WEIGHTED>
TilePlan tile_plan(const KeepMaskArgs& args, bool is_long, const Limits& limits) {
  const auto make = [&](int block_rows, int threads, int tile_columns, int stages) {
    const int words = static_cast<int>(word_count(args.n_k));
    TilePlan plan{};
    plan.block_rows = block_rows, plan.threads = threads, plan.tile_columns = tile_columns, plan.stages = stages;
    while (16 << plan.row_groups_log2 < block_rows) ++plan.row_groups_log2;
    plan.key_bytes = args.is_ranked ? words * Keys::WORD_BYTES + (is_long ? 0 : 32) : (words + 3) / 4 * 16;
    plan.strip_bytes = is_long ? 0 : block_rows * plan.key_bytes;
    if (!args.is_ranked) return plan;
    plan.x_bytes = block_rows * Rows<T>::row_bytes(args.d);
    plan.y_bytes = tile_columns * Rows<T>::row_bytes(args.d);
    if (!WEIGHTED) return plan;
    plan.q_bytes = block_rows * Rows<T>::row_bytes(args.d_weight);
    plan.k_bytes = tile_columns * Rows<T>::row_bytes(args.d_weight);
    return plan;
  };
  // Two blocks on a multiprocessor, one multiplying while the other selects, are better than a large one.
  const int whole = limits.shared_bytes - 1024, half = (limits.shared_bytes + 1024) / 2 - 2048;
  struct Size {
    int threads, bytes;
  };
  const Size sizes[] = {{256, half}, {MOST_THREADS<Keys, WEIGHTED>, whole}};
  const int64_t slices = int64_t{args.batch} * args.heads;
  for (const int block_rows : {128, 64, 32, 16}) {
    if (block_rows == 128 && (!is_long || args.n_q <= 64)) continue;
    const bool is_too_large = slices * ((args.n_q + block_rows - 1) / block_rows) < 128 || args.n_q <= block_rows / 2;
    if (block_rows > 16 && !is_long && is_too_large) continue;  // more blocks fill the device better
    for (const Size& size : sizes)
      for (const int tile_columns : {128, 64, 32})
        if (const TilePlan plan = make(block_rows, size.threads, tile_columns, 2); plan.shared_bytes() <= size.bytes)
          return plan;
  }
  const TilePlan least = make(16, 256, 32, 1);
  return least.shared_bytes() <= whole ? least : TilePlan{};
}

inline BlockGrid block_grid(const KeepMaskArgs& args, const TilePlan& plan) {
  const int32_t rows = 32 * static_cast<int32_t>(word_count(args.n_q));  // blocks of 16 rows come in pairs
  return {plan.block_rows, (rows + plan.block_rows - 1) / plan.block_rows, args.groups};
}

template <class Keys, int WORDS>
void launch_select(const KeepMaskArgs& args, const BlockGrid& grid, int64_t first, int64_t blocks, int64_t key_bytes,
                   const unsigned char* scratch, Stream stream) {
  const int64_t rows = blocks * grid.block_rows, lane_columns = 32 * 32 * WORDS;
  const unsigned row_blocks = static_cast<unsigned>(rows);
  if (args.n_k <= lane_columns)
    ATTRDROP_LAUNCH((keep_mask_select_kernel<Keys, WORDS, 1>), row_blocks / 8, 256, 0, stream, args, grid, first,
                    key_bytes, scratch);
  else if (args.n_k <= 4 * lane_columns)
    ATTRDROP_LAUNCH((keep_mask_select_kernel<Keys, WORDS, 4>), row_blocks, 128, 0, stream, args, grid, first,
                    key_bytes, scratch);
  else
    ATTRDROP_LAUNCH((keep_mask_select_kernel<Keys, WORDS, 16>), row_blocks, 512, 0, stream, args, grid, first,
                    key_bytes, scratch);
}

// new_scratch(bytes) gives memory for the length of the launch.
template <class T, class Keys, int CHUNKS, bool WEIGHTED, class NewScratch>
void launch_long(const KeepMaskArgs& args, const Limits& limits, NewScratch new_scratch, Stream stream) {
  const TilePlan plan = tile_plan<T, Keys, WEIGHTED>(args, true, limits);
  require(plan.tile_columns > 0, "keep_mask: the head dimension is too large for the shared memory of this device");
  const BlockGrid grid = block_grid(args, plan);
  const int64_t total = int64_t{args.batch} * args.heads * grid.per_head, block_bytes = int64_t{plan.key_bytes} * plan.block_rows;
  const unsigned spans = static_cast<unsigned>((args.n_k + KEY_SPAN - 1) / KEY_SPAN);
  const auto transpose = [&] {
    if (!args.cols) return;
    const int64_t row_words = word_count(args.n_k);
    launch_transpose_mask(args.rows, args.cols, int64_t{args.batch} * args.heads, args.n_q, args.n_k,
                          args.n_q * row_words, row_words, stream);
  };
  if constexpr (CHUNKS > 0) {  // the products that are worth a kernel of their own
    Ring ring = make_ring(static_cast<unsigned>(total), spans, plan.block_rows / 8, limits.scratch_bytes / block_bytes);
    const bool is_countable = total < INT32_MAX && ring.tickets() <= INT32_MAX;
    if (args.n_k <= 32 * 32 * Keys::MOST_WORDS && plan.threads == 256 && is_countable) {
      auto* scratch = static_cast<unsigned char*>(new_scratch(ring.slots * block_bytes + Ring::counter_bytes(ring.slots)));
      ring.counters = reinterpret_cast<unsigned*>(scratch + ring.slots * block_bytes);
      clear_memory(ring.counters, Ring::counter_bytes(ring.slots), stream);
      ATTRDROP_LAUNCH((keep_mask_ring_kernel<T, Keys, CHUNKS, Keys::MOST_WORDS>), static_cast<unsigned>(ring.tickets()), 256,
                      plan.shared_bytes(), stream, args, plan, grid, ring, KEY_SPAN, scratch);
      return transpose();
    }
  }
  int64_t chunk = total;
  unsigned char* scratch = nullptr;
  if (args.is_ranked) {
    const int64_t most = limits.scratch_bytes / block_bytes;
    chunk = most < 1 ? 1 : most < total ? most : total;
    scratch = static_cast<unsigned char*>(new_scratch(chunk * block_bytes));
  }
  for (int64_t first = 0; first < total; first += chunk) {
    const int64_t blocks = first + chunk < total ? chunk : total - first;
    const dim3 key_grid(static_cast<unsigned>(blocks), spans);
    if (scratch)
      ATTRDROP_LAUNCH((keep_mask_keys_kernel<T, Keys, CHUNKS, WEIGHTED>), key_grid, plan.threads, plan.shared_bytes(),
                      stream, args, plan, grid, first, KEY_SPAN, scratch);
    launch_select<Keys, Keys::MOST_WORDS>(args, grid, first, blocks, plan.key_bytes, scratch, stream);
  }
  transpose();
}

template <class T, class Keys, int CHUNKS, bool WEIGHTED, class NewScratch>
void launch_keep_mask_as(const KeepMaskArgs& args, const Limits& limits, NewScratch new_scratch, Stream stream) {
  const TilePlan plan = tile_plan<T, Keys, WEIGHTED>(args, false, limits);
  if (args.n_k > SHORT_ROW || plan.tile_columns == 0)
    return launch_long<T, Keys, CHUNKS, WEIGHTED>(args, limits, new_scratch, stream);
  const BlockGrid grid = block_grid(args, plan);
  const unsigned blocks = static_cast<unsigned>(int64_t{args.batch} * args.heads * grid.per_head);
  ATTRDROP_LAUNCH((keep_mask_kernel<T, Keys, CHUNKS, WEIGHTED>), blocks, plan.threads, plan.shared_bytes(), stream, args,
                  plan, grid);
}

template <class T, class NewScratch>
void launch_keep_mask_half(const KeepMaskArgs& args, const Limits& limits, NewScratch new_scratch, Stream stream) {
  if (args.weight_lse && args.bf16_keys) launch_keep_mask_as<T, Bf16Keys, 0, true>(args, limits, new_scratch, stream);
  else if (args.weight_lse) launch_keep_mask_as<T, F32Keys, 0, true>(args, limits, new_scratch, stream);
  else if (!args.bf16_keys) launch_keep_mask_as<T, F32Keys, 0, false>(args, limits, new_scratch, stream);
  else if (args.d > 128 || args.d == 0 || args.bias.data)
    launch_keep_mask_as<T, Bf16Keys, 0, false>(args, limits, new_scratch, stream);
  else if (args.d > 64) launch_keep_mask_as<T, Bf16Keys, 4, false>(args, limits, new_scratch, stream);
  else launch_keep_mask_as<T, Bf16Keys, 2, false>(args, limits, new_scratch, stream);
}

// All of keep_mask; rows, cols and counts of args are set. Outputs are not empty, n_k <= longest_row(args).
template <class NewScratch>
void launch_keep_mask(KeepMaskArgs args, const Limits& limits, NewScratch new_scratch, Stream stream) {
  const NormalThreshold normal = normal_threshold(args.share);
  args.normal_quantile = static_cast<float>(normal.quantile), args.normal_spacing = static_cast<float>(normal.spacing);
  args.guesses = args.weight_lse ? 0 : GUESSES;
  args.bernoulli = bernoulli(args.seed, args.threshold);
  if (!args.is_ranked) return launch_keep_mask_as<F32, Bf16Keys, 0, false>(args, limits, new_scratch, stream);
  if (args.dtype == Dtype::bf16) return launch_keep_mask_half<Bf16>(args, limits, new_scratch, stream);
  if (args.dtype == Dtype::f16) return launch_keep_mask_half<F16>(args, limits, new_scratch, stream);
  if (args.weight_lse && args.bf16_keys) launch_keep_mask_as<F32, Bf16Keys, 0, true>(args, limits, new_scratch, stream);
  else if (args.weight_lse) launch_keep_mask_as<F32, F32Keys, 0, true>(args, limits, new_scratch, stream);
  else if (args.bf16_keys) launch_keep_mask_as<F32, Bf16Keys, 0, false>(args, limits, new_scratch, stream);
  else launch_keep_mask_as<F32, F32Keys, 0, false>(args, limits, new_scratch, stream);
}

}  // namespace attrdrop
