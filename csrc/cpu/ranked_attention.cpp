// The backward of masked_attention that ranks dO V^T where it has formed it: gradients, and the mask of keep_mask (Eq. 5 to 7
// of AD-DROP).
#include "cpu/attention.h"
#include "keep_mask_tensors.h"
#include "ops.h"

namespace attrdrop {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> ranked_attention_backward_cpu(
    Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor keep, Tensor, std::optional<Tensor> bias,
    double scale, double dropout_p, int64_t seed, std::optional<Tensor> sample_ids, bool needs_grad_bias, double p, double rate,
    int64_t mask_seed, int64_t layer, bool low, bool bf16_keys) {
  const AttentionArguments a(q, k, v, keep, bias, scale, dropout_p, seed, sample_ids);
  KeepMaskArgs args = draw_args(a.batch, a.heads, a.n_q, a.n_k, rate, mask_seed, layer, view_of(std::optional(keep)), false,
                                view_of(sample_ids));
  args.bf16_keys = bf16_keys;
  args.region = low ? Region::low : Region::high;
  args.share = share_below(p, args.region);
  auto [rows, cols, counts] = new_keep_rows(q, args);
  AttentionBackward backward(a, grad_out, out, lse, needs_grad_bias, &args);
  backward.run();
  return {backward.of_q(), backward.of_k(), backward.of_v(), backward.of_bias(), rows, cols, counts};
}

}  // namespace attrdrop
