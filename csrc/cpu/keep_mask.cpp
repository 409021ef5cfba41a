// keep_mask on the CPU: tensors in, one task per group of rows.
#include <atomic>
#include <tuple>

#include "checks.h"
#include "ops.h"

namespace attrdrop {

struct AtomicCounts {
  std::atomic<int64_t> value[4] = {};
  void add(const Counts& c) {
    value[0] += c.valid;
    value[1] += c.candidates;
    value[2] += c.dropped;
    value[3] += c.rescued_rows;
  }
  Tensor tensor(const Tensor& like) const {
    Tensor counts = torch::stable::new_empty(like, {4}, ScalarType::Long);
    for (int i = 0; i < 4; ++i) counts.mutable_data_ptr<int64_t>()[i] = value[i];
    return counts;
  }
};

// x (B, H, n_q, d), y (B, H_kv, n_k, d); weight_q (B, H, n_q, e), weight_k (B, H_kv, n_k, e), weight_lse (B, H, n_q).
std::tuple<Tensor, Tensor, Tensor> keep_mask_cpu(Tensor x, Tensor y, double p, double q, int64_t seed, int64_t layer,
                                                 std::optional<Tensor> valid, bool is_causal, bool low, bool bf16_keys,
                                                 std::optional<Tensor> sample_ids, std::optional<Tensor> weight_q,
                                                 std::optional<Tensor> weight_k, std::optional<Tensor> weight_lse,
                                                 double weight_scale) {
  check_dim(x, 4, "x");
  check_dim(y, 4, "y");
  const int64_t batch = x.size(0), heads = x.size(1), n_q = x.size(2), n_k = y.size(2), d = x.size(3);
  const int64_t groups = y.size(1) > 0 ? heads / y.size(1) : 1;
  Tensor rows = new_int32(x, {batch, heads, n_q, word_count(n_k)});
  Tensor cols = new_int32(x, {batch, heads, n_k, word_count(n_q)});
  AtomicCounts total;
  const Region region = low ? Region::low : Region::high;
  const auto problem = [&](int64_t slice) {
    const int64_t b = slice / heads, h = slice % heads;
    KeepMaskProblem problem{};
    problem.x = head_matrix(x, b, h, "x");
    problem.y = head_matrix(y, b, h / groups, "y");
    if (weight_q) {
      problem.weight_q = head_matrix(*weight_q, b, h, "weight query");
      problem.weight_k = head_matrix(*weight_k, b, h / groups, "weight key");
      problem.weight_lse = weight_lse->const_data_ptr<float>() + slice * n_q;
      problem.weight_scale = static_cast<float>(weight_scale);
      problem.d_weight = weight_q->size(3);
    }
    problem.n_q = n_q, problem.n_k = n_k, problem.d = d;
    problem.valid = head_bits(valid, b, h, is_causal);
    problem.draw = head_draw(seed, layer, h, sample_id(sample_ids, b), q);
    problem.region = region;
    problem.share_below = share_below(p, region);
    problem.round_to_bf16 = bf16_keys;
    problem.rows = static_cast<uint32_t*>(rows.mutable_data_ptr()) + slice * n_q * word_count(n_k);
    problem.cols = static_cast<uint32_t*>(cols.mutable_data_ptr()) + slice * n_k * word_count(n_q);
    return problem;
  };
  if (batch * heads * n_q == 0 || n_k == 0) {
    torch::stable::zero_(rows);
    torch::stable::zero_(cols);
    return {rows, cols, total.tensor(x)};
  }
  const Kernels& kernel = kernels();
  const RowTasks tasks(batch * heads, n_q);
  torch::stable::parallel_for(0, tasks.count, 1, [&](int64_t begin, int64_t end) {
    const AlignedBuffer scratch(kernel.keep_mask_scratch(problem(0)));
    Counts counts{};
    for (int64_t task = begin; task < end; ++task)
      kernel.keep_mask(problem(tasks.head(task)), tasks.begin(task), tasks.end(task), scratch.get(), counts);
    total.add(counts);
  });
  return {rows, cols, total.tensor(x)};
}

}  // namespace attrdrop
