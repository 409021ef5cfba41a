// pack_mask, unpack_mask, transpose_mask on CUDA.
#pragma once
#include "bits.h"
#include "cuda/launch.h"
#include "cuda/warp.cuh"

namespace attrdrop {

constexpr int PACK_THREADS = 256;

// One thread per output word.
template <int THREADS>
__global__ void pack_mask_kernel(const uint8_t* mask, uint32_t* bits, int64_t total, int64_t words, int64_t n,
                                 int64_t row_stride, int64_t column_stride) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < total; i += step)
    bits[i] = pack_word(mask + i / words * row_stride, i % words, n, column_stride);
}

// One thread per output byte.
template <int THREADS>
__global__ void unpack_mask_kernel(const uint32_t* bits, uint8_t* mask, int64_t total, int64_t n, int64_t row_stride) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < total; i += step)
    mask[i] = test_bit(bits + i / n * row_stride, i % n);
}

// One warp per (head, 32 rows, word of 32 columns).
template <int THREADS>
__global__ void transpose_mask_kernel(const uint32_t* rows, uint32_t* cols, int64_t total, int64_t n_q, int64_t n_k,
                                      int64_t head_stride, int64_t row_stride) {
  const int64_t words = word_count(n_k), groups = word_count(n_q);
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (THREADS / 32);
  const int lane = threadIdx.x % 32;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32; i < total; i += warps) {
    const int64_t word = i % words, group = i / words % groups, head = i / (words * groups);
    const int64_t row = 32 * group + lane, column = 32 * word + lane;
    const uint32_t mine = row < n_q ? rows[head * head_stride + row * row_stride + word] : 0u;
    const uint32_t transposed = warp_transpose(mine, lane);
    if (column < n_k) cols[(head * n_k + column) * groups + group] = transposed;
  }
}

inline unsigned pack_grid(int64_t threads) {
  const int64_t blocks = (threads + PACK_THREADS - 1) / PACK_THREADS;
  return static_cast<unsigned>(blocks < 65535 ? blocks : 65535);
}

// mask (rows, n) bytes -> bits (rows, words)
inline void launch_pack_mask(const uint8_t* mask, uint32_t* bits, int64_t rows, int64_t n, int64_t row_stride,
                             int64_t column_stride, Stream stream) {
  const int64_t words = word_count(n), total = rows * words;
  if (total > 0)
    ATTRDROP_LAUNCH(pack_mask_kernel<PACK_THREADS>, pack_grid(total), PACK_THREADS, 0, stream, mask, bits, total, words, n, row_stride,
                    column_stride);
}

inline void launch_unpack_mask(const uint32_t* bits, uint8_t* mask, int64_t rows, int64_t n, int64_t row_stride,
                               Stream stream) {
  if (rows * n > 0)
    ATTRDROP_LAUNCH(unpack_mask_kernel<PACK_THREADS>, pack_grid(rows * n), PACK_THREADS, 0, stream, bits, mask, rows * n, n, row_stride);
}

// rows (heads, n_q, words(n_k)) -> cols (heads, n_k, words(n_q)), contiguous
inline void launch_transpose_mask(const uint32_t* rows, uint32_t* cols, int64_t heads, int64_t n_q, int64_t n_k,
                                  int64_t head_stride, int64_t row_stride, Stream stream) {
  const int64_t total = heads * word_count(n_k) * word_count(n_q);
  if (total > 0)
    ATTRDROP_LAUNCH(transpose_mask_kernel<PACK_THREADS>, pack_grid(32 * total), PACK_THREADS, 0, stream, rows, cols, total, n_q, n_k,
                    head_stride, row_stride);
}

}  // namespace attrdrop
