// pack_mask, unpack_mask, transpose_mask on the CPU.
#include <array>
#include <cstring>

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
  const PackProblem p{static_cast<const uint8_t*>(mask.const_data_ptr()), mask.stride(0), mask.stride(1), n,
                      static_cast<uint32_t*>(bits.mutable_data_ptr())};
  torch::stable::parallel_for(0, rows * words, GRAIN, [&](int64_t begin, int64_t end) { kernels().pack_words(p, begin, end); });
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

// (rows, words(n)) -> (rows, n) of the elements that stand for set and unset bits. Not in cpu/isa: tables write as fast
// as memory takes it.
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

// (heads, n_q, words(n_k)) -> (heads, n_k, words(n_q))
Tensor transpose_mask_cpu(Tensor rows, int64_t n_k) {
  check_dim(rows, 3, "rows");
  check_int32(rows, "rows");
  const int64_t heads = rows.size(0), n_q = rows.size(1), words = word_count(n_k), column_words = word_count(n_q);
  STD_TORCH_CHECK(rows.size(2) == words, "rows must have ", words, " words for n_k = ", n_k, ", got ", rows.size(2));
  Tensor cols = new_int32(rows, {heads, n_k, column_words});
  const TransposeProblem p{static_cast<const uint32_t*>(rows.const_data_ptr()), rows.stride(0), rows.stride(1), n_q, n_k,
                           static_cast<uint32_t*>(cols.mutable_data_ptr())};
  torch::stable::parallel_for(0, heads * column_words, GRAIN / 32,
                              [&](int64_t begin, int64_t end) { kernels().transpose_groups(p, begin, end); });
  return cols;
}

}  // namespace attrdrop
