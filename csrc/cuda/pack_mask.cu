// pack_mask, unpack_mask, transpose_mask on CUDA: one thread per output word or byte.
#include <cuda_runtime.h>

#include "checks.h"
#include "cuda/launch.h"

namespace attrdrop {

constexpr int THREADS = 256;

__global__ void pack_mask_kernel(const uint8_t* mask, uint32_t* bits, int64_t total, int64_t words, int64_t n,
                                 int64_t row_stride, int64_t column_stride) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step)
    bits[i] = pack_word(mask + i / words * row_stride, i % words, n, column_stride);
}

__global__ void unpack_mask_kernel(const uint32_t* bits, uint8_t* mask, int64_t total, int64_t n, int64_t row_stride) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step)
    mask[i] = test_bit(bits + i / n * row_stride, i % n);
}

// One thread per (head, key column, group of 32 rows): gathers its 32 bits, which lie in 32 cached words.
__global__ void transpose_mask_kernel(const uint32_t* rows, uint32_t* cols, int64_t total, int64_t n_q, int64_t n_k,
                                      int64_t head_stride, int64_t row_stride) {
  const int64_t groups = word_count(n_q), step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
    const int64_t column = i % n_k, group = i / n_k % groups, head = i / (n_k * groups);
    uint32_t word = 0;
    for (int64_t r = 0; r < 32 && 32 * group + r < n_q; ++r)
      word |= static_cast<uint32_t>(test_bit(rows + head * head_stride + (32 * group + r) * row_stride, column)) << r;
    cols[(head * n_k + column) * groups + group] = word;
  }
}

static unsigned grid(int64_t total) {
  const int64_t blocks = (total + THREADS - 1) / THREADS;
  return static_cast<unsigned>(blocks < 65535 ? blocks : 65535);
}

Tensor pack_mask_cuda(Tensor mask) {
  check_dim(mask, 2, "mask");
  const int64_t rows = mask.size(0), n = mask.size(1), words = word_count(n), total = rows * words;
  Tensor bits = new_int32(mask, {rows, words});
  if (total > 0)
    ATTRDROP_LAUNCH(pack_mask_kernel, grid(total), THREADS, 0, mask, static_cast<const uint8_t*>(mask.const_data_ptr()),
                    static_cast<uint32_t*>(bits.mutable_data_ptr()), total, words, n, mask.stride(0), mask.stride(1));
  return bits;
}

Tensor unpack_mask_cuda(Tensor bits, int64_t n) {
  check_dim(bits, 2, "bits");
  check_int32(bits, "bits");
  const int64_t rows = bits.size(0), total = rows * n;
  STD_TORCH_CHECK(bits.size(1) == word_count(n), "bits must have ", word_count(n), " words a row for n = ", n);
  Tensor mask = torch::stable::new_empty(bits, {rows, n}, ScalarType::Bool);
  if (total > 0)
    ATTRDROP_LAUNCH(unpack_mask_kernel, grid(total), THREADS, 0, bits, static_cast<const uint32_t*>(bits.const_data_ptr()),
                    static_cast<uint8_t*>(mask.mutable_data_ptr()), total, n, bits.stride(0));
  return mask;
}

Tensor transpose_mask_cuda(Tensor rows, int64_t n_k) {
  check_dim(rows, 3, "rows");
  check_int32(rows, "rows");
  const int64_t heads = rows.size(0), n_q = rows.size(1);
  Tensor cols = new_int32(rows, {heads, n_k, word_count(n_q)});
  const int64_t total = heads * n_k * word_count(n_q);
  if (total > 0)
    ATTRDROP_LAUNCH(transpose_mask_kernel, grid(total), THREADS, 0, rows,
                    static_cast<const uint32_t*>(rows.const_data_ptr()), static_cast<uint32_t*>(cols.mutable_data_ptr()),
                    total, n_q, n_k, rows.stride(0), rows.stride(1));
  return cols;
}

}  // namespace attrdrop

STABLE_TORCH_LIBRARY_IMPL(attrdrop, CUDA, m) {
  m.impl("pack_mask", TORCH_BOX(&attrdrop::pack_mask_cuda));
  m.impl("unpack_mask", TORCH_BOX(&attrdrop::unpack_mask_cuda));
  m.impl("transpose_mask", TORCH_BOX(&attrdrop::transpose_mask_cuda));
}
