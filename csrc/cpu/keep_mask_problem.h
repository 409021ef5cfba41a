// From the arguments of keep_mask to the problem of one (sample, head).
#pragma once
#include <atomic>

#include "bits.h"
#include "cpu/kernels.h"
#include "keep_mask_args.h"

namespace attrdrop {

struct AtomicCounts {
  std::atomic<int64_t> value[4] = {};
  void add(const Counts& c) {
    value[0] += c.valid;
    value[1] += c.candidates;
    value[2] += c.dropped;
    value[3] += c.rescued_rows;
  }
  void write(unsigned long long* counts) const {
    for (int i = 0; i < 4; ++i) counts[i] = static_cast<unsigned long long>(value[i]);
  }
};

inline Matrix head_matrix(const Operand& operand, Dtype dtype, int64_t sample, int64_t head) {
  const int64_t item = dtype == Dtype::f32 ? 4 : 2;
  return {static_cast<const char*>(operand.data) + item * (sample * operand.batch + head * operand.head), operand.row, dtype};
}

// The rows of one (sample, head), without what is ranked.
inline KeepMaskProblem selection_problem(const KeepMaskArgs& args, int64_t slice) {
  const int64_t sample = slice / args.heads, head = slice % args.heads;
  KeepMaskProblem problem{};
  problem.n_q = args.n_q, problem.n_k = args.n_k, problem.d = args.d, problem.d_weight = args.d_weight;
  if (args.valid) problem.valid.data = args.valid + sample * args.valid_batch + head * args.valid_head;
  problem.valid.row_stride = args.valid_row, problem.valid.is_causal = args.is_causal;
  const int64_t id = args.sample_ids ? args.sample_ids[sample * args.sample_stride] : sample;
  problem.draw = {args.seed, args.first_head + static_cast<uint32_t>(head), static_cast<uint32_t>(id), args.threshold};
  problem.region = args.region;
  problem.share_below = args.share;
  problem.round_to_bf16 = args.bf16_keys;
  problem.rows = args.rows + slice * args.n_q * word_count(args.n_k);
  return problem;
}

inline KeepMaskProblem head_problem(const KeepMaskArgs& args, int64_t slice) {
  const int64_t sample = slice / args.heads, head = slice % args.heads, kv_head = head / args.groups;
  KeepMaskProblem problem = selection_problem(args, slice);
  problem.x = head_matrix(args.x, args.dtype, sample, head);
  problem.y = head_matrix(args.y, args.dtype, sample, kv_head);
  if (args.weight_lse) {
    problem.weight_q = head_matrix(args.weight_q, args.dtype, sample, head);
    problem.weight_k = head_matrix(args.weight_k, args.dtype, sample, kv_head);
    problem.weight_lse = args.weight_lse + slice * args.n_q;
  }
  const Bias& bias = args.bias;
  if (bias.data) {
    problem.bias = head_matrix({bias.data, bias.batch, bias.head, bias.row}, bias.dtype, sample, head);
    problem.bias_column_stride = bias.column;
  }
  problem.scale = args.scale;
  return problem;
}

}  // namespace attrdrop
