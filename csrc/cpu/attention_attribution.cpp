// attention_attribution on the CPU: per-key sums (k = 0) or the k largest entries of dO V^T, of the attention probabilities
// or of their product, one task per head.
#include "checks.h"
#include "ops.h"

namespace attrdrop {

std::tuple<Tensor, Tensor> attention_attribution_cpu(std::optional<Tensor> grad_out, std::optional<Tensor> v,
                                                     std::optional<Tensor> weight_q, std::optional<Tensor> weight_k,
                                                     std::optional<Tensor> weight_lse, double scale,
                                                     std::optional<Tensor> bias, std::optional<Tensor> valid,
                                                     bool is_causal, int64_t k) {
  STD_TORCH_CHECK(grad_out.has_value() == v.has_value(), "grad_out and v go together");
  STD_TORCH_CHECK(weight_q.has_value() == weight_k.has_value() && weight_q.has_value() == weight_lse.has_value(),
                  "weight_q, weight_k and weight_lse go together");
  STD_TORCH_CHECK(grad_out || weight_q, "grad_out or weight_q must be given");
  const Tensor& queries = grad_out ? *grad_out : *weight_q;
  const Tensor& keys = v ? *v : *weight_k;
  check_dim(queries, 4, "grad_out");
  check_dim(keys, 4, "v");
  const int64_t batch = queries.size(0), heads = queries.size(1), n_q = queries.size(2), n_k = keys.size(2);
  const int64_t groups = keys.size(1) > 0 ? heads / keys.size(1) : 1;
  const int64_t width = k > 0 ? k : n_k;
  Tensor values = torch::stable::new_empty(queries, {batch, heads, width}, ScalarType::Float);
  Tensor indices = torch::stable::new_empty(queries, {batch, heads, k}, ScalarType::Long);
  auto* value_data = static_cast<float*>(values.mutable_data_ptr());
  auto* index_data = static_cast<int64_t*>(indices.mutable_data_ptr());
  std::optional<Tensor> lse;
  if (weight_lse) lse = torch::stable::contiguous(*weight_lse);
  const Kernels& kernel = kernels();
  torch::stable::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      const int64_t b = slice / heads, h = slice % heads;
      AttributionProblem problem{};
      problem.n_q = n_q, problem.n_k = n_k, problem.k = k, problem.is_weight_alone = !grad_out;
      if (grad_out) {
        problem.x = head_matrix(*grad_out, b, h, "grad_out");
        problem.y = head_matrix(*v, b, h / groups, "v");
        problem.d = grad_out->size(3);
      }
      if (weight_q) {
        problem.weight_q = head_matrix(*weight_q, b, h, "weight_q");
        problem.weight_k = head_matrix(*weight_k, b, h / groups, "weight_k");
        problem.weight_lse = lse->const_data_ptr<float>() + slice * n_q;
        problem.d_weight = weight_q->size(3);
        problem.scale = static_cast<float>(scale);
      }
      if (bias) head_bias(*bias, b, h, problem.bias, problem.bias_column_stride);
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
