// pack_mask, unpack_mask, additive_mask, transpose_mask on the CPU.
#include <array>
#include <cstring>
#include <limits>

#include "checks.h"
#include "ops.h"

namespace attrdrop {

constexpr int64_t GRAIN = 1024;  // words

// Calls run(index, row, word) for the words [begin, end) of rows of `words`, without a division for each.
template <class Run>
static void for_words(int64_t begin, int64_t end, int64_t words, Run run) {
  int64_t row = begin / words, word = begin % words;
  for (int64_t i = begin; i < end; ++i) {
    run(i, row, word);
    if (++word == words) {
      word = 0;
      ++row;
    }
  }
}

// 32 unit-stride bytes to a word: eight at a time, their top bits gathered by one multiplication.
static uint32_t pack_full_word(const uint8_t* bytes) {
  constexpr uint64_t low_bits = 0x7F7F7F7F7F7F7F7Full, gather = 0x0102040810204080ull;
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    uint64_t eight;
    std::memcpy(&eight, bytes + 8 * i, sizeof eight);
    const uint64_t top = (((eight & low_bits) + low_bits) | eight) & ~low_bits;  // 0x80 where the byte is not 0
    word |= static_cast<uint32_t>((top >> 7) * gather >> 56) << (8 * i);
  }
  return word;
}

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
    for_words(begin, end, words, [=](int64_t i, int64_t row_index, int64_t word) {
      const uint8_t* row = in + row_index * row_stride;
      const bool is_full = column_stride == 1 && 32 * word + 32 <= n;
      out[i] = is_full ? pack_full_word(row + 32 * word) : pack_word(row, word, n, column_stride);
    });
  });
  return bits;
}

// Element for each of `Bits` bits, for every pattern of them: unpacking copies whole patterns.
template <class Element, int Bits>
static constexpr auto patterns(Element set, Element unset) {
  std::array<std::array<Element, Bits>, 1 << Bits> table{};
  for (unsigned pattern = 0; pattern < table.size(); ++pattern)
    for (int j = 0; j < Bits; ++j) table[pattern][j] = (pattern >> j) & 1u ? set : unset;
  return table;
}

// (rows, words(n)) -> (rows, n) of the elements that stand for set and unset bits.
template <class Element, int Bits>
static void unpack(const Tensor& bits, int64_t n, const std::array<std::array<Element, Bits>, 1 << Bits>& table,
                   Element* out) {
  const int64_t rows = bits.size(0), words = word_count(n), row_stride = bits.stride(0);
  const auto* in = static_cast<const uint32_t*>(bits.const_data_ptr());
  torch::stable::parallel_for(0, rows * words, GRAIN, [=, &table](int64_t begin, int64_t end) {
    for_words(begin, end, words, [=, &table](int64_t, int64_t row, int64_t word) {
      const uint32_t value = in[row * row_stride + word];
      Element expanded[32];
      for (int j = 0; j < 32; j += Bits)
        std::memcpy(expanded + j, table[(value >> j) & ((1u << Bits) - 1)].data(), sizeof(Element) * Bits);
      const int64_t left = n - 32 * word;
      if (left >= 32)  // a size known at compile time
        std::memcpy(out + row * n + 32 * word, expanded, sizeof expanded);
      else
        std::memcpy(out + row * n + 32 * word, expanded, sizeof(Element) * left);
    });
  });
}

static void check_packed(const Tensor& bits, int64_t n) {
  check_dim(bits, 2, "bits");
  check_int32(bits, "bits");
  STD_TORCH_CHECK(bits.size(1) == word_count(n), "bits must have ", word_count(n), " words a row for n = ", n, ", got ",
                  bits.size(1));
}

Tensor unpack_mask_cpu(Tensor bits, int64_t n) {
  static constexpr auto table = patterns<uint8_t, 8>(1, 0);
  check_packed(bits, n);
  Tensor mask = torch::stable::new_empty(bits, {bits.size(0), n}, ScalarType::Bool);
  unpack<uint8_t, 8>(bits, n, table, static_cast<uint8_t*>(mask.mutable_data_ptr()));
  return mask;
}

// float32: 0 where the bit is set, -inf elsewhere.
Tensor additive_mask_cpu(Tensor bits, int64_t n) {
  static constexpr auto table = patterns<float, 4>(0.0f, -std::numeric_limits<float>::infinity());
  check_packed(bits, n);
  Tensor mask = torch::stable::new_empty(bits, {bits.size(0), n}, ScalarType::Float);
  unpack<float, 4>(bits, n, table, static_cast<float*>(mask.mutable_data_ptr()));
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
