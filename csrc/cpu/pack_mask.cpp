// pack_mask, unpack_mask, transpose_mask on the CPU.
#include "checks.h"
#include "ops.h"

namespace attrdrop {

constexpr int64_t GRAIN = 1024;  // words

// (..., n) bool -> (..., words) int32; the caller has flattened to (rows, n).
Tensor pack_mask_cpu(Tensor mask) {
  check_dim(mask, 2, "mask");
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Bool, "mask must be bool");
  const int64_t rows = mask.size(0), n = mask.size(1), words = word_count(n);
  Tensor bits = new_int32(mask, {rows, words});
  const auto* in = static_cast<const uint8_t*>(mask.const_data_ptr());
  auto* out = static_cast<uint32_t*>(bits.mutable_data_ptr());
  const int64_t row_stride = mask.stride(0), column_stride = mask.stride(1);
  torch::stable::parallel_for(0, rows * words, GRAIN, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = pack_word(in + i / words * row_stride, i % words, n, column_stride);
  });
  return bits;
}

Tensor unpack_mask_cpu(Tensor bits, int64_t n) {
  check_dim(bits, 2, "bits");
  check_int32(bits, "bits");
  const int64_t rows = bits.size(0), words = word_count(n);
  STD_TORCH_CHECK(bits.size(1) == words, "bits must have ", words, " words a row for n = ", n, ", got ", bits.size(1));
  Tensor mask = torch::stable::new_empty(bits, {rows, n}, ScalarType::Bool);
  const auto* in = static_cast<const uint32_t*>(bits.const_data_ptr());
  auto* out = static_cast<uint8_t*>(mask.mutable_data_ptr());
  const int64_t row_stride = bits.stride(0);
  torch::stable::parallel_for(0, rows * words, GRAIN, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / words, word = i % words;
      const uint32_t value = in[row * row_stride + word];
      uint8_t* at = out + row * n + 32 * word;
      const int columns = static_cast<int>(n - 32 * word < 32 ? n - 32 * word : 32);
      for (int j = 0; j < columns; ++j) at[j] = (value >> j) & 1u;
    }
  });
  return mask;
}

// (heads, n_q, words(n_k)) -> (heads, n_k, words(n_q))
Tensor transpose_mask_cpu(Tensor rows, int64_t n_k) {
  check_dim(rows, 3, "rows");
  check_int32(rows, "rows");
  const int64_t heads = rows.size(0), n_q = rows.size(1), words = word_count(n_k), column_words = word_count(n_q);
  STD_TORCH_CHECK(rows.size(2) == words, "rows must have ", words, " words for n_k = ", n_k, ", got ", rows.size(2));
  Tensor cols = new_int32(rows, {heads, n_k, column_words});
  const auto* in = static_cast<const uint32_t*>(rows.const_data_ptr());
  auto* out = static_cast<uint32_t*>(cols.mutable_data_ptr());
  const int64_t head_stride = rows.stride(0), row_stride = rows.stride(1);
  torch::stable::parallel_for(0, heads * column_words, GRAIN / 32, [=](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / column_words, group = task % column_words;
      for (int64_t w = 0; w < words; ++w) {
        uint32_t block[32] = {};
        for (int64_t r = 0; r < 32 && 32 * group + r < n_q; ++r)
          block[r] = in[head * head_stride + (32 * group + r) * row_stride + w];
        transpose_32x32(block);
        for (int64_t j = 0; j < 32 && 32 * w + j < n_k; ++j)
          out[(head * n_k + 32 * w + j) * column_words + group] = block[j];
      }
    }
  });
  return cols;
}

}  // namespace attrdrop
