// occlude_blocks_ and fill_blocks_ on CUDA: one block of threads per image finds its most relevant cell and fills a box.
#pragma once
#include <climits>

#include "occlude_blocks.h"
#include "cuda/elements.cuh"
#include "cuda/ranked.cuh"

namespace attrdrop {

struct BlockArgs {
  BlockProblem problem;
  bool is_aligned;  // flat relevance that can be read 16 bytes at a time
};

constexpr unsigned OCCLUDE_THREADS = 512;  // at most; at least RANKING_THREADS

// Sum over the channels of cell `cell` of row `row`.
template <Element RELEVANCE>
__device__ __forceinline__ float score_of(const RelevanceView& map, int64_t row, uint32_t cell) {
  const auto* data = static_cast<const Bits<RELEVANCE>*>(map.data) + row * map.row;
  const int64_t at = map.is_flat ? cell : cell / map.width * map.line + cell % map.width * map.column;
  float score = widen<RELEVANCE>(data[at]);
  for (int32_t c = 1; c < map.channels; ++c) score += widen<RELEVANCE>(data[c * map.channel + at]);
  return score;
}

// Scores of the cells in one 16-byte unit, added to what is there where `adds`.
template <Element RELEVANCE, int CELLS>
__device__ __forceinline__ void unpack_scores(uint4 unit, bool adds, float (&score)[CELLS]) {
  const uint32_t words[4] = {unit.x, unit.y, unit.z, unit.w};
#pragma unroll
  for (int j = 0; j < CELLS; ++j) {
    const uint32_t bits = CELLS == 4 ? words[j % 4] : words[j / 2] >> (j % 2 ? 16 : 0) & 0xFFFFu;
    score[j] = adds ? score[j] + widen<RELEVANCE>(bits) : widen<RELEVANCE>(bits);
  }
}

// The largest score that a thread has seen, and its first cell.
struct Best {
  float score = -INFINITY;
  uint32_t cell = INT_MAX;
  __device__ __forceinline__ void see(float other, uint32_t at) {
    if (other > score) score = other, cell = at;  // never for NaN and -inf, which rank last
  }
};

// UNITS units of 16 bytes, a block of threads apart; all loads stand before the first comparison.
template <Element RELEVANCE, int UNITS>
__device__ __forceinline__ void see_units(const uint4* units, uint32_t first, Best& best) {
  constexpr int CELLS = RELEVANCE == Element::f32 ? 4 : 8;
  uint4 loaded[UNITS];
#pragma unroll
  for (int i = 0; i < UNITS; ++i) loaded[i] = units[first + i * blockDim.x];
#pragma unroll
  for (int i = 0; i < UNITS; ++i) {
    float scores[CELLS];
    unpack_scores<RELEVANCE>(loaded[i], false, scores);
#pragma unroll
    for (int j = 0; j < CELLS; ++j) best.see(scores[j], (first + i * blockDim.x) * CELLS + j);
  }
}

// One unit of each channel, summed.
template <Element RELEVANCE>
__device__ __forceinline__ void see_sum(const uint4* units, int64_t channel, int32_t channels, uint32_t unit, Best& best) {
  constexpr int CELLS = RELEVANCE == Element::f32 ? 4 : 8;
  float scores[CELLS];
  unpack_scores<RELEVANCE>(units[unit], false, scores);
  for (int32_t c = 1; c < channels; ++c) unpack_scores<RELEVANCE>(units[c * channel + unit], true, scores);
#pragma unroll
  for (int j = 0; j < CELLS; ++j) best.see(scores[j], unit * CELLS + j);
}

// First cell of the largest score of a row, for all threads of the block.
template <Element RELEVANCE>
__device__ int32_t first_peak(const RelevanceView& map, int64_t row, bool is_aligned) {
  constexpr uint32_t CELLS = RELEVANCE == Element::f32 ? 4 : 8, UNITS = 4;
  const uint32_t cells = static_cast<uint32_t>(map.height) * map.width, threads = blockDim.x;
  const uint32_t units = is_aligned ? cells / CELLS : 0;
  const auto* data = reinterpret_cast<const uint4*>(static_cast<const Bits<RELEVANCE>*>(map.data) + row * map.row);
  Best best;
  uint32_t unit = threadIdx.x;
  if (map.channels == 1)
    for (; unit + (UNITS - 1) * threads < units; unit += UNITS * threads) see_units<RELEVANCE, UNITS>(data, unit, best);
  for (; unit < units; unit += threads) see_sum<RELEVANCE>(data, map.channel / CELLS, map.channels, unit, best);
  for (uint32_t cell = units * CELLS + threadIdx.x; cell < cells; cell += threads)
    best.see(score_of<RELEVANCE>(map, row, cell), cell);

  // larger for a larger score, then for a lower cell
  unsigned long long key = static_cast<unsigned long long>(score_key(best.score)) << 32 | (UINT32_MAX - best.cell);
#pragma unroll
  for (int step = 16; step; step >>= 1) {
    const unsigned long long other = __shfl_xor_sync(ALL_LANES, key, step);
    key = other > key ? other : key;
  }
  ATTRDROP_SHARED(unsigned long long, keys, OCCLUDE_THREADS / 32);
  if (threadIdx.x % 32 == 0) keys[threadIdx.x / 32] = key;
  __syncthreads();
  for (uint32_t warp = 0; warp < threads / 32; ++warp) key = keys[warp] > key ? keys[warp] : key;
  const uint32_t cell = UINT32_MAX - static_cast<uint32_t>(key);
  return cell == INT_MAX ? 0 : static_cast<int32_t>(cell);  // nothing is above -inf: all cells tie
}

// The cell with `rank` cells before it in the order of (score descending, index ascending).
template <Element RELEVANCE>
__device__ int32_t ranked_cell(const RelevanceView& map, int64_t row, uint32_t rank) {
  const uint32_t cells = static_cast<uint32_t>(map.height) * map.width;
  const auto key_of = [&](uint32_t cell) { return score_key(score_of<RELEVANCE>(map, row, cell)); };
  const uint64_t key = ranked_key(key_of, cells, rank);
  return static_cast<int32_t>(cells - 1 - static_cast<uint32_t>(key & ((uint64_t{1} << index_bits(cells)) - 1)));
}

// Row of the relevance that belongs to an image, -1 where none does.
__device__ __forceinline__ int64_t relevance_row(const RelevanceView& map, int64_t image) {
  if (!map.has_index) return image;
  ATTRDROP_SHARED(int64_t, found, 1);
  if (threadIdx.x == 0) found[0] = -1;
  __syncthreads();
  for (int64_t m = threadIdx.x; m < map.count; m += blockDim.x)
    if (map.index[m * map.index_stride] == image) found[0] = m;
  __syncthreads();
  return found[0];
}

template <Element RELEVANCE>
__device__ __forceinline__ Box choose_box(const BlockArgs& a, int64_t image) {
  const BlockProblem& p = a.problem;
  const int32_t height = p.fill.height, width = p.fill.width;
  const uint32_t sample = sample_of(p.fill.sample_ids, image);
  const int64_t row = relevance_row(p.relevance, image);
  if (!is_drawn(p.rule.p, p.rule.seed, p.rule.per_batch, sample)) return {0, 0, 0, 0};
  ATTRDROP_SHARED(int32_t, size, 2);
  if (threadIdx.x < 32) {  // a lane for each attempt, while the other warps read
    const int lane = threadIdx.x;
    const Box mine = attempt_block(p.rule, sample, lane, height, width);
    const uint32_t fits = __ballot_sync(ALL_LANES, lane < BLOCK_ATTEMPTS && mine.height > 0);
    const int first = fits ? __popc((fits & (0u - fits)) - 1) : 0;
    const int32_t h = __shfl_sync(ALL_LANES, mine.height, first), w = __shfl_sync(ALL_LANES, mine.width, first);
    if (lane == 0) size[0] = fits ? h : 0, size[1] = w;
  }
  const Philox4 words = block_words(p.rule.seed, sample);
  int32_t y = 0, x = 0;
  if (p.relevance.data && row >= 0 && is_guided(p.rule.alpha, words)) {
    const RelevanceView& map = p.relevance;
    const int64_t cells = static_cast<int64_t>(map.height) * map.width;
    const int32_t rank = below(words.word[2], p.rule.k_centers < cells ? p.rule.k_centers : cells);
    const int32_t cell = rank == 0 ? first_peak<RELEVANCE>(map, row, a.is_aligned) : ranked_cell<RELEVANCE>(map, row, rank);
    y = cell_centre(cell / map.width, map.height, height);
    x = cell_centre(cell % map.width, map.width, width);
  } else {
    const int32_t pixel = below(words.word[3], static_cast<int64_t>(height) * width);
    y = pixel / width, x = pixel % width;
  }
  __syncthreads();
  if (size[0] == 0) return {0, 0, 0, 0};
  return place_block(p.rule, {0, 0, size[0], size[1]}, y, x, height, width);
}

// Element e of the random values of an image.
template <Element ELEMENT>
__device__ __forceinline__ Bits<ELEMENT> random_element(uint64_t seed, uint32_t sample, int64_t e) {
  const Philox4 r = element_words(seed, sample, e / 4);
  const uint32_t first = e & 2 ? r.word[2] : r.word[0], second = e & 2 ? r.word[3] : r.word[1];
  if constexpr (ELEMENT == Element::u8) {
    return static_cast<uint8_t>((e & 1 ? second : first) >> 24);
  } else {
    const float turn = normal_turn(second);
#if defined(__CUDACC__)
    const float wave = e & 1 ? sinpif(turn) : cospif(turn);
#else
    const float wave = e & 1 ? std::sin(3.14159265f * turn) : std::cos(3.14159265f * turn);
#endif
    return narrow<ELEMENT>(normal_radius(first) * wave);
  }
}

// A warp for each line of the replaced region: of one channel, or of all where they stand innermost.
template <Element ELEMENT>
__device__ __forceinline__ void fill_image(const BlockFill& fill, int64_t image, Box box) {
  using T = Bits<ELEMENT>;
  const int32_t channels = fill.channels, bottom = box.top + box.height, right = box.left + box.width;
  const bool is_inner = is_channels_last(fill.images, channels);
  const int32_t top = fill.keep ? 0 : box.top, left = fill.keep ? 0 : box.left;
  const int32_t lines = fill.keep ? fill.height : box.height;
  const int64_t run = (fill.keep ? fill.width : box.width) * (is_inner ? int64_t{channels} : 1);
  const uint32_t sample = sample_of(fill.sample_ids, image);
  T* out = static_cast<T*>(fill.images.data) + image * fill.images.image;
  const T* in = static_cast<const T*>(fill.source.data);
  if (in) in += source_image(fill, image) * fill.source.image;

  const int64_t tasks = is_inner ? lines : int64_t{lines} * channels;
  for (int64_t task = threadIdx.x / 32; task < tasks; task += blockDim.x / 32) {
    const int32_t y = top + static_cast<int32_t>(task % lines), channel = static_cast<int32_t>(task / lines);
    const bool line_keeps = fill.keep && y >= box.top && y < bottom;
    for (int64_t i = threadIdx.x % 32; i < run; i += 32) {
      const int32_t x = left + static_cast<int32_t>(is_inner ? i / channels : i);
      const int32_t c = is_inner ? static_cast<int32_t>(i % channels) : channel;
      if (line_keeps && x >= box.left && x < right) continue;
      T value;
      if (in) value = in[c * fill.source.channel + y * fill.source.row + x * fill.source.column];
      else if (fill.is_random)
        value = random_element<ELEMENT>(fill.seed, sample, (int64_t{c} * fill.height + y) * fill.width + x);
      else value = constant_at<T>(fill.constant, c);
      out[c * fill.images.channel + y * fill.images.row + x * fill.images.column] = value;
    }
  }
}

// Grid: one block of threads per image; two on a processor keep its memory busy.
template <Element RELEVANCE, Element ELEMENT>
__global__ void __launch_bounds__(OCCLUDE_THREADS, 2) occlude_blocks_kernel(BlockArgs a) {
  const int64_t image = blockIdx.x;
  const Box box = choose_box<RELEVANCE>(a, image);
  if (threadIdx.x == 0) {
    int32_t* out = a.problem.boxes + 4 * image;
    out[0] = box.top, out[1] = box.left, out[2] = box.height, out[3] = box.width;
  }
  if (box.height > 0) fill_image<ELEMENT>(a.problem.fill, image, box);
}

template <Element ELEMENT>
__global__ void __launch_bounds__(OCCLUDE_THREADS) fill_blocks_kernel(BlockFill fill, const int32_t* boxes) {
  const int64_t image = blockIdx.x;
  const Box box = clip_box(boxes + 4 * image, fill.height, fill.width);
  if (box.height > 0) fill_image<ELEMENT>(fill, image, box);
}

inline bool is_aligned(const RelevanceView& map) {
  const int64_t item = map.type == Element::f32 ? 4 : 2;
  const int64_t offsets = static_cast<int64_t>(reinterpret_cast<uintptr_t>(map.data)) |
                          (map.count > 1 ? item * map.row : 0) | (map.channels > 1 ? item * map.channel : 0);
  return map.is_flat && offsets % 16 == 0;
}

template <Element RELEVANCE>
void launch_occlude_blocks(const BlockArgs& a, unsigned threads, Stream stream) {
  const auto count = static_cast<unsigned>(a.problem.fill.count);
  const Element element = a.problem.fill.type;
  if (element == Element::u8)
    ATTRDROP_LAUNCH((occlude_blocks_kernel<RELEVANCE, Element::u8>), count, threads, 0, stream, a);
  else if (element == Element::f16)
    ATTRDROP_LAUNCH((occlude_blocks_kernel<RELEVANCE, Element::f16>), count, threads, 0, stream, a);
  else if (element == Element::bf16)
    ATTRDROP_LAUNCH((occlude_blocks_kernel<RELEVANCE, Element::bf16>), count, threads, 0, stream, a);
  else
    ATTRDROP_LAUNCH((occlude_blocks_kernel<RELEVANCE, Element::f32>), count, threads, 0, stream, a);
}

inline void launch_occlude_blocks(const BlockProblem& p, Stream stream) {
  if (p.fill.count == 0) return;
  BlockArgs a{p, is_aligned(p.relevance)};
  if (p.fill.height == 0 || p.fill.width == 0) a.problem.rule.p = 0;  // there is no pixel to centre on
  const RelevanceView& map = p.relevance;
  const int64_t cells = static_cast<int64_t>(map.height) * map.width;
  const unsigned threads = cells * map.channels >= 8192 ? OCCLUDE_THREADS : RANKING_THREADS;
  if (!map.data || map.type == Element::f32) launch_occlude_blocks<Element::f32>(a, threads, stream);
  else if (map.type == Element::bf16) launch_occlude_blocks<Element::bf16>(a, threads, stream);
  else launch_occlude_blocks<Element::f16>(a, threads, stream);
}

inline void launch_fill_blocks(const BlockFill& fill, const int32_t* boxes, Stream stream) {
  const auto count = static_cast<unsigned>(fill.count);
  if (count == 0) return;
  if (fill.type == Element::u8) ATTRDROP_LAUNCH(fill_blocks_kernel<Element::u8>, count, 256, 0, stream, fill, boxes);
  else if (fill.type == Element::f16) ATTRDROP_LAUNCH(fill_blocks_kernel<Element::f16>, count, 256, 0, stream, fill, boxes);
  else if (fill.type == Element::bf16) ATTRDROP_LAUNCH(fill_blocks_kernel<Element::bf16>, count, 256, 0, stream, fill, boxes);
  else ATTRDROP_LAUNCH(fill_blocks_kernel<Element::f32>, count, 256, 0, stream, fill, boxes);
}

}  // namespace attrdrop
