// masked_attention and its backward on the CPU.
#include "cpu/attention.h"
#include "ops.h"

namespace attrdrop {

std::tuple<Tensor, Tensor> masked_attention_cpu(Tensor q, Tensor k, Tensor v, Tensor keep, std::optional<Tensor> bias,
                                                double scale, double dropout_p, int64_t seed,
                                                std::optional<Tensor> sample_ids) {
  const AttentionArguments a(q, k, v, keep, bias, scale, dropout_p, seed, sample_ids);
  Tensor out = torch::stable::new_empty(q, {a.batch, a.n_q, a.heads, a.d_v});
  Tensor lse = torch::stable::new_empty(q, {a.batch, a.heads, a.n_q}, ScalarType::Float);
  const Kernels& kernel = kernels();
  const int64_t pairs = a.batch * a.kv_heads, wanted = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
  const QueryParts parts(a.n_q, pairs > 0 ? (wanted + pairs - 1) / pairs : 1);  // each packs k and v again
  torch::stable::parallel_for(0, pairs * parts.count, 1, [&](int64_t first, int64_t last) {
    const AlignedBuffer scratch(kernel.attention_scratch(a.problem(0, 0, out, lse), Walk::forward));
    for (int64_t task = first; task < last; ++task) {
      const int64_t pair = task / parts.count, part = task % parts.count, b = pair / a.kv_heads, kv_head = pair % a.kv_heads;
      kernel.pack_keys(a.problem(b, kv_head * a.groups, out, lse), Walk::forward, scratch.get());
      for (int64_t h = kv_head * a.groups; h < (kv_head + 1) * a.groups; ++h)
        kernel.attention(a.problem(b, h, out, lse), parts.begin(part), parts.end(part), scratch.get());
    }
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> masked_attention_backward_cpu(
    Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor keep, Tensor, std::optional<Tensor> bias,
    double scale, double dropout_p, int64_t seed, std::optional<Tensor> sample_ids, bool needs_grad_bias) {
  const AttentionArguments a(q, k, v, keep, bias, scale, dropout_p, seed, sample_ids);
  AttentionBackward backward(a, grad_out, out, lse, needs_grad_bias, nullptr);
  backward.run();
  return {backward.of_q(), backward.of_k(), backward.of_v(), backward.of_bias()};
}

}  // namespace attrdrop
