// keep_mask, random_keep_mask and keep_scores over tensors of torch.
#pragma once
#include <tuple>

#include "checks.h"
#include "keep_mask_args.h"

namespace attrdrop {

using KeepMaskTensors = std::tuple<Tensor, Tensor, Tensor>;
using KeepScoresTensors = std::tuple<Tensor, Tensor>;

// Zeros.
inline Tensor new_counts(const Tensor& like, KeepMaskArgs& args) {
  Tensor counts = torch::stable::new_empty(like, {4}, ScalarType::Long);
  torch::stable::zero_(counts);
  args.counts = static_cast<unsigned long long*>(counts.mutable_data_ptr());
  return counts;
}

// New rows, cols of some words and counts, to which args points from now on. The counts are zero, and bits of no row or
// column too.
inline KeepMaskTensors new_mask_tensors(const Tensor& like, KeepMaskArgs& args, int64_t column_words) {
  Tensor rows = new_int32(like, {args.batch, args.heads, args.n_q, word_count(args.n_k)});
  Tensor cols = new_int32(like, {args.batch, args.heads, args.n_k, column_words});
  Tensor counts = new_counts(like, args);
  if (is_empty(args)) {
    torch::stable::zero_(rows);
    torch::stable::zero_(cols);
  }
  args.rows = static_cast<uint32_t*>(rows.mutable_data_ptr()), args.cols = static_cast<uint32_t*>(cols.mutable_data_ptr());
  return {rows, cols, counts};
}

inline KeepMaskTensors new_keep_mask(const Tensor& like, KeepMaskArgs& args) {
  return new_mask_tensors(like, args, word_count(args.n_q));
}

// Without cols: the CPU's kernels read rows alone, and KeepMask.cols makes the others where they are asked for.
inline KeepMaskTensors new_keep_rows(const Tensor& like, KeepMaskArgs& args) { return new_mask_tensors(like, args, 0); }

// New rows (B, n_q, words) and counts, likewise; no columns.
inline KeepScoresTensors new_keep_scores(const Tensor& like, KeepMaskArgs& args) {
  Tensor rows = new_int32(like, {args.batch, args.n_q, word_count(args.n_k)});
  Tensor counts = new_counts(like, args);
  args.rows = static_cast<uint32_t*>(rows.mutable_data_ptr());
  return {rows, counts};
}

}  // namespace attrdrop
