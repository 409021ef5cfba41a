// attention_attribution on the CPU: per-key sums (k = 0) or the k largest entries of dO V^T, one task per head.
#include "checks.h"
#include "ops.h"

namespace attrdrop {

std::tuple<Tensor, Tensor> attention_attribution_cpu(Tensor grad_out, Tensor v, std::optional<Tensor> valid,
                                                     bool is_causal, int64_t k) {
  check_dim(grad_out, 4, "grad_out");
  check_dim(v, 4, "v");
  const int64_t batch = grad_out.size(0), heads = grad_out.size(1), n_q = grad_out.size(2), n_k = v.size(2);
  const int64_t groups = v.size(1) > 0 ? heads / v.size(1) : 1;
  const int64_t width = k > 0 ? k : n_k;
  Tensor values = torch::stable::new_empty(grad_out, {batch, heads, width}, ScalarType::Float);
  Tensor indices = torch::stable::new_empty(grad_out, {batch, heads, k}, ScalarType::Long);
  auto* value_data = static_cast<float*>(values.mutable_data_ptr());
  auto* index_data = static_cast<int64_t*>(indices.mutable_data_ptr());
  const Kernels& kernel = kernels();
  torch::stable::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      const int64_t b = slice / heads, h = slice % heads;
      AttributionProblem problem{};
      problem.x = head_matrix(grad_out, b, h, "grad_out");
      problem.y = head_matrix(v, b, h / groups, "v");
      problem.n_q = n_q, problem.n_k = n_k, problem.d = grad_out.size(3), problem.k = k;
      problem.valid = head_bits(valid, b, h, is_causal);
      problem.reduction = k > 0 ? Reduction::topk : Reduction::sum;
      problem.values = value_data + slice * width;
      problem.indices = index_data + slice * k;
      const AlignedBuffer scratch(kernel.attribution_scratch(problem));
      kernel.attribution(problem, scratch.get());
    }
  });
  return {values, indices};
}

}  // namespace attrdrop
